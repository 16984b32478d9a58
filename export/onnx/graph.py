"""Network description to ONNX graph.

Two layouts, the same meaning:

- acyclic networks: every value has all steps at once, ``[T, B, *shape]``; each population is one node of a function
  with the Scan over time inside (see :mod:`.neurons`);
- cyclic networks: one Scan over time whose body is the whole network at one step, ``[B, *shape]``.

Connections are in :mod:`.synapses`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from ... import __version__
from ...network import INPUT, Connection, Network, Population
from ...recording import count_weights
from .external import External
from .neurons import DOMAIN, DOMAIN_VERSION, OPSET, Kind, attributes, function_name, neuron_function
from .synapses import Digit, Nodes, Sent, Synapses, split

IR_VERSION = 8  # the first with functions in a model

_ABOUT = (
    "A spiking network of integers, written by lapilli. Feed 'input' int32 [frames, batch, ...] with one frame "
    "(the same values at every step) or one frame per step; spikes come out per population, class scores in 'scores'. "
    "Nodes of the domain ai.lapilli are populations of neurons; their functions are in this file. "
    "The metadata entry 'lapilli' holds the description that this graph was written from."
)

Dims: TypeAlias = tuple[int | str, ...]
Incoming: TypeAlias = dict[str, list[Connection]]


def build_model(
    network: Network,
    trace: Collection[str] = (),
    producer_version: str = __version__,
    external: External | None = None,
) -> onnx.ModelProto:
    """The ONNX model of a description; the same network gives the same model.

    Parameters
    ----------
    network : Network
    trace : names of populations
        Whose drive, current and membrane become outputs at every step (for executors; a file has none).
    producer_version : str
        Recorded in the model.
    external : External, optional
        The data file that holds the large tensors; the model only says where they are.

    Raises
    ------
    UnsupportedError
        If a convolution's sums may exceed 32 bits.
    DescriptionError
        If ``trace`` names a population that does not exist.
    """
    trace = {network.population(name).name for name in trace}
    incoming: Incoming = {p.name: [] for p in network.populations}
    for c in network.connections:
        incoming[c.target].append(c)
    order = _order(network, incoming)
    nodes = (
        _step_by_step(network, incoming, trace) if order is None else _layer_by_layer(network, incoming, order, trace)
    )
    _scores(nodes, network)
    used = {(Kind.of(p), order is not None and p.name in trace) for p in network.populations}
    graph = helper.make_graph(
        nodes.nodes,
        _ascii(network.name) or "network",
        [helper.make_tensor_value_info("input", TensorProto.INT32, (_frames(network), "batch", *network.input.shape))],
        [helper.make_tensor_value_info(name, *what) for name, what in outputs(network, trace).items()],
        initializer=[_initializer(name, array, external) for name, array in initializers(network)],
        # Shapes for viewers: ONNX's own inference does not look into functions.
        value_info=[
            helper.make_tensor_value_info(f"{p.name}/drive", TensorProto.INT64, (network.steps, "batch", *p.shape))
            for p in network.populations
            if order is not None and p.name not in trace
        ],
    )
    return helper.make_model(
        graph,
        functions=[neuron_function(kind, step=order is None, traced=traced) for kind, traced in sorted(used)],
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, DOMAIN_VERSION)],
        ir_version=IR_VERSION,
        producer_name="lapilli",
        producer_version=producer_version,
        domain=DOMAIN,
        model_version=network.format_version,
        doc_string=_ABOUT,
    )


def outputs(network: Network, trace: Collection[str] = ()) -> dict[str, tuple[int, Dims]]:
    """Outputs of the model, in order: name to ONNX element type and shape."""
    found: dict[str, tuple[int, Dims]] = {}
    for p in network.populations:
        at_every_step = (network.steps, "batch", *p.shape)
        if p.spikes:
            found[f"{p.name}/spikes"] = (_sent_type(p), at_every_step)
        else:
            found[f"{p.name}/v"] = (TensorProto.INT64, ("batch", *p.shape))
        if p.name in trace:
            found |= {
                f"{p.name}/{what}": (TensorProto.INT64, at_every_step) for what in ("drive", "u_trace", "v_trace")
            }
    if network.readout is not None:
        found["scores"] = (TensorProto.INT64, ("batch", network.population(network.readout.population).size))
    return found


def _sent_type(p: Population) -> int:
    return TensorProto.INT32 if p.graded else TensorProto.UINT8


def _frames(network: Network) -> int | str:
    return 1 if network.steps == 1 else "frames"


def _ascii(text: str) -> str:
    """Text that any ONNX reader takes (the metadata keep it exactly)."""
    return text.encode("ascii", "backslashreplace").decode()


def initializers(network: Network) -> list[tuple[str, npt.NDArray[Any]]]:
    """Names and values of the model's initializers, in order: all biases, then all weights."""
    biases = [(f"{p.name}/bias", p.bias) for p in network.populations]
    return [*biases, *((f"{c.name}/weight", c.synapse.weight) for c in network.connections)]


