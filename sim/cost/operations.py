"""What a network computes, counted: synaptic operations, activity, and the same network as a conventional ANN.

The definitions are NeuroBench's (version 2.3, ``synaptic_operations.py``, ``activation_sparsity.py``,
``connection_sparsity.py``, ``footprint.py``), so that the numbers compare with published ones:

- *effective* operations: pairs of a non-zero input and a non-zero weight; zero weights and padding do not count;
- *dense*: the same with every input and every weight set to 1 (padding still does not count);
- accumulates (AC) where all inputs are -1, 0 or 1, multiply-accumulates (MAC) otherwise;
- per sample, that is summed over the steps of its window.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ...arithmetic import fan_out
from ...network import Connection, IntArray, Network

if TYPE_CHECKING:
    from collections.abc import Mapping

# Energy of one operation at 45 nm, 0.9 V in J: multiply + add; memory excluded.
# Horowitz, "Computing's energy problem", ISSCC 2014, figure 1.1.9.
HOROWITZ = "Horowitz, ISSCC 2014, fig. 1.1.9: arithmetic only at 45 nm, 0.9 V; memory excluded"
INT8_MULTIPLY, INT8_ADD = 0.2e-12, 0.03e-12
FP32_MULTIPLY, FP32_ADD = 3.7e-12, 0.9e-12


class Counted(Protocol):
    """What counting needs of a run (:class:`lapilli.sim.simulation.Run` has it); totals are over all its samples."""

    @property
    def n_samples(self) -> int:
        """Number of samples."""
        ...

    @property
    def synop_totals(self) -> Mapping[str, int]:
        """Synaptic operations by connection: (non-zero input, non-zero weight) pairs."""
        ...

    @property
    def spike_totals(self) -> Mapping[str, int]:
        """Spikes by population."""
        ...

    @property
    def events(self) -> Mapping[str, IntArray]:
        """Spikes of each neuron by population, [*shape]."""
        ...

    @property
    def events_per_step(self) -> Mapping[str, IntArray]:
        """Spikes at each step by population, [T]."""
        ...

    @property
    def synops_per_step(self) -> Mapping[str, IntArray]:
        """Synaptic operations at each step by connection, [T]."""
        ...


@dataclass(frozen=True)
class Comparison:
    """The same network as a conventional ANN, and the spiking network's own operations, all per sample.

    Attributes
    ----------
    macs : dict of int
        By connection: multiply-accumulates of one dense pass over the connections as deployed (average pooling
        folded into a convolution counts as that convolution); padding excluded.
    int8, fp32 : float
        Energy of all those MACs at 45 nm, J.
    effective_acs, effective_macs, dense : float
        The spiking network's, by NeuroBench's definitions. MACs are those of a graded input and of graded spikes.
    snn_int8 : float
        Arithmetic of the spiking network at the same node with 8-bit operands, J.
    source : str
    """

    macs: dict[str, int]
    int8: float
    fp32: float
    effective_acs: float
    effective_macs: float
    dense: float
    snn_int8: float
    source: str = HOROWITZ

    @property
    def total_macs(self) -> int:
        """MACs of one dense pass."""
        return sum(self.macs.values())

    def to_json(self) -> dict[str, Any]:
        """All fields and the total, JSON values."""
        return asdict(self) | {"total_macs": self.total_macs}


@dataclass(frozen=True)
class Sparsity:
    """NeuroBench's static and activity metrics.

    Attributes
    ----------
    activation : float
        Share of (neuron, step, sample) triples without a spike, over all populations that spike.
    connection : float
        Share of zero weights over dense and convolutional connections, 4 decimals as NeuroBench rounds.
    footprint_bits : int
        Stored integers: every weight at its connection's ``weight_bits`` (a convolution's kernel once) and every
        bias value at its population's ``state_bits``.
    footprint_neurobench : int
        Bytes of the same weights and biases held in float32, as NeuroBench counts a torch model.
    """

    activation: float
    connection: float
    footprint_bits: int
    footprint_neurobench: int

    def to_json(self) -> dict[str, Any]:
        """All fields, JSON values."""
        return asdict(self)


def synapses(network: Network, connection: Connection, *, nonzero: bool = False) -> int:
    """Synapses of a connection, padding excluded: the operations of one pass in which every input is active.

    Parameters
    ----------
    nonzero : bool
        Leave out zero weights.
    """
    synapse = connection.synapse
    if not nonzero:
        synapse = replace(synapse, weight=np.ones_like(synapse.weight))
    source, target = network.shape_of(connection.source), network.shape_of(connection.target)
    return int(fan_out(synapse, source, target).sum())


def is_graded(network: Network, connection: Connection) -> bool:
    """Whether a connection carries values beyond -1, 0 and 1, so that its operations are multiply-accumulates."""
    low, high = network.sent_range(connection.source)
    return low < -1 or high > 1


def compare(network: Network, run: Counted) -> Comparison:
    """Operations of the network and of its conventional twin."""
    macs = {c.name: synapses(network, c) for c in network.connections}
    graded = {c.name for c in network.connections if is_graded(network, c)}
    totals = run.synop_totals
    effective = {name: totals[name] / run.n_samples for name in macs}
    effective_macs = float(sum(effective[name] for name in graded))
    effective_acs = float(sum(n for name, n in effective.items() if name not in graded))
    total = sum(macs.values())
    return Comparison(
        macs=macs,
        int8=total * (INT8_MULTIPLY + INT8_ADD),
        fp32=total * (FP32_MULTIPLY + FP32_ADD),
        effective_acs=effective_acs,
        effective_macs=effective_macs,
        dense=float(total * network.steps),
        snn_int8=effective_acs * INT8_ADD + effective_macs * (INT8_MULTIPLY + INT8_ADD),
    )


def sparsity(network: Network, run: Counted) -> Sparsity:
    """Activity and weight sparsity, and the memory that the weights take."""
    spiking = [p for p in network.populations if p.spikes]
    places = sum(p.size for p in spiking) * network.steps * run.n_samples
    weighted = [c.synapse.weight for c in network.connections if c.synapse.kind != "scale"]
    weights, zeros = sum(w.size for w in weighted), sum(int((w == 0).sum()) for w in weighted)
    values = sum(c.synapse.weight.size for c in network.connections) + sum(p.bias.size for p in network.populations)
    return Sparsity(
        activation=1.0 - sum(run.spike_totals[p.name] for p in spiking) / places if places else 0.0,
        connection=round(zeros / weights, 4) if weights else 0.0,
        footprint_bits=sum(c.synapse.weight.size * c.weight_bits for c in network.connections)
        + sum(p.bias.size * p.state_bits for p in network.populations),
        footprint_neurobench=4 * values,
    )
