"""The executor "torch": a description on the CPU or a GPU, with the arithmetic of bit-true training."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..errors import ExecutionError, UnsupportedError
from ..network import IntArray, Network
from ..recording import Executor, Recording, joined
from .integer_forward import Outcome, run

DEVICES = ("cpu", "cuda", "mps")


def usable_device(name: str) -> torch.device:
    """The device of that name: cpu, cuda, cuda:1 or mps.

    Raises
    ------
    UnsupportedError
        If there is no such device, or torch cannot use it here.
    """
    try:
        device = torch.device(name)
        if device.type not in DEVICES:
            raise RuntimeError(f"lapilli knows {', '.join(DEVICES)}")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n", 1)[0].partition(". ")[0]
        raise UnsupportedError(f"device {name!r} cannot be used here ({reason}); use cpu") from None
    return device


def torch_executor(network: Network, x: IntArray, trace: Collection[str] = (), device: str = "cpu") -> Recording:
    """Run a description in torch; see :class:`lapilli.recording.Executor`.

    Where the device has not enough memory for all samples at once, they run in parts, half as many at a time until
    they fit; the integers are the same.

    Parameters
    ----------
    network, x, trace
        As for every executor.
    device : str
        cpu, cuda, cuda:1 or mps; the integers are the same.

    Raises
    ------
    UnsupportedError
        If a neuron has more synapses than it sums exactly.
    ExecutionError
        If its memory does not hold a single sample.
    """
    place = torch.device(device)
    weights = {c.name: torch.tensor(c.synapse.weight, device=place) for c in network.connections}
    biases = {p.name: torch.tensor(p.bias, device=place) for p in network.populations}
    everything = [p.name for p in network.populations]
    axis = x.ndim - len(network.input.shape) - 1
    batch = size = x.shape[axis]
    parts: list[Recording] = []
    first = 0
    while first < batch or not parts:
        part = x.take(range(first, min(first + size, batch)), axis)
        try:
            given = torch.tensor(part, device=place)
            parts.append(recording(run(network, given, weights, biases, keep=everything, trace=trace, count=True)))
        except RuntimeError as error:  # torch's OutOfMemoryError is one; on MPS it has no class of its own
            if "out of memory" not in str(error).lower():
                raise
            if size <= 1:
                raise ExecutionError(
                    f"device {device!r} has not enough memory for one sample of network {network.name!r}; "
                    "use cpu, the engine 'fast'"
                ) from None
            size //= 2
        else:
            first += size
    return joined(parts)


def on_device(device: str) -> Executor:
    """The executor on that device.

    Raises
    ------
    UnsupportedError
        If the device cannot be used.
    """
    usable_device(device)
    return partial(torch_executor, device=device)


def recording(outcome: Outcome) -> Recording:
    """What a run gave, as NumPy arrays."""

    def arrays(tensors: Mapping[str, Tensor], dtype: npt.DTypeLike) -> dict[str, npt.NDArray[Any]]:
        return {name: t.cpu().numpy().astype(dtype) for name, t in tensors.items()}

    return Recording(
        spikes=arrays(outcome.spikes, np.uint8),
        v_final=arrays(outcome.v_final, np.int64),
        current=arrays(outcome.current, np.int64),
        u=arrays(outcome.u, np.int64),
        v=arrays(outcome.v, np.int64),
        wraps=outcome.wraps,
        saturations=outcome.saturations,
    )
