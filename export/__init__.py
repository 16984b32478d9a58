"""Export: any trained network in, one exact description out, and files of it.

Names are imported on first use, so that importing the room imports neither torch nor onnx.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UnsupportedError
from ..network import Connection as Connection
from ..network import Conv2d as Conv2d
from ..network import Dense as Dense
from ..network import Input as Input
from ..network import Network as Network
from ..network import Population as Population
from ..network import Readout as Readout
from ..network import Scale as Scale

if TYPE_CHECKING:
    from .folding import Folded as Folded
    from .lowering import lower as lower
    from .onnx_executors import execute_file as execute_file
    from .onnx_executors import onnx_reference_executor as onnx_reference_executor
    from .onnx_executors import onnxruntime_executor as onnxruntime_executor
    from .onnx_file import load_onnx as load_onnx
    from .onnx_file import save_onnx as save_onnx
    from .onnx_graph import build_model as build_model
    from .quantization import QuantizeConfig as QuantizeConfig
    from .quantization import quantize as quantize
    from .quantization import quantize_with_latent as quantize_with_latent
    from .summary import Summary as Summary
    from .summary import render as render
    from .summary import summarize as summarize

_WHERE = {  # public name: its module
    "Folded": "folding",
    "QuantizeConfig": "quantization",
    "Summary": "summary",
    "build_model": "onnx_graph",
    "execute_file": "onnx_executors",
    "load_onnx": "onnx_file",
    "lower": "lowering",
    "onnx_reference_executor": "onnx_executors",
    "onnxruntime_executor": "onnx_executors",
    "quantize": "quantization",
    "quantize_with_latent": "quantization",
    "render": "summary",
    "save_onnx": "onnx_file",
    "summarize": "summary",
}

_NOT_YET = {".nir": "NIR", ".net": "lava-dl"}


def load(path: str | Path) -> Network:
    """Read a description from a file; the suffix says which format it is (.onnx).

    Raises
    ------
    FileFormatError
        If the file is missing, damaged, or not what it claims to be.
    UnsupportedError
        If no reader exists for the suffix.
    """
    _check_suffix(Path(path), "read")
    from .onnx_file import load_onnx

    return load_onnx(path)


def save(network: Network, path: str | Path) -> Path:
    """Write a description to a file; the suffix says in which format (.onnx). Returns the path.

    Raises
    ------
    FileFormatError
        If the file cannot be written.
    UnsupportedError
        If no writer exists for the suffix, or the format cannot represent the network.
    """
    _check_suffix(Path(path), "write")
    from .onnx_file import save_onnx

    return save_onnx(network, path)


def _check_suffix(path: Path, verb: str) -> None:
    suffix = path.suffix.lower()
    if suffix in _NOT_YET:
        raise UnsupportedError(f"{path}: lapilli cannot {verb} {_NOT_YET[suffix]} files ({suffix}) yet; use .onnx")
    if suffix != ".onnx":
        raise UnsupportedError(f"{path}: lapilli cannot {verb} files ending in {suffix!r}; use .onnx")


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_WHERE[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*_WHERE, *(n for n in globals() if n[0].isupper() or n in ("load", "save"))})
