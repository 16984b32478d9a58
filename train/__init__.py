"""Train spiking networks: DSR neurons, the loop, checkpoints, data sets, and bit-true training.

Names are imported on first use, so that importing the room does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .bit_true import BitTrueNetwork as BitTrueNetwork
    from .checkpoint import Checkpoint as Checkpoint
    from .checkpoint import load as load_checkpoint  # noqa: F401
    from .checkpoint import save as save_checkpoint  # noqa: F401
    from .config import BitTrueConfig as BitTrueConfig
    from .config import DataConfig as DataConfig
    from .config import NetworkConfig as NetworkConfig
    from .config import TrainConfig as TrainConfig
    from .data import DataSet as DataSet
    from .data import Split as Split
    from .data import load as load_data  # noqa: F401
    from .executor import torch_executor as torch_executor
    from .loop import History as History
    from .loop import evaluate as evaluate
    from .loop import fit as fit
    from .model import SpikingSequential as SpikingSequential
    from .model import build as build
    from .neurons import Accumulator as Accumulator
    from .neurons import IFNeuron as IFNeuron
    from .neurons import LIFNeuron as LIFNeuron
    from .residual import PreActBlock as PreActBlock

_WHERE = {  # public name: (module, its name there)
    "Accumulator": ("neurons", "Accumulator"),
    "BitTrueConfig": ("config", "BitTrueConfig"),
    "BitTrueNetwork": ("bit_true", "BitTrueNetwork"),
    "Checkpoint": ("checkpoint", "Checkpoint"),
    "DataConfig": ("config", "DataConfig"),
    "DataSet": ("data", "DataSet"),
    "History": ("loop", "History"),
    "IFNeuron": ("neurons", "IFNeuron"),
    "LIFNeuron": ("neurons", "LIFNeuron"),
    "NetworkConfig": ("config", "NetworkConfig"),
    "PreActBlock": ("residual", "PreActBlock"),
    "SpikingSequential": ("model", "SpikingSequential"),
    "Split": ("data", "Split"),
    "TrainConfig": ("config", "TrainConfig"),
    "build": ("model", "build"),
    "evaluate": ("loop", "evaluate"),
    "fit": ("loop", "fit"),
    "load_checkpoint": ("checkpoint", "load"),
    "load_data": ("data", "load"),
    "save_checkpoint": ("checkpoint", "save"),
    "torch_executor": ("executor", "torch_executor"),
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _WHERE[name]
    return getattr(import_module(f".{module}", __name__), attribute)


def __dir__() -> list[str]:
    return sorted(_WHERE)
