"""What is in a network: shapes, bits, parameters, synapses and worst-case bounds, as data and as tables.

Every number is counted from the description; the classes below say what it counts.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arithmetic import fan_out
from ..bounds import population_bounds
from ..network import Connection, Conv2d, Network, Population, Shape

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

Range = tuple[int, int]


@dataclass(frozen=True)
class PopulationSummary:
    """One population. Thresholds, biases and bounds are in state units (see :class:`lapilli.network.Population`).

    Attributes
    ----------
    drive, current, membrane : (int, int)
        Smallest and largest possible value within one window, before the current wraps and the membrane saturates
        (:func:`lapilli.bounds.population_bounds`; safe, not always tight). None where there is no bound.
    """

    name: str
    shape: Shape
    neurons: int
    reset: str
    threshold: int
    reset_amount: int
    du: int
    dv: int
    bias: Range
    v_init: int
    payload_max: int
    payload_shift: int
    fraction_bits: int
    state_bits: int
    scale: float | None
    drive: Range
    current: Range | None
    membrane: Range | None
    can_wrap: bool
    can_saturate: bool


@dataclass(frozen=True)
class ConnectionSummary:
    """One connection.

    Attributes
    ----------
    parameters, nonzero : int
        Stored weights (a convolution's are shared), and those that are not zero.
    synapses : int
        Non-zero weights after unrolling, padding left out: what one spike of every source neuron would cost in
        synaptic operations.
    memory_bits : int
        ``parameters x weight_bits``: the weights alone, as stored here; a chip's own figure is in its deployment plan.
    """

    name: str
    source: str
    target: str
    kind: str
    weight_shape: Shape
    stride: Range | None
    padding: Range | None
    dilation: Range | None
    groups: int | None
    weight_bits: int
    weight_exponent: int
    weight: Range
    parameters: int
    nonzero: int
    synapses: int
    delay: int
    memory_bits: int


@dataclass(frozen=True)
class Totals:
    """Sums over the network; ``parameters`` counts stored weights, and the biases of populations that have one."""

    populations: int
    connections: int
    neurons: int
    parameters: int
    nonzero: int
    synapses: int
    memory_bits: int


@dataclass(frozen=True)
class InputSummary:
    """The input: its shape, the integers it takes, and the real values they stand for (``x = zero + scale n``)."""

    shape: Shape
    low: int
    high: int
    scale: tuple[float, float]
    zero: tuple[float, float]


@dataclass(frozen=True)
class ReadoutSummary:
    """How class scores are read."""

    population: str
    kind: str
    decay: int


@dataclass(frozen=True)
class Summary:
    """A network in numbers; a tree of plain values."""

    name: str
    digest: str
    format_version: int
    steps: int
    input: InputSummary
    populations: tuple[PopulationSummary, ...]
    connections: tuple[ConnectionSummary, ...]
    totals: Totals
    readout: ReadoutSummary | None
    labels: tuple[str, ...]
    metadata: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """JSON values: dicts, lists, numbers, strings."""
        return _plain(asdict(self))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def summarize(network: Network) -> Summary:
    """Count a network's parts; see :class:`Summary`."""
    populations = tuple(_population(network, p) for p in network.populations)
    connections = tuple(_connection(network, c) for c in network.connections)
    i, r = network.input, network.readout
    return Summary(
        name=network.name,
        digest=network.digest(),
        format_version=network.format_version,
        steps=network.steps,
        input=InputSummary(
            i.shape,
            i.low,
            i.high,
            (float(i.scale.min()), float(i.scale.max())),
            (float(i.zero.min()) + 0.0, float(i.zero.max()) + 0.0),  # no negative zero is shown
        ),
        populations=populations,
        connections=connections,
        totals=Totals(
            populations=len(populations),
            connections=len(connections),
            neurons=sum(p.neurons for p in populations),
            parameters=sum(c.parameters for c in connections)
            + sum(p.bias.size for p in network.populations if p.bias.any()),
            nonzero=sum(c.nonzero for c in connections),
            synapses=sum(c.synapses for c in connections),
            memory_bits=sum(c.memory_bits for c in connections),
        ),
        readout=ReadoutSummary(r.population, r.kind, r.decay) if r else None,
        labels=network.labels,
        metadata=dict(network.metadata),
    )


def _population(network: Network, p: Population) -> PopulationSummary:
    bounds = population_bounds(network, p)
    return PopulationSummary(
        name=p.name,
        shape=p.shape,
        neurons=p.size,
        reset=p.reset,
        threshold=p.threshold,
        reset_amount=p.reset_amount,
        du=p.du,
        dv=p.dv,
        bias=(int(p.bias.min()), int(p.bias.max())),
        v_init=p.v_init,
        payload_max=p.payload_max,
        payload_shift=p.payload_shift,
        fraction_bits=p.fraction_bits,
        state_bits=p.state_bits,
        scale=p.scale,
        drive=bounds.drive,
        current=bounds.current,
        membrane=bounds.membrane,
        can_wrap=bounds.can_wrap,
        can_saturate=bounds.can_saturate,
    )


def _connection(network: Network, c: Connection) -> ConnectionSummary:
    weight = c.synapse.weight
    conv = c.synapse if isinstance(c.synapse, Conv2d) else None
    synapses = fan_out(c.synapse, network.shape_of(c.source), network.shape_of(c.target))
    return ConnectionSummary(
        name=c.name,
        source=c.source,
        target=c.target,
        kind=c.synapse.kind,
        weight_shape=weight.shape,
        stride=conv.stride if conv else None,
        padding=conv.padding if conv else None,
        dilation=conv.dilation if conv else None,
        groups=conv.groups if conv else None,
        weight_bits=c.weight_bits,
        weight_exponent=c.weight_exponent,
        weight=(int(weight.min()), int(weight.max())),
        parameters=weight.size,
        nonzero=int(np.count_nonzero(weight)),
        synapses=int(synapses.sum()),
        delay=c.delay,
        memory_bits=weight.size * c.weight_bits,
    )


def render(summary: Summary) -> RenderableType:
    """Tables for a terminal of 100 columns or more (a rich renderable).

    "bits used" is the width with sign that the current and the membrane need in the worst case of any input.
    """
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    s = summary
    facts = [
        ("network", f"{s.name}   {s.steps} steps, format {s.format_version}"),
        ("digest", f"sha256 {s.digest}"),
        ("input", f"{_shape(s.input.shape)}   integers {s.input.low}..{s.input.high}, {_encoding(s.input)}"),
        ("readout", f"{s.readout.kind} of {s.readout.population}" if s.readout else "none"),
    ]
    if s.readout and s.readout.decay:
        facts[-1] = ("readout", f"{facts[-1][1]}, decay {s.readout.decay}/4096 per step")
    if s.labels:
        shown = ", ".join(s.labels[:12]) + (f", ... ({len(s.labels)})" if len(s.labels) > 12 else "")
        facts.append(("labels", shown))
    facts += [(key, _short(value)) for key, value in s.metadata.items()]
    width = max(len(key) for key, _ in facts) + 2
    head = Text("\n").join(
        Text.assemble((_printable(f"{key:<{width}}"), "bold"), _printable(value)) for key, value in facts
    )
    t = s.totals
    total = Text(
        f"{t.neurons:,} neurons, {t.parameters:,} parameters ({t.nonzero:,} weights not zero), "
        f"{t.synapses:,} synapses, {_bits(t.memory_bits)} of weights"
    )
    parts: list[RenderableType] = [
        head,
        "",
        _populations_table(s),
        "",
        _connections_table(s),
        "",
        total,
        "",
        _overflow_text(s),
    ]
    return Padding(Group(*parts), (0, 1))


def _table(title: str, left: tuple[str, ...], columns: tuple[str, ...]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column in left else "right", overflow="fold")
    return table


def _populations_table(s: Summary) -> RenderableType:
    graded = ("payload",) if any(p.payload_max > 1 for p in s.populations) else ()
    columns = ("name", "shape", "neurons", "reset", "threshold", *graded, "du", "dv", "bias", "bits used")
    table = _table("populations, in state units", ("name", "shape", "reset"), columns)
    for p in s.populations:
        table.add_row(
            p.name,
            _shape(p.shape),
            f"{p.neurons:,}",
            p.reset if p.reset != "subtract" or p.reset_amount == p.threshold else f"subtract {p.reset_amount}",
            "-" if p.reset == "none" else str(p.threshold),
            *([_payload(p)] if graded else []),
            str(p.du),
            str(p.dv),
            _range(p.bias),
            f"{_bits_used(p)} of {p.state_bits}",
        )
    return table


def _connections_table(s: Summary) -> RenderableType:
    delays = ("delay",) if any(c.delay for c in s.connections) else ()
    columns = ("name", "kind", "weights", "bits", "values", "params", "synapses", "memory", *delays)
    table = _table("connections", ("name", "kind", "weights"), columns)
    for c in s.connections:
        table.add_row(
            c.name,
            _kind(c),
            _shape(c.weight_shape),
            f"{c.weight_bits}" + (f" x2^{c.weight_exponent}" if c.weight_exponent else ""),
            _range(c.weight),
            f"{c.parameters:,}",
            f"{c.synapses:,}",
            _bits(c.memory_bits),
            *([str(c.delay)] if delays else []),
        )
    return table


def _overflow_text(s: Summary) -> RenderableType:
    from rich.text import Text

    wrap = [p.name for p in s.populations if p.can_wrap]
    saturate = [p.name for p in s.populations if p.can_saturate]
    if not wrap and not saturate:
        return Text("no overflow possible: no current can wrap, no membrane can saturate (worst case of any input)")
    lines = [
        f"{what} in the worst case of any input: {', '.join(names)}"
        for what, names in (("the current may wrap", wrap), ("the membrane may saturate", saturate))
        if names
    ]
    return Text("\n".join([*lines, "the simulator counts such events on real inputs (lapilli sim)"]))


def _printable(text: str) -> str:
    """A file's names and metadata may hold anything, escape sequences too."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _shape(shape: Shape) -> str:
    return "x".join(str(d) for d in shape)


def _range(bounds: Range) -> str:
    return str(bounds[0]) if bounds[0] == bounds[1] else f"{bounds[0]}..{bounds[1]}"


def _payload(p: PopulationSummary) -> str:
    if p.payload_max == 1:
        return "-" if p.reset == "none" else "1"
    return f"v/2^{p.payload_shift}, 1..{p.payload_max}"


def _bits_used(p: PopulationSummary) -> str:
    """Width with sign that the worst case needs, or "?" where there is no bound."""
    if p.current is None or p.membrane is None:
        return "?"
    return str(1 + max(abs(bound) for bound in (*p.current, *p.membrane)).bit_length())


def _bits(bits: int) -> str:
    return f"{bits} bit" if bits < 8192 else f"{bits / 8192:,.1f} KiB"


def _kind(c: ConnectionSummary) -> str:
    words = [c.kind]
    for name, pair, usual in (("s", c.stride, 1), ("p", c.padding, 0), ("d", c.dilation, 1)):
        if pair is not None and pair != (usual, usual):
            words.append(f"{name}{pair[0]}" if pair[0] == pair[1] else f"{name}{pair[0]},{pair[1]}")
    if c.groups is not None and c.groups != 1:
        words.append(f"g{c.groups}")
    return " ".join(words)


def _encoding(i: InputSummary) -> str:
    def one(name: str, bounds: tuple[float, float]) -> str:
        return f"{name} {bounds[0]:.6g}" if bounds[0] == bounds[1] else f"{name} {bounds[0]:.6g} to {bounds[1]:.6g}"

    return f"{one('scale', i.scale)}, {one('zero', i.zero)}"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 200 else text[:197] + "..."