def _initializer(name: str, array: npt.NDArray[Any], external: External | None) -> TensorProto:
    kind = {np.dtype(np.int8): TensorProto.INT8, np.dtype(np.int64): TensorProto.INT64}[array.dtype]
    if external is not None and name in external.places:
        where = external.entries(name)
        return TensorProto(
            name=name, data_type=kind, dims=array.shape, data_location=TensorProto.EXTERNAL, external_data=where
        )
    little_endian = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return TensorProto(name=name, data_type=kind, dims=array.shape, raw_data=little_endian.tobytes())


def _order(network: Network, incoming: Incoming) -> list[Population] | None:
    """Populations in an order in which all their sources, delayed ones too, come first; None if there is a cycle."""
    waiting = {name: sum(c.source != INPUT for c in arriving) for name, arriving in incoming.items()}
    followers: dict[str, list[str]] = {name: [] for name in waiting}
    for c in network.connections:
        if c.source != INPUT:
            followers[c.source].append(c.target)
    ready = [name for name, n in waiting.items() if n == 0]
    for name in ready:  # grows while it is walked
        for follower in followers[name]:
            waiting[follower] -= 1
            if waiting[follower] == 0:
                ready.append(follower)
    return [network.population(name) for name in ready] if len(ready) == len(waiting) else None


def _digits(nodes: Nodes, network: Network, c: Connection, value: str, stem: str) -> tuple[Digit, ...]:
    """What a connection carries, in digits; a plain spike is one, as it is."""
    if c.source != INPUT and not network.population(c.source).graded:
        return (Digit(value),)
    return split(nodes, value, stem, *network.sent_range(c.source))


def _clipped_input(nodes: Nodes, network: Network) -> str:
    low, high = (nodes.constant(f"input/{n}", getattr(network.input, n), np.int32) for n in ("low", "high"))
    return nodes.add("Clip", "input/clipped", "input", low, high)


def _repeat(nodes: Nodes, value: str, name: str, steps: int, axes: int) -> str:
    """A value of one frame at every step; a value of all frames as it is."""
    return nodes.add("Expand", name, value, nodes.constant(f"{name}_steps", [steps, *[1] * (axes - 1)]))


def _drive(synapses: Synapses, p: Population, arriving: list[Connection], sent: Callable[..., Sent], name: str) -> str:
    """The sum over incoming connections (at least one), under ``name``."""
    total = ""
    for i, c in enumerate(arriving):
        current = synapses.current(c, sent(c), p, name if len(arriving) == 1 else f"{c.name}/current")
        last = i == len(arriving) - 1
        total = current if i == 0 else synapses.nodes.add("Add", name if last else f"{name}{i}", total, current)
    return total


