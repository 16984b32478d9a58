"""From a conventional network to a spiking one: the DSR paper's hybrid training, its setting for ImageNet.

The same layers are trained with ReLU in place of neurons, or their weights come from a file. Then the threshold of
every layer becomes a percentile of what its ReLUs send on training samples (code qymeng94/DSR
``imagenet/preresnet_cal_Vth.py``, which takes samples of the test set), so that a layer of spikes cuts off the largest
values only, and training goes on with spikes::

    ReLU    max(0, I)       max(0, I/tau)           spikes, on average    clamp(I, 0, th)   clamp(I/tau, 0, th/dt)
            (IF)            (LIF)                                         (IF)              (LIF)
"""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import FileFormatError
from . import checkpoint
from .config import ReluConfig
from .data import Split
from .model import SpikingSequential
from .neurons import LIFNeuron, Neuron

SAMPLES_AT_ONCE = 64


class Rectifier(nn.Module):
    """ReLU where a spiking network has neurons: ``max(0, I / tau)``."""

    def __init__(self, tau: float) -> None:
        super().__init__()
        self.tau = tau

    def forward(self, current: Tensor) -> Tensor:
        """Current ``[B, ...]`` to the same shape."""
        return (current if self.tau == 1.0 else current / self.tau).relu()


class ReluNetwork(nn.Module):
    """The conventional network of a spiking network's layers, with copies of its weights.

    Accumulators become the identity. The last neurons of readout "rate" become ReLU, as in the official code.

    Parameters
    ----------
    model : SpikingSequential

    Attributes
    ----------
    rectifiers : dict of Rectifier
        By the name of the population that they stand for.
    """

    def __init__(self, model: SpikingSequential) -> None:
        super().__init__()
        instead: dict[int, nn.Module] = {}
        self.rectifiers: dict[str, Rectifier] = {}
        for name, neuron in model.neurons.items():
            if isinstance(neuron, Neuron):
                self.rectifiers[name] = Rectifier(neuron.tau if isinstance(neuron, LIFNeuron) else 1.0)
            instead[id(neuron)] = self.rectifiers.get(name, nn.Identity())
        self.layers = copy.deepcopy(model.layers, instead)
        self.input_shape = model.input_shape

    def forward(self, x: Tensor) -> Tensor:
        """Class scores ``[B, classes]``; frames ``[T, B, ...]`` count with their mean."""
        return self.layers(x.mean(0) if x.ndim == len(self.input_shape) + 2 else x)

    def load(self, path: str | Path) -> None:
        """Take weights from a file, in place.

        Parameters
        ----------
        path : path
            A checkpoint of ours; or tensors in a safetensors file, or in a ``.pt`` or ``.pth`` file that torch can
            load without running code, there also under the key "state_dict". Names are those of our networks, or
            those of the official PreAct-ResNets. Thresholds in it are not used.

        Raises
        ------
        FileFormatError
            If the file is absent or broken, or a tensor is missing, does not fit or does not belong here.
        """
        own = self.state_dict()
        found = _our_names(_tensors(Path(path)))
        found = {name: t for name, t in found.items() if not name.endswith((".threshold", ".num_batches_tracked"))}
        wanted = {name for name in own if not name.endswith(".num_batches_tracked")}
        for name in sorted(found.keys() ^ wanted):
            what = "is missing" if name in wanted else "has no place in it"
            raise FileFormatError(f"{path}: does not fit the network: tensor {name!r} {what}; give weights of this one")
        for name, tensor in found.items():
            if tensor.shape != own[name].shape or not tensor.is_floating_point():
                raise FileFormatError(
                    f"{path}: does not fit the network: tensor {name!r} is {tensor.dtype} {tuple(tensor.shape)}, "
                    f"the network's {tuple(own[name].shape)}; give weights of this one"
                )
        self.load_state_dict(found, strict=False)


def _tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileFormatError(f"{path}: no such file of weights (relu.initial)")
    found: Any
    try:
        if path.suffix in (".pt", ".pth"):
            found = torch.load(path, map_location="cpu", weights_only=True)
            found = found.get("state_dict", found) if isinstance(found, dict) else found
        else:
            with safe_open(path, framework="pt") as file:
                ours = checkpoint.METADATA_KEY in (file.metadata() or {})
            found = checkpoint.load(path).kept if ours else load_file(path)
    except (SafetensorError, OSError, EOFError, ValueError, RuntimeError, pickle.UnpicklingError) as error:
        reason = str(error).split("\n", 1)[0]
        raise FileFormatError(
            f"{path}: not a file of tensors alone, or truncated ({reason}); give a safetensors file, or a .pt or .pth "
            "file of a state_dict"
        ) from None
    if not isinstance(found, dict) or not all(isinstance(t, Tensor) for t in found.values()):
        raise FileFormatError(f"{path}: holds no tensors by name; save a module's state_dict")
    return {str(name).removeprefix("module."): t for name, t in found.items()}


