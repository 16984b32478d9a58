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
from ..network import DECAY_ONE, INPUT, IntArray, Network, Population
from ..recording import Executor, Recording, joined
from .integer_forward import Outcome, input_sum, is_constant, leaks, run, step_weights, weighted_sum

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


def seen(recording: Recording) -> Outcome:
    """Spikes and last membranes of a recording, as tensors."""
    spikes, v_final = (
        {name: torch.from_numpy(a) for name, a in d.items()} for d in (recording.spikes, recording.v_final)
    )
    return Outcome(spikes, v_final)


def tells_means(network: Network) -> bool:
    """Whether a recording can tell what came into every population that spikes (:func:`outcome`)."""
    return all((_keeps_all(p) or _sums_tell(p)) and not p.graded for p in network.populations if p.spikes)


def _keeps_all(p: Population) -> bool:
    return p.dv == 0 and p.reset == "subtract"


def _sums_tell(p: Population) -> bool:
    return p.du == DECAY_ONE


def outcome(network: Network, x: IntArray, recording: Recording) -> Outcome | None:
    """What :func:`.integer_forward.run` gives with means, from a recording of another executor on the CPU.

    What came into a membrane is where it got to and what its spikes took. Where a part of that is lost, because it
    wrapped, saturated, leaked or was set to zero, what came in is summed again: by one product, of numbers of spikes.

    Parameters
    ----------
    network : Network
        For which :func:`tells_means` holds.
    x : int64 [B, *shape] or [T, B, *shape]
    recording : Recording
        Of ``network`` and ``x``.

    Returns
    -------
    Outcome or None
        None if the recording does not tell.
    """
    given, steps = torch.from_numpy(x), network.steps
    found = seen(recording)
    found.mean_sent[INPUT] = given.float() if is_constant(network, given) else given.mean(0, dtype=torch.float32)
    weights = {c.name: torch.tensor(c.synapse.weight) for c in network.connections}
    for p in network.populations:
        if not p.spikes:
            continue
        if leaks(p):
            sent, total = weighted_sum(found.spikes[p.name], step_weights(p, steps)), 1
        else:
            counts = recording.spikes[p.name].sum(0, dtype=np.uint8 if steps < 2**8 else np.int32)
            sent, total = torch.from_numpy(counts), steps
        v = found.v_final.get(p.name)
        lost = recording.saturations.get(p.name) != 0 or (p.du == DECAY_ONE and recording.wraps.get(p.name) != 0)
        if v is not None and _keeps_all(p) and not lost:
            narrow = p.v_max * 2 + p.reset_amount * steps < 2**31
            came = sent.to(torch.int32 if narrow else torch.int64).mul_(p.reset_amount).add_(v).sub_(p.v_init)
        elif _sums_tell(p):
            came = input_sum(network, p, found.spikes | {INPUT: given}, weights, torch.tensor(p.bias))
        else:
            return None
        found.mean_sent[p.name], found.mean_input[p.name] = sent.float().div_(total), came.float().div_(total)
    return found


def recording(outcome: Outcome) -> Recording:
    """What a run gave, as NumPy arrays."""

    def arrays(tensors: Mapping[str, Tensor], dtype: npt.DTypeLike) -> dict[str, npt.NDArray[Any]]:
        return {name: t.cpu().numpy().astype(dtype) for name, t in tensors.items()}

    return Recording(
        spikes={name: t.cpu().numpy() for name, t in outcome.spikes.items()},
        v_final=arrays(outcome.v_final, np.int64),
        current=arrays(outcome.current, np.int64),
        u=arrays(outcome.u, np.int64),
        v=arrays(outcome.v, np.int64),
        wraps=outcome.wraps,
        saturations=outcome.saturations,
    )
