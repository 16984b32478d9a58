"""The network description: integer populations joined by integer connections.

A :class:`Network` has one meaning, and every executor gives exactly this meaning. Per time step ``n = 1..T``,
populations in topological order (spikes cross all layers within one step, as in training)::

    I = sum over incoming connections of W x 2^e        exact; x = what the source sends: s, or the quantized input
    u = trunc(u (4096 - du) / 4096) + I 2^f             trunc: toward zero; du = 4096: no current memory
    v = trunc(v (4096 - dv) / 4096) + u + b             dv = 0: integrate without leak
    s = 1 where v > theta, else 0                       strict, as in Loihi, Lava and NIR
        graded: clip(floor(v / 2^g), 1, m) for the 1    g, m: payload_shift, payload_max; m = 1 is a plain spike
    reset "subtract": v = v - rho s                     soft reset; rho need not equal theta
    reset "zero":     v = 0 where s                     hard reset
    reset "none":     v stays; a readout accumulator, it sends nothing

``u`` wraps and ``v`` saturates at the population's state width. :mod:`lapilli.arithmetic` is this text as code.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from .errors import DataError, DescriptionError
from .synapses import SYNAPSE_KINDS, Conv2d, Dense, Scale, Synapse
from .validation import IntArray, Shape, as_int, as_integers, check, check_shape, freeze

Reset: TypeAlias = Literal["subtract", "zero", "none"]
ReadoutKind: TypeAlias = Literal["count", "weighted_count", "membrane"]

__all__ = [
    "DECAY_ONE",
    "FORMAT_VERSIONS",
    "INPUT",
    "WEIGHTED_COUNT_ONE",
    "Connection",
    "Conv2d",
    "Dense",
    "Input",
    "IntArray",
    "Network",
    "Population",
    "Readout",
    "Scale",
    "Shape",
    "Synapse",
    "from_structure",
]

FORMAT_VERSIONS = (1, 2)  # a network has the lowest that can say it: 2 where a population sends graded spikes
INPUT = "input"  # the name by which connections refer to the network's input
DECAY_ONE = 4096  # decays are 12-bit fractions: du = 4096 forgets everything, dv = 0 forgets nothing
MAX_STEPS = 2**20
WEIGHTED_COUNT_ONE = 2**20  # weight of a spike at the last step in a weighted count

# Of graded spikes and inputs: 24 bits with sign, as s_out in lava-nc 0.10.0, lava/proc/graded/models.py.
MAX_PAYLOAD = 2**23

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.\-]*")

_POPULATION_INTEGERS = (
    "threshold", "reset_amount", "du", "dv", "v_init", "payload_max", "payload_shift", "fraction_bits", "state_bits",
)  # fmt: skip


@dataclass(frozen=True, eq=False, kw_only=True)
class Population:
    """A group of integer neurons that share threshold, reset and decays.

    Parameters
    ----------
    name : str
    shape : tuple of int
        ``(N,)`` or ``(C, Y, X)``.
    threshold : int
        ``theta`` in state units; a neuron spikes where ``v > theta``. Not used with reset "none".
    reset : {"subtract", "zero", "none"}
    reset_amount : int
        ``rho`` in state units, subtracted at a spike with reset "subtract"; 0 otherwise.
    du, dv : int
        Decay of current and membrane in 1/4096 per step, 0..4096.
    bias : int64, broadcastable to ``shape``
        ``b`` in state units, added to the membrane at every step.
    v_init : int
        Membrane at the start of every sample window, state units. The current starts at 0.
    payload_max : int
        ``m``: the largest integer that a spike carries. 1: a plain spike, 0 or 1. More: graded spikes, below 2^23 (24
        bits with sign, as the input's integers); with reset "subtract", ``rho`` is subtracted once for each unit sent.
    payload_shift : int
        ``g``: a graded spike carries ``floor(v / 2^g)`` of the charged membrane, at least 1 and at most ``m``; ``g =
        fraction_bits`` sends the membrane in the units of currents. 0 without graded spikes.
    fraction_bits : int
        ``f``: a current of 1 weighs ``2^f`` state units (6 on Loihi).
    state_bits : int
        Width of ``u`` (wraps) and ``v`` (saturates) including the sign: 24 on Loihi.
    scale : float or None
        State units per unit of the trained real-valued membrane, where known. For the reader and for
        bit-true training; no executor uses it.
    """

    name: str
    shape: Shape
    threshold: int = 0
    reset: Reset = "subtract"
    reset_amount: int = 0
    du: int = DECAY_ONE
    dv: int = 0
    bias: IntArray = field(default_factory=lambda: np.zeros((1,), np.int64))
    v_init: int = 0
    payload_max: int = 1
    payload_shift: int = 0
    fraction_bits: int = 6
    state_bits: int = 24
    scale: float | None = None

    def __post_init__(self) -> None:
        where = f"population {self.name!r}"
        check(
            isinstance(self.name, str) and _NAME.fullmatch(self.name) is not None and len(self.name) <= 200,
            f"{where}: a name starts with a letter and has letters, digits, '_', '-' and '.' only",
        )
        check(self.name != INPUT, f"{where}: this name is reserved for the network's input")
        shape = tuple(as_int(f"{where}: shape", d) for d in self.shape)
        check_shape(where, shape)
        object.__setattr__(self, "shape", shape)
        for name in _POPULATION_INTEGERS:
            object.__setattr__(self, name, as_int(f"{where}: {name}", getattr(self, name)))
        check(
            self.reset in ("subtract", "zero", "none"), f"{where}: reset {self.reset!r} is not subtract, zero or none"
        )
        check(2 <= self.state_bits <= 32, f"{where}: state_bits {self.state_bits} is outside 2..32")
        check(
            0 <= self.fraction_bits < self.state_bits,
            f"{where}: fraction_bits {self.fraction_bits} is outside 0..{self.state_bits - 1}",
        )
        for name in ("du", "dv"):
            check(0 <= getattr(self, name) <= DECAY_ONE, f"{where}: {name} {getattr(self, name)} is outside 0..4096")
        for name in ("threshold", "reset_amount"):
            check(
                0 <= getattr(self, name) <= self.v_max,
                f"{where}: {name} {getattr(self, name)} is outside 0..{self.v_max}",
            )
        check(abs(self.v_init) <= self.v_max, f"{where}: v_init {self.v_init} is outside ±{self.v_max}")
        if self.reset != "subtract":
            check(
                self.reset_amount == 0,
                f"{where}: reset_amount {self.reset_amount} with reset {self.reset!r}; it belongs to 'subtract'",
            )
        self._check_payload(where)
        bias = as_integers(f"{where}: bias", self.bias, -self.v_max, self.v_max)
        try:
            np.broadcast_to(bias, shape)
        except ValueError:
            raise DescriptionError(f"{where}: bias {bias.shape} does not broadcast to {shape}") from None
        object.__setattr__(self, "bias", freeze(bias))
        if self.scale is not None:
            object.__setattr__(self, "scale", float(self.scale))
            check(math.isfinite(self.scale) and self.scale > 0, f"{where}: scale {self.scale} is not a positive number")

    def _check_payload(self, where: str) -> None:
        m, g = self.payload_max, self.payload_shift
        if m == 1:
            check(g == 0, f"{where}: payload_shift {g} without graded spikes; give payload_max above 1, or 0 here")
            return
        check(
            self.spikes,
            f"{where}: payload_max {m} with reset 'none', which sends nothing; use 'subtract' with "
            "reset_amount 0 to send without a reset",
        )
        check(1 < m < MAX_PAYLOAD, f"{where}: payload_max {m} is outside 1..{MAX_PAYLOAD - 1} (24 bits with sign)")
        check(0 <= g < self.state_bits, f"{where}: payload_shift {g} is outside 0..{self.state_bits - 1}")
        check(
            m <= self.v_max >> g,
            f"{where}: payload_max {m} is out of the membrane's reach, {self.v_max} >> {g} = {self.v_max >> g}; "
            "lower payload_max or payload_shift",
        )
        check(
            m * self.reset_amount <= self.v_max,
            f"{where}: a spike of {m} subtracts {m} x {self.reset_amount}, more than {self.v_max}; lower payload_max "
            "or reset_amount",
        )

    @property
    def size(self) -> int:
        """Number of neurons."""
        return math.prod(self.shape)

    @property
    def graded(self) -> bool:
        """Whether spikes carry integers beyond 1."""
        return self.payload_max > 1

    @property
    def spike_dtype(self) -> type[np.uint8 | np.int32]:
        """Type in which what it sends is recorded: uint8 for 0 and 1, int32 for graded spikes."""
        return np.int32 if self.graded else np.uint8

    @property
    def v_max(self) -> int:
        """Largest magnitude of the membrane: ``2^(state_bits - 1) - 1``."""
        return 2 ** (self.state_bits - 1) - 1

    @property
    def spikes(self) -> bool:
        """Whether the population sends spikes, plain or graded (reset is not "none")."""
        return self.reset != "none"


@dataclass(frozen=True, eq=False, kw_only=True)
class Connection:
    """Synapses from one population (or the input) to another.

    Parameters
    ----------
    source, target : str
        Population names; the source may be ``"input"``.
    synapse : Dense, Conv2d or Scale
    weight_exponent : int
        ``e``: every weight counts ``2^e``. May be negative as long as ``e + fraction_bits >= 0``.
    weight_bits : int
        Declared width of the weights, 2..8 bits with sign.
    delay : int
        Axonal delay in steps, 0..62; at least 1 on every cycle.
    name : str
        ``"source->target"`` unless given (parallel connections need names of their own).
    """

    source: str
    target: str
    synapse: Synapse
    weight_exponent: int = 0
    weight_bits: int = 8
    delay: int = 0
    name: str = ""

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", f"{self.source}->{self.target}")
        where = f"connection {self.name!r}"
        check(
            isinstance(self.name, str) and self.name.isprintable() and len(self.name) <= 500,
            f"{where}: a name is printable text of at most 500 characters",
        )
        check(
            isinstance(self.synapse, (Dense, Conv2d, Scale)), f"{where}: {type(self.synapse).__name__} is not a synapse"
        )
        for name in ("weight_exponent", "weight_bits", "delay"):
            object.__setattr__(self, name, as_int(f"{where}: {name}", getattr(self, name)))
        check(-32 <= self.weight_exponent <= 24, f"{where}: weight_exponent {self.weight_exponent} is outside -32..24")
        check(0 <= self.delay <= 62, f"{where}: delay {self.delay} is outside 0..62")
        check(2 <= self.weight_bits <= 8, f"{where}: weight_bits {self.weight_bits} is outside 2..8")
        low, high = int(self.synapse.weight.min()), int(self.synapse.weight.max())
        limit = 2 ** (self.weight_bits - 1)
        check(
            -limit <= low and high < limit, f"{where}: weights {low}..{high} do not fit {self.weight_bits} signed bits"
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class Input:
    """What the network is fed: integers at every step.

    A real value ``x`` becomes ``clip(round_half_even((x - zero) / scale), low, high)``; normalization by mean
    and standard deviation is folded into ``zero`` and ``scale``. ``low = 0, high = 1`` is a spike input.

    Parameters
    ----------
    shape : tuple of int
    low, high : int
        Range of the integers.
    scale, zero : float64, broadcastable to ``shape``
    """

    shape: Shape
    low: int = 0
    high: int = 1
    scale: npt.NDArray[np.float64] = field(default_factory=lambda: np.ones((1,)))
    zero: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros((1,)))

    def __post_init__(self) -> None:
        shape = tuple(as_int("input: shape", d) for d in self.shape)
        check_shape("input", shape)
        object.__setattr__(self, "shape", shape)
        for name in ("low", "high"):
            object.__setattr__(self, name, as_int(f"input: {name}", getattr(self, name)))
        check(
            -MAX_PAYLOAD <= self.low < self.high < MAX_PAYLOAD,
            f"input: range {self.low}..{self.high} is empty or wider than 24 bits",
        )
        for name in ("scale", "zero"):
            value = np.atleast_1d(np.asarray(getattr(self, name), np.float64))
            check(bool(np.isfinite(value).all()), f"input: {name} is not finite")
            try:
                np.broadcast_to(value, shape)
            except ValueError:
                raise DescriptionError(f"input: {name} {value.shape} does not broadcast to {shape}") from None
            object.__setattr__(self, name, freeze(value))
        check(bool((self.scale > 0).all()), "input: scale is not positive")

    @property
    def binary(self) -> bool:
        """Whether the input is spikes (0/1)."""
        return self.low == 0 and self.high == 1

    def encode(self, x: npt.ArrayLike) -> IntArray:
        """Integers for ``x``: real values are quantized, integer arrays are taken as they are.

        Parameters
        ----------
        x : [B, *shape] (the same values at every step) or [T, B, *shape]
            Floating point: real values. Integer or bool: values in ``low..high`` already.

        Raises
        ------
        DataError
            If the shape does not fit, a value is not finite, or an integer is out of range.
        """
        x = np.asarray(x)
        n = len(self.shape)
        if x.ndim not in (n + 1, n + 2) or x.shape[x.ndim - n :] != self.shape:
            raise DataError(
                f"input of shape {x.shape} does not fit the network: give [samples, *{self.shape}] "
                f"or [steps, samples, *{self.shape}]"
            )
        if x.dtype.kind in "biu":
            if x.size and not (self.low <= int(x.min()) and int(x.max()) <= self.high):
                raise DataError(
                    f"integer input {int(x.min())}..{int(x.max())} is outside the network's {self.low}..{self.high}; "
                    "give floating-point values to have them quantized"
                )
            return x.astype(np.int64)
        if x.dtype.kind != "f":
            raise DataError(f"input has dtype {x.dtype}; give integers or floating-point numbers")
        if not np.isfinite(x).all():
            raise DataError("input has values that are not finite (nan or infinity)")
        return np.clip(np.rint((x.astype(np.float64) - self.zero) / self.scale), self.low, self.high).astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class Readout:
    """How class scores are read from one population.

    Parameters
    ----------
    population : str
    kind : {"count", "weighted_count", "membrane"}
        Spike counts; spike counts weighted by ``(1 - decay/4096)^(T - n)`` (DSR-LIF's weighted firing rate, in
        integers, see :func:`lapilli.recording.scores`); the membrane of a population with reset "none" after the
        last step. A graded spike counts as much as it carries.
    decay : int
        Only for "weighted_count": the decay in 1/4096 per step.
    """

    population: str
    kind: ReadoutKind = "count"
    decay: int = 0

    def __post_init__(self) -> None:
        check(
            self.kind in ("count", "weighted_count", "membrane"),
            f"readout: kind {self.kind!r} is not count, weighted_count or membrane",
        )
        check(0 <= self.decay <= DECAY_ONE, f"readout: decay {self.decay} is outside 0..4096")
        check(
            self.decay == 0 or self.kind == "weighted_count",
            f"readout: decay {self.decay} belongs to weighted_count, not {self.kind}",
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class Network:
    """A spiking network of integers with one exact meaning (see the module's text).

    Parameters
    ----------
    name : str
    steps : int
        ``T``, the length of a sample's window.
    input : Input
    populations : sequence of Population
    connections : sequence of Connection
    readout : Readout or None
    labels : sequence of str
        Class names in the order of the readout's scores; may be empty.
    metadata : mapping
        What a reader needs to trust the network (how it was trained, accuracies measured); JSON values only.

    Raises
    ------
    DescriptionError
        If names clash or are unknown, shapes do not fit, or a cycle has no delay.
    """

    name: str
    steps: int
    input: Input
    populations: tuple[Population, ...]
    connections: tuple[Connection, ...]
    readout: Readout | None = None
    labels: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check(
            isinstance(self.name, str) and len(self.name) <= 200,
            "network: the name is not a string of at most 200 characters",
        )
        object.__setattr__(self, "steps", as_int("network: steps", self.steps))
        check(1 <= self.steps <= MAX_STEPS, f"network: steps {self.steps} is outside 1..{MAX_STEPS}")
        for name in ("populations", "connections", "labels"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        try:
            object.__setattr__(self, "metadata", json.loads(json.dumps(dict(self.metadata), allow_nan=False)))
        except (TypeError, ValueError) as error:
            raise DescriptionError(f"network: metadata is not JSON ({error})") from None
        self._check_names()
        self._check_connections()
        self._check_readout()
        _ = self.order

    def _check_names(self) -> None:
        check(len(self.populations) >= 1, "network: there is no population")
        for what, names in (
            ("population", [p.name for p in self.populations]),
            ("connection", [c.name for c in self.connections]),
        ):
            twice = sorted({n for n in names if names.count(n) > 1}) if len(set(names)) < len(names) else []
            check(not twice, f"network: two {what}s are named {twice[0] if twice else ''!r}; give each its own name")

    def _check_connections(self) -> None:
        for c in self.connections:
            where = f"connection {c.name!r}"
            check(c.source == INPUT or c.source in self._by_name, f"{where}: there is no population {c.source!r}")
            check(c.target in self._by_name, f"{where}: there is no population {c.target!r}")
            target = self._by_name[c.target]
            check(
                c.source == INPUT or self._by_name[c.source].spikes,
                f"{where}: {c.source!r} has reset 'none' and sends no spikes",
            )
            try:
                out = c.synapse.output_size(self.shape_of(c.source))
            except DescriptionError as error:
                raise DescriptionError(f"{where}: {error}") from None
            fits = target.size == out if isinstance(out, int) else target.shape == out
            check(fits, f"{where}: produces {out}, but {c.target!r} has shape {target.shape}")
            check(
                c.weight_exponent + target.fraction_bits >= 0,
                f"{where}: weight_exponent {c.weight_exponent} needs more than {target.fraction_bits} fraction bits "
                f"of {c.target!r}",
            )

    def _check_readout(self) -> None:
        if self.readout is None:
            return
        check(self.readout.population in self._by_name, f"readout: there is no population {self.readout.population!r}")
        population = self._by_name[self.readout.population]
        check(
            population.spikes == (self.readout.kind != "membrane"),
            f"readout: {self.readout.kind} of {population.name!r}, which has reset {population.reset!r}; counts need "
            "spikes, and a membrane is read where there are none (reset 'none')",
        )
        check(
            not self.labels or len(self.labels) == population.size,
            f"network: {len(self.labels)} labels for {population.size} readout neurons",
        )
        check(all(isinstance(label, str) for label in self.labels), "network: labels are not strings")

    @cached_property
    def _by_name(self) -> dict[str, Population]:
        return {p.name: p for p in self.populations}

    def _topological(self, connections: Iterable[Connection]) -> list[str]:
        """Names of the populations, sources first; those on or behind a cycle of these connections are left out."""
        waiting = {p.name: 0 for p in self.populations}
        followers: dict[str, list[str]] = {p.name: [] for p in self.populations}
        for c in connections:
            if c.source != INPUT:
                waiting[c.target] += 1
                followers[c.source].append(c.target)
        ready = [name for name, n in waiting.items() if n == 0]
        for name in ready:  # grows while it is walked
            for follower in followers[name]:
                waiting[follower] -= 1
                if waiting[follower] == 0:
                    ready.append(follower)
        return ready

    @cached_property
    def order(self) -> tuple[Population, ...]:
        """Populations in topological order of the connections without delay."""
        names = self._topological(c for c in self.connections if c.delay == 0)
        stuck = sorted(self._by_name.keys() - set(names))
        check(
            not stuck,
            f"network: a cycle without delay runs through {', '.join(stuck[:4])}; give a connection delay >= 1",
        )
        return tuple(self._by_name[name] for name in names)

    @cached_property
    def acyclic(self) -> bool:
        """Whether the connections, delayed ones included, form no cycle."""
        return len(self._topological(self.connections)) == len(self.populations)

    @cached_property
    def stages(self) -> tuple[tuple[Population, ...], ...]:
        """Populations in topological order of all connections, delayed ones too; those of a cycle are one stage.

        Within a stage they are in the :attr:`order` of its connections without delay.
        """
        if self.acyclic:
            return tuple((self._by_name[name],) for name in self._topological(self.connections))
        sources = {p.name: {c.source for c in self.incoming(p.name)} - {INPUT} for p in self.populations}
        before: dict[str, set[str]] = {}  # populations with a path to this one, itself included
        for name in sources:
            waiting, before[name] = [name], {name}
            while waiting:
                found = sources[waiting.pop()] - before[name]
                before[name] |= found
                waiting += found
        # What lies behind a cycle has more before it than the cycle; all populations of a cycle have the same.
        cycles: dict[frozenset[str], list[Population]] = {}
        for p in sorted(self.order, key=lambda p: len(before[p.name])):
            cycles.setdefault(frozenset(q for q in before[p.name] if p.name in before[q]), []).append(p)
        return tuple(tuple(cycle) for cycle in cycles.values())

    @cached_property
    def flow(self) -> tuple[Population, ...]:
        """Populations of all :attr:`stages`, in that order."""
        return tuple(p for stage in self.stages for p in stage)

    @cached_property
    def strides(self) -> tuple[int, ...]:
        """Of each of the :attr:`stages`: steps that a population can take before it needs its own or a later spike."""

        def stride(stage: tuple[Population, ...]) -> int:
            place = {p.name: i for i, p in enumerate(stage)}
            inside = (c for c in self.connections if c.target in place)
            back = (c.delay for c in inside if place.get(c.source, -1) >= place[c.target])
            return min(back, default=self.steps)

        return tuple(stride(stage) for stage in self.stages)

    @cached_property
    def steps_at_once(self) -> int:
        """Steps that a population can take before it needs a spike of itself or of one later in :attr:`flow`."""
        return min(self.strides, default=self.steps)

    def population(self, name: str) -> Population:
        """The population of that name.

        Raises
        ------
        DescriptionError
            If there is none.
        """
        if name not in self._by_name:
            raise DescriptionError(
                f"network {self.name!r} has no population {name!r}; it has {', '.join(self._by_name)}"
            )
        return self._by_name[name]

    def shape_of(self, name: str) -> Shape:
        """Shape of a population, or of the input."""
        return self.input.shape if name == INPUT else self.population(name).shape

    def incoming(self, name: str) -> Iterator[Connection]:
        """Connections into a population."""
        return (c for c in self.connections if c.target == name)

    def outgoing(self, name: str) -> Iterator[Connection]:
        """Connections out of a population or the input."""
        return (c for c in self.connections if c.source == name)

    def sent_range(self, name: str) -> tuple[int, int]:
        """Smallest and largest integer that a neuron of a population, or the input, can send in one step."""
        return (self.input.low, self.input.high) if name == INPUT else (0, self.population(name).payload_max)

    def sends_graded(self, name: str) -> bool:
        """Whether a population, or the input, sends integers other than 0 and 1."""
        return self.sent_range(name) != (0, 1)

    @property
    def format_version(self) -> int:
        """The lowest version of the file format that can say this network."""
        return 2 if any(p.graded for p in self.populations) else 1

    def tensors(self) -> dict[str, npt.NDArray[Any]]:
        """Every array of the description under a unique, stable name."""
        arrays: dict[str, npt.NDArray[Any]] = {"input/scale": self.input.scale, "input/zero": self.input.zero}
        arrays |= {f"{p.name}/bias": p.bias for p in self.populations}
        arrays |= {f"{c.name}/weight": c.synapse.weight for c in self.connections}
        return arrays

    def structure(self) -> dict[str, Any]:
        """Everything but the arrays and the metadata, as JSON values (see :func:`from_structure`)."""

        def plain(item: Any, leave_out: tuple[str, ...]) -> dict[str, Any]:
            values = {f.name: getattr(item, f.name) for f in fields(item) if f.name not in leave_out}
            return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

        plain_spikes = ("bias", "payload_max", "payload_shift")  # version 1 does not know payloads
        return {
            "format_version": self.format_version,
            "name": self.name,
            "steps": self.steps,
            "input": plain(self.input, ("scale", "zero")),
            "populations": [plain(p, ("bias",) if p.graded else plain_spikes) for p in self.populations],
            "connections": [
                plain(c, ("synapse",)) | {"synapse": {"kind": c.synapse.kind} | plain(c.synapse, ("weight",))}
                for c in self.connections
            ],
            "readout": plain(self.readout, ()) if self.readout else None,
            "labels": list(self.labels),
        }

    def digest(self) -> str:
        """SHA-256 over structure and arrays, metadata left out: two networks with equal digests behave equally."""
        sha = hashlib.sha256(json.dumps(self.structure(), sort_keys=True).encode())
        for name, array in sorted(self.tensors().items()):
            little_endian = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
            sha.update(f"\0{name}\0{array.dtype.kind}{array.dtype.itemsize}{array.shape}\0".encode())
            sha.update(little_endian.data)
        return sha.hexdigest()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Network):
            return NotImplemented
        return self.digest() == other.digest() and self.metadata == other.metadata

    def __hash__(self) -> int:
        return hash(self.digest())


def from_structure(
    structure: Mapping[str, Any], tensors: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, Any] | None = None
) -> Network:
    """Rebuild a network from :meth:`Network.structure` and :meth:`Network.tensors`.

    Raises
    ------
    DescriptionError
        If the version is unknown, a key is missing or unknown, or an array is absent or left over.
    """
    version = structure.get("format_version")
    check(
        version in FORMAT_VERSIONS,
        f"network: format version {version!r}; this lapilli reads {' and '.join(map(str, FORMAT_VERSIONS))}",
    )
    left = dict(tensors)

    def take(name: str) -> npt.NDArray[Any]:
        if name not in left:
            raise DescriptionError(f"network: the array {name!r} is missing")
        return left.pop(name)

    try:
        populations = tuple(
            Population(**{**p, "shape": tuple(p["shape"])}, bias=take(f"{p['name']}/bias"))
            for p in structure["populations"]
        )
        connections = []
        for c in structure["connections"]:
            options: dict[str, Any] = dict(c["synapse"])
            kind = options.pop("kind")
            check(kind in SYNAPSE_KINDS, f"connection {c['name']!r}: unknown synapse kind {kind!r}")
            synapse = SYNAPSE_KINDS[kind](take(f"{c['name']}/weight"), **options)
            connections.append(Connection(**{**c, "synapse": synapse}))
        network = Network(
            name=structure["name"],
            steps=structure["steps"],
            input=Input(
                **{**structure["input"], "shape": tuple(structure["input"]["shape"])},
                scale=take("input/scale"),
                zero=take("input/zero"),
            ),
            populations=populations,
            connections=tuple(connections),
            readout=Readout(**structure["readout"]) if structure["readout"] else None,
            labels=tuple(structure["labels"]),
            metadata=metadata or {},
        )
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise DescriptionError(f"network: the structure is malformed ({type(error).__name__}: {error})") from None
    check(not left, f"network: unknown arrays {', '.join(sorted(left)[:4])}")
    check(
        version == network.format_version,
        f"network: format version {version}, but what it holds is of version {network.format_version}: graded spikes "
        "came with version 2, which a network without them does not use",
    )
    return network