def _our_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of the official PreAct-ResNets (qymeng94/DSR ``preresnet_ann.py``) as ours; others as they are."""
    if "layer1.0.bn1.weight" not in tensors:
        return {name if name.startswith("layers.") else f"layers.{name}": t for name, t in tensors.items()}
    blocks = sorted({(int(m[1]), int(m[2])) for name in tensors if (m := re.match(r"layer(\d+)\.(\d+)\.", name))})
    inside = {"bn1": "in_norm", "bn2": "mid_norm", "downsample": "shortcut"}
    outside = {"bn1": "conv1_norm", "bn2": "neurons1_norm", "fc": "fc1", "bn3": "fc1_norm"}
    renamed = {}
    for name, tensor in tensors.items():
        if found := re.match(r"layer(\d+)\.(\d+)\.(\w+)\.(.*)", name):
            number = blocks.index((int(found[1]), int(found[2]))) + 1
            renamed[f"layers.block{number}.{inside.get(found[3], found[3])}.{found[4]}"] = tensor
        else:
            module, _, rest = name.partition(".")
            renamed[f"layers.{outside.get(module, module)}.{rest}"] = tensor
    return renamed


class _Percentile:
    """A percentile of very many values, of which only those that can matter are kept.

    It is one of the values: of ``n`` values in order, counted from 0, number ``int(percentile / 100 n)``, at most the
    last one; so in the official code.
    """

    def __init__(self, percentile: float, count: int) -> None:
        self._keep = count - min(int(percentile / 100 * count), count - 1)
        self._largest: Tensor | None = None

    def add(self, values: Tensor) -> None:
        """Some of the values."""
        flat = values.flatten()
        if self._largest is not None:
            flat = torch.cat([self._largest, flat])
        self._largest = flat.topk(self._keep, sorted=False).values if len(flat) > self._keep else flat.clone()

    @property
    def value(self) -> Tensor:
        """When all have been added."""
        assert self._largest is not None
        return self._largest.min()


@torch.no_grad()
def to_spikes(relu: ReluNetwork, model: SpikingSequential, train: Split, config: ReluConfig) -> None:
    """Give a spiking network the weights of a ReLU network, and thresholds from what that sends, in place.

    The samples are the same for a seed, unchanged by augmentation, and the network runs in eval mode.

    Parameters
    ----------
    relu : ReluNetwork
        Made from ``model``, then trained.
    model : SpikingSequential
    train : Split
        ``config.calibration_batches`` batches are taken.
    config : ReluConfig
    """
    model.load_state_dict(relu.state_dict(), strict=False)
    count = min(len(train), config.calibration_batches * config.batch_size)
    chosen = np.random.default_rng([config.seed, 0]).permutation(len(train))[:count]
    found: dict[str, _Percentile] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, sent: Tensor) -> None:
            if name not in found:
                found[name] = _Percentile(config.percentile, count * sent[0].numel())
            found[name].add(sent)

        return hook

    like = next(relu.parameters())
    was_training = relu.training
    relu.eval()
    try:
        with ExitStack() as hooks:
            for name, module in relu.rectifiers.items():
                hooks.callback(module.register_forward_hook(keep(name)).remove)
            for start in range(0, count, SAMPLES_AT_ONCE):
                x = np.ascontiguousarray(train.values(chosen[start : start + SAMPLES_AT_ONCE]))
                relu(torch.from_numpy(x).to(like.device, like.dtype))
    finally:
        relu.train(was_training)
    for name, percentile in found.items():
        neuron = model.neurons[name]
        assert isinstance(neuron, Neuron)
        # What a spike sends is th (IF) or th/dt (LIF); that is what the layer sends at most, on average.
        ceiling = percentile.value * (neuron.dt if isinstance(neuron, LIFNeuron) else 1.0)
        neuron.threshold.copy_(ceiling.clamp(min=neuron.bound))