def _layer_by_layer(network: Network, incoming: Incoming, order: list[Population], trace: Collection[str]) -> Nodes:
    """Nodes of an acyclic network: every value holds all steps."""
    nodes = Nodes()
    T, clipped = network.steps, _clipped_input(nodes, network)
    known: dict[tuple[str, int], Sent] = {}

    def sent(c: Connection) -> Sent:
        """What arrives over a connection; written once per source and delay."""
        if (c.source, c.delay) in known:
            return known[c.source, c.delay]
        shape, fed = network.shape_of(c.source), c.source == INPUT
        value = clipped if fed else f"{c.source}/spikes"
        lead: Dims = (_frames(network) if fed else T, "batch")
        stem = f"{c.source}/x"
        if c.delay:
            stem = f"{c.source}/delayed{c.delay}"
            if fed:
                value, lead = _repeat(nodes, value, f"{stem}_frames", T, len(shape) + 2), (T, "batch")
            pads = nodes.constant(f"{stem}_pads", [c.delay, *[0] * (2 * len(shape) + 3)])
            value = nodes.add("Pad", f"{stem}_padded", value, pads)
            start, end, axis = (
                nodes.constant(f"{stem}_{n}", [at]) for n, at in (("start", 0), ("end", T), ("axis", 0))
            )
            value = nodes.add("Slice", stem, value, start, end, axis)
        return known.setdefault((c.source, c.delay), Sent(value, shape, _digits(nodes, network, c, value, stem), lead))

    for p in order:
        arriving, drive = incoming[p.name], f"{p.name}/drive"
        if not arriving:
            batch = nodes.add("Shape", f"{p.name}/batch", "input", start=1, end=2)
            steps, rest = nodes.constant(f"{p.name}/steps", [T]), nodes.constant(f"{p.name}/shape", p.shape)
            nodes.zeros(drive, nodes.add("Concat", f"{p.name}/drive_shape", steps, batch, rest, axis=0))
        elif T > 1 and all(c.source == INPUT and c.delay == 0 for c in arriving):  # may be a single frame so far
            frame = _drive(Synapses(nodes, nodes), p, arriving, sent, f"{p.name}/drive_frame")
            _repeat(nodes, frame, drive, T, len(p.shape) + 2)
        else:
            _drive(Synapses(nodes, nodes), p, arriving, sent, drive)
        traced = p.name in trace
        results = [*([f"{p.name}/spikes"] if p.spikes else []), f"{p.name}/v"]
        results += [f"{p.name}/u_trace", f"{p.name}/v_trace"] if traced else []
        function = function_name(Kind.of(p), traced=traced)
        nodes.add(function, p.name, drive, f"{p.name}/bias", outputs=results, domain=DOMAIN, **attributes(p))
    return nodes


