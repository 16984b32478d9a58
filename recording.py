"""What an executor returns, and how class scores are read from it.

An executor is a callable ``(network, x, trace) -> Recording``: the reference and the fast engine (``sim``), the
bit-true torch module (``train``), ONNX Runtime (``export``), Lava (``deploy.lava``). All return the same thing,
so that they can be compared spike for spike.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .arithmetic import decay
from .errors import DescriptionError
from .network import WEIGHTED_COUNT_ONE, IntArray, Network


@dataclass
class Recording:
    """Spikes of every population, and traces of the populations that were asked for.

    Attributes
    ----------
    spikes : dict of uint8 or int32 [T, B, *shape]
        By population; every population that spikes: 0 and 1 as uint8, the payloads of graded spikes as int32.
    v_final : dict of int64 [B, *shape]
        Membrane after the last step; every population with reset "none" (an executor may give more).
    current, u, v : dict of int64 [T, B, *shape]
        Of the traced populations: the sum over incoming connections ``I 2^f``, the current ``u`` and the membrane
        after the reset, at every step. An executor that cannot see a quantity leaves it out.
    wraps, saturations : dict of int
        Overflow events by population: (neuron, sample, step) triples at which ``u`` left its width and wrapped,
        or ``v`` left it and saturated. Empty if the executor does not count.
    """

    spikes: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    v_final: dict[str, IntArray] = field(default_factory=dict)
    current: dict[str, IntArray] = field(default_factory=dict)
    u: dict[str, IntArray] = field(default_factory=dict)
    v: dict[str, IntArray] = field(default_factory=dict)
    wraps: dict[str, int] = field(default_factory=dict)
    saturations: dict[str, int] = field(default_factory=dict)


class Executor(Protocol):
    """Runs a description; every implementation gives the same spikes."""

    def __call__(self, network: Network, x: IntArray, trace: Collection[str] = ()) -> Recording:
        """Run a batch.

        Parameters
        ----------
        network : Network
        x : int64 [B, *shape] (the same at every step) or [T, B, *shape]
            From :meth:`lapilli.network.Input.encode`.
        trace : names of populations
            Whose ``current``, ``u`` and ``v`` are wanted at every step.
        """
        ...


def joined(parts: Sequence[Recording]) -> Recording:
    """Recordings of consecutive samples as one."""
    if len(parts) == 1:
        return parts[0]

    def together(quantity: str, axis: int) -> dict[str, npt.NDArray[Any]]:
        names = getattr(parts[0], quantity)
        return {name: np.concatenate([getattr(part, quantity)[name] for part in parts], axis) for name in names}

    def sums(events: str) -> dict[str, int]:
        return {name: sum(getattr(part, events)[name] for part in parts) for name in getattr(parts[0], events)}

    return Recording(
        **{quantity: together(quantity, 1) for quantity in ("spikes", "current", "u", "v")},
        v_final=together("v_final", 0),
        wraps=sums("wraps"),
        saturations=sums("saturations"),
    )


def at_every_step(network: Network, x: IntArray) -> npt.NDArray[Any]:
    """``x`` as ``[T, B, *shape]``; a constant input is repeated without a copy.

    Raises
    ------
    DescriptionError
        If frames are given and their number is not the network's ``steps``.
    """
    if x.ndim == len(network.input.shape) + 1:
        return np.broadcast_to(x, (network.steps, *x.shape))
    if len(x) != network.steps:
        raise DescriptionError(f"network {network.name!r} runs {network.steps} steps; the input has {len(x)} frames")
    return x


def count_weights(network: Network) -> IntArray:
    """Weight of a spike at each step in the readout's count: int64 ``[T]``.

    All ones for "count". For "weighted_count" the weight is ``2^20`` at the last step and one truncating decay
    less at each step before, so that scores are exact integers.
    """
    readout = network.readout
    if readout is None or readout.kind != "weighted_count":
        return np.ones(network.steps, np.int64)
    weights = [np.array(WEIGHTED_COUNT_ONE, np.int64)]
    for _ in range(network.steps - 1):
        weights.append(decay(weights[-1], readout.decay))
    return np.array(weights[::-1], np.int64)


def scores(network: Network, recording: Recording) -> IntArray:
    """Class scores, int64 ``[B, N]``: the readout of the network, exact.

    Raises
    ------
    DescriptionError
        If the network has no readout.
    """
    readout = network.readout
    if readout is None:
        raise DescriptionError(f"network {network.name!r} has no readout; give it one to get class scores")
    if readout.kind == "membrane":
        v = recording.v_final[readout.population]
        return v.reshape(len(v), -1)
    spikes = recording.spikes[readout.population]
    flat = spikes.reshape(spikes.shape[0], spikes.shape[1], -1).astype(np.int64)  # below 2^63 with any payloads
    return np.einsum("t,tbn->bn", count_weights(network), flat)


def decide(scores: IntArray) -> IntArray:
    """Predicted class of each sample, int64 ``[B]``: the largest score, the first one on a tie."""
    return scores.argmax(axis=1)