@dataclass(frozen=True)
class _State:
    """A loop-carried value of the Scan over a cyclic network."""

    stem: str  # "conv1/u": starts as conv1/u_start, is conv1/u_last and conv1/u_now inside, comes out as conv1/u
    kind: int
    dims: Dims

    def inside(self, when: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(f"{self.stem}_{when}", self.kind, self.dims)


def _step_by_step(network: Network, incoming: Incoming, trace: Collection[str]) -> Nodes:
    """Nodes of a cyclic network: one Scan over time.

    A source with delayed connections carries along what it sent in the last ``D`` steps: ``[D, B, *shape]``, oldest
    first, zeros before the window.
    """
    nodes, body = Nodes(), Nodes()
    frames = _repeat(nodes, _clipped_input(nodes, network), "input/frames", network.steps, len(network.input.shape) + 2)
    batch = nodes.add("Shape", "input/batch", "input", start=1, end=2)
    states: list[_State] = []
    seen: dict[str, onnx.ValueInfoProto] = {}  # scan outputs: name outside to value inside
    memory = {c.source: max(d.delay for d in network.outgoing(c.source)) for c in network.connections if c.delay}
    now = {INPUT: "input/frame"} | {p.name: f"{p.name}/s_now" for p in network.populations}

    for source, length in memory.items():
        wide = source == INPUT or network.population(source).graded
        kind, dtype = (TensorProto.INT32, np.int32) if wide else (TensorProto.UINT8, np.uint8)
        shape = network.shape_of(source)
        first, rest = nodes.constant(f"{source}/memory_steps", [length]), nodes.constant(f"{source}/shape", shape)
        nodes.zeros(
            f"{source}/memory_start", nodes.add("Concat", f"{source}/memory_shape", first, batch, rest, axis=0), dtype
        )
        states.append(_State(f"{source}/memory", kind, (length, "batch", *shape)))

    known: dict[tuple[str, int], Sent] = {}

    def sent(c: Connection) -> Sent:
        """What arrives over a connection; written once per source and delay."""
        if (c.source, c.delay) in known:
            return known[c.source, c.delay]
        value, stem = now[c.source], f"{c.source}/x"
        if c.delay:
            stem = f"{c.source}/delayed{c.delay}"
            at = nodes.constant(f"{stem}_at", memory[c.source] - c.delay)
            value = body.add("Gather", stem, f"{c.source}/memory_last", at, axis=0)
        digits = _digits(body, network, c, value, stem)
        return known.setdefault((c.source, c.delay), Sent(value, network.shape_of(c.source), digits, ("batch",)))

    for p in network.order:
        dims: Dims = ("batch", *p.shape)
        states += [_State(f"{p.name}/u", TensorProto.INT64, dims), _State(f"{p.name}/v", TensorProto.INT64, dims)]
        shape = nodes.add("Concat", f"{p.name}/state_shape", batch, nodes.constant(f"{p.name}/size", p.shape), axis=0)
        u_start = nodes.zeros(f"{p.name}/u_start", shape)
        nodes.add("Expand", f"{p.name}/v_start", nodes.constant(f"{p.name}/v_init", p.v_init), shape)
        drive = f"{p.name}/drive_now"
        if incoming[p.name]:
            _drive(Synapses(body, nodes), p, incoming[p.name], sent, drive)
        else:
            body.add("Identity", drive, u_start)  # zeros
        results = [*([now[p.name]] if p.spikes else []), f"{p.name}/u_now", f"{p.name}/v_now"]
        operands = [drive, f"{p.name}/bias", f"{p.name}/u_last", f"{p.name}/v_last"]
        function = function_name(Kind.of(p), step=True)
        body.add(function, p.name, *operands, outputs=results, domain=DOMAIN, **attributes(p, step=True))
        if p.spikes:
            seen[f"{p.name}/spikes"] = helper.make_tensor_value_info(now[p.name], _sent_type(p), dims)
        if p.name in trace:
            seen[f"{p.name}/drive"] = helper.make_tensor_value_info(drive, TensorProto.INT64, dims)
            for what in ("u", "v"):
                copy = body.add("Identity", f"{p.name}/{what}_seen", f"{p.name}/{what}_now")
                seen[f"{p.name}/{what}_trace"] = helper.make_tensor_value_info(copy, TensorProto.INT64, dims)

    for source, length in memory.items():
        ends = {"axis": 0, "from": 1, "to": length}
        axis, start, end = (nodes.constant(f"{source}/memory_{what}", [at]) for what, at in ends.items())
        newest = body.add("Unsqueeze", f"{source}/memory_newest", now[source], axis)
        kept = body.add("Slice", f"{source}/memory_kept", f"{source}/memory_last", start, end, axis)
        body.add("Concat", f"{source}/memory_now", kept, newest, axis=0)

    frame = helper.make_tensor_value_info(now[INPUT], TensorProto.INT32, ("batch", *network.input.shape))
    step = helper.make_graph(
        body.nodes,
        "step",
        [*(s.inside("last") for s in states), frame],
        [*(s.inside("now") for s in states), *seen.values()],
    )
    starts, finals = [f"{s.stem}_start" for s in states], [s.stem for s in states]
    nodes.add("Scan", "network/over_time", *starts, frames, outputs=[*finals, *seen], num_scan_inputs=1, body=step)
    return nodes


def _scores(nodes: Nodes, network: Network) -> None:
    """The readout: int64 ``[B, N]``, equal to :func:`lapilli.recording.scores`."""
    readout = network.readout
    if readout is None:
        return
    p = network.population(readout.population)
    if readout.kind == "membrane":
        flat = nodes.constant("readout/by_neuron_shape", [0, p.size])
        nodes.add("Reshape", "readout/scores", f"{p.name}/v", flat, outputs=["scores"])
        return
    counted = nodes.add("Cast", "readout/counted", f"{p.name}/spikes", to=TensorProto.INT64)
    by_neuron = nodes.constant("readout/by_neuron_shape", [0, 0, p.size])
    counted = nodes.add("Reshape", "readout/by_neuron", counted, by_neuron)
    if readout.kind == "weighted_count":
        weights = nodes.constant("readout/weights", count_weights(network).reshape(-1, 1, 1))
        counted = nodes.add("Mul", "readout/weighted", counted, weights)
    time = nodes.constant("readout/time_axis", [0])
    nodes.add("ReduceSum", "readout/scores", counted, time, outputs=["scores"], keepdims=0)
