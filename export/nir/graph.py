"""A NIR graph as lapilli reads it: subgraphs written out, every parameter checked, every shape known.

The input is the nested dictionary that :func:`.hdf5.read_tree` reads, or that ``nir.NIRGraph.to_dict()`` gives;
the ``nir`` package itself is not needed. Shapes are inferred here, because files from the field leave parameters as
scalars, and because NIR 1.0.8 computes the shape after a convolution with a kernel that is not square wrongly.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...errors import DescriptionError, FileFormatError, UnsupportedError
from ...network import Shape
from ...validation import check_shape
from ..folding import Affine, FloatArray, Pair
from .linear import Gain, Operation, Pooling, Reshape

MAX_NODES = 4096
MAX_VALUES = 2**24  # of one node, padding included
MAX_VALUES_IN_ALL = 2**27
NEURONS = ("IF", "LIF", "CubaLIF", "Threshold")
INTEGRATORS = ("I", "LI", "CubaLI")
_THROUGH = ("Input", "Output", "Delay")
_PARAMETERS = {
    "IF": ("r", "v_threshold"),
    "LIF": ("tau", "r", "v_leak", "v_threshold"),
    "CubaLIF": ("tau_syn", "tau_mem", "r", "v_leak", "v_threshold"),
    "Threshold": ("threshold",),
    "I": ("r",),
    "LI": ("tau", "r", "v_leak"),
    "CubaLI": ("tau_syn", "tau_mem", "r", "v_leak"),
}
_OPTIONAL = {"v_reset": 0.0, "w_in": 1.0}


@dataclass(frozen=True, eq=False)
class Node:
    """One node of a graph without subgraphs; ``values`` is what the file has for it."""

    name: str
    kind: str
    values: Mapping[str, Any]

    @property
    def neuron(self) -> bool:
        """Whether it has a state, or at least spikes."""
        return self.kind in NEURONS or self.kind in INTEGRATORS

    @property
    def where(self) -> str:
        """For messages."""
        return f"NIR node {self.name!r} ({self.kind})"

    def numbers(self, key: str) -> FloatArray:
        """A parameter as float64."""
        if key not in self.values or self.values[key] is None:
            raise FileFormatError(f"{self.where}: has no parameter {key!r}")
        try:
            array = np.asarray(self.values[key], np.float64)
        except (TypeError, ValueError):
            raise FileFormatError(f"{self.where}: {key} is not an array of numbers") from None
        if array.size == 0 or not np.isfinite(array).all():
            raise FileFormatError(f"{self.where}: {key} is empty or not finite")
        return array

    def integers(self, key: str, n: int) -> tuple[int, ...]:
        """A parameter as ``n`` integers; a single one counts for all."""
        array = self.numbers(key).reshape(-1)
        if array.size not in (1, n) or (array != np.rint(array)).any() or (np.abs(array) > 2**31).any():
            raise FileFormatError(f"{self.where}: {key} is not {n} integers")
        return tuple(int(v) for v in np.broadcast_to(array, (n,)))

    def parameters(self, shape: Shape) -> dict[str, FloatArray]:
        """All parameters of a neuron, each with the population's ``shape``."""
        names = [*_PARAMETERS[self.kind], *(k for k in _OPTIONAL if self.values.get(k) is not None)]
        found = {name: self._fitted(name, shape) for name in names}
        return found | {k: np.full(shape, v) for k, v in _OPTIONAL.items() if k not in found}

    def _fitted(self, key: str, shape: Shape) -> FloatArray:
        array = self.numbers(key)
        if array.size == math.prod(shape):
            return array.reshape(shape)
        try:
            return np.broadcast_to(array, shape)
        except ValueError:
            raise FileFormatError(
                f"{self.where}: {key} has shape {array.shape}, the node's input {shape}; they do not fit"
            ) from None


@dataclass(frozen=True, eq=False)
class Graph:
    """Nodes by name, edges between them, and the shape of what each node sends."""

    nodes: dict[str, Node]
    edges: list[tuple[str, str]]
    shapes: dict[str, Shape] = field(default_factory=dict)
    operations: dict[str, Operation] = field(default_factory=dict)  # of the linear nodes

    def sources(self, name: str) -> list[str]:
        """Nodes with an edge to ``name``, in the file's order."""
        return self._incoming.get(name, [])

    @property
    def _incoming(self) -> dict[str, list[str]]:
        if not hasattr(self, "_cache"):
            incoming: dict[str, list[str]] = {}
            for a, b in self.edges:
                incoming.setdefault(b, []).append(a)
            object.__setattr__(self, "_cache", incoming)
        return self._cache  # pyright: ignore[reportAttributeAccessIssue]

    def only(self, kind: str) -> str:
        """The one Input or Output."""
        names = [n.name for n in self.nodes.values() if n.kind == kind]
        if len(names) != 1:
            raise UnsupportedError(
                f"the NIR graph has {len(names)} {kind} nodes ({', '.join(names[:4]) or 'none'}); a description has one"
            )
        return names[0]


def read_graph(tree: Mapping[str, Any]) -> Graph:
    """A NIR graph from its dictionary.

    Raises
    ------
    FileFormatError
        If a node, edge or parameter is missing or malformed, or shapes do not fit.
    UnsupportedError
        If it has a node that a description cannot express.
    """
    nodes: dict[str, Node] = {}
    edges: list[tuple[str, str]] = []
    _write_out(tree, "", nodes, edges)
    graph = Graph(nodes, list(dict.fromkeys(edges)))
    _infer_shapes(graph)
    return graph


def _write_out(tree: Mapping[str, Any], prefix: str, nodes: dict[str, Node], edges: list[tuple[str, str]]) -> None:
    """Nodes and edges of a graph and of its subgraphs, whose nodes become ``subgraph.node``."""
    where = f"NIR graph {prefix[:-1]!r}" if prefix else "NIR graph"
    inside, joined = tree.get("nodes"), tree.get("edges")
    if not isinstance(inside, Mapping) or joined is None:
        raise FileFormatError(f"{where}: has no nodes or no edges")
    enters: dict[str, str] = {}  # by subgraph: its Input and Output
    leaves: dict[str, str] = {}
    for name, values in inside.items():
        kind = values.get("type") if isinstance(values, Mapping) else None
        if not isinstance(kind, str):
            raise FileFormatError(f"{where}: node {name!r} has no type")
        full = prefix + name
        if kind != "NIRGraph":
            if full in nodes or len(nodes) >= MAX_NODES:
                raise FileFormatError(f"{where}: two nodes are named {full!r}, or there are more than {MAX_NODES}")
            inner_end = bool(prefix) and kind in ("Input", "Output")
            nodes[full] = Node(full, "Through" if inner_end else kind, values)
            continue
        _write_out(values, f"{full}.", nodes, edges)
        for end, found in (("Input", enters), ("Output", leaves)):
            ends = [k for k, v in values["nodes"].items() if v.get("type") == end]
            if len(ends) != 1:
                raise UnsupportedError(f"NIR subgraph {full!r}: has {len(ends)} {end} nodes; one is supported")
            found[name] = f"{full}.{ends[0]}"
    for a, b in joined:
        if a not in inside or b not in inside:
            raise FileFormatError(f"{where}: the edge {a!r} -> {b!r} has no node at one end")
        edges.append((str(leaves.get(a, f"{prefix}{a}")), str(enters.get(b, f"{prefix}{b}"))))


def _infer_shapes(graph: Graph) -> None:
    """From the input on along the edges; afterwards every edge is checked."""
    lift = any(n.kind == "Conv1d" for n in graph.nodes.values())
    followers: dict[str, list[str]] = {}
    for a, b in graph.edges:
        followers.setdefault(a, []).append(b)
    ready = [n.name for n in graph.nodes.values() if n.kind == "Input"]
    left = MAX_VALUES_IN_ALL
    for name in ready:  # grows while it is walked
        node = graph.nodes[name]
        if name in graph.shapes:
            continue
        graph.shapes[name] = shape = _shape(graph, node, lift)
        try:
            check_shape(node.where, shape)
        except DescriptionError as error:
            raise FileFormatError(str(error)) from None
        left -= math.prod(shape)
        if math.prod(shape) > MAX_VALUES or left < 0:
            raise FileFormatError(f"{node.where}: shape {shape} is more than {MAX_VALUES} values, or all nodes are")
        ready += followers.get(name, [])
    lost = [name for name in graph.nodes if name not in graph.shapes]
    if lost:
        raise FileFormatError(f"no path leads from the Input to the NIR nodes {', '.join(lost[:4])}")
    for a, b in graph.edges:
        if graph.nodes[b].kind != "Input":
            _check_fits(graph, graph.nodes[b], graph.shapes[a])


def _check_fits(graph: Graph, node: Node, source: Shape) -> None:
    try:
        operation = graph.operations.get(node.name)
        shape = operation.output_shape(source) if operation else source
    except DescriptionError as error:
        raise FileFormatError(f"{node.where}: {error}") from None
    if shape != graph.shapes[node.name]:
        raise FileFormatError(
            f"{node.where}: an edge brings the shape {shape}, where {graph.shapes[node.name]} is expected"
        )


def _shape(graph: Graph, node: Node, lift: bool) -> Shape:
    """What the node sends; at least one of its sources is known."""
    if node.kind == "Input":
        if node.values.get("shape") is None and "input_type" in node.values:
            raise FileFormatError(f"{node.where}: has no shape")
        given = tuple(int(d) for d in node.numbers("shape").reshape(-1))
        return (given[0], 1, given[1]) if lift and len(given) == 2 else given
    source = next(graph.shapes[s] for s in graph.sources(node.name) if s in graph.shapes)
    if node.neuron or node.kind in _THROUGH or node.kind == "Through":
        if node.neuron:
            node.parameters(source)
        return source
    if node.kind not in _OPERATIONS:
        raise UnsupportedError(
            f"{node.where}: lapilli does not know this node; "
            f"it reads {', '.join([*_PARAMETERS, *_OPERATIONS, *_THROUGH])}"
        )
    try:
        operation = _OPERATIONS[node.kind](node, source)
        shape = operation.output_shape(source)
    except DescriptionError as error:
        raise FileFormatError(f"{node.where}: {error}") from None
    if isinstance(operation, (Affine, Pooling)) and len(source) == 3:
        padded = [n + 2 * p for n, p in zip(source[1:], operation.padding, strict=True)]
        if source[0] * math.prod(padded) > MAX_VALUES:
            raise FileFormatError(f"{node.where}: padding {operation.padding} makes more than {MAX_VALUES} values")
    graph.operations[node.name] = operation
    return shape


def _dense(node: Node, source: Shape) -> Operation:  # noqa: ARG001
    weight = node.numbers("weight")
    if weight.ndim != 2:
        raise FileFormatError(f"{node.where}: weight has shape {weight.shape}; give [outputs, inputs]")
    bias = node.numbers("bias").reshape(-1) if node.kind == "Affine" else np.zeros(len(weight))
    if bias.size not in (1, len(weight)):
        raise FileFormatError(f"{node.where}: {bias.size} biases for {len(weight)} outputs")
    return Affine("dense", weight, np.broadcast_to(bias, (len(weight),)).copy())


def _conv(node: Node, source: Shape) -> Operation:
    axes = 1 if node.kind == "Conv1d" else 2
    weight = node.numbers("weight")
    if weight.ndim != 2 + axes:
        raise FileFormatError(f"{node.where}: weight has shape {weight.shape}; give {2 + axes} axes")
    stride, dilation = node.integers("stride", axes), node.integers("dilation", axes)
    groups = node.integers("groups", 1)[0]
    padding = _padding(node, weight.shape[2:], stride, dilation)
    given = node.values.get("input_shape")
    if given is not None and tuple(node.integers("input_shape", axes)) != source[-axes:]:
        raise FileFormatError(
            f"{node.where}: input_shape {np.asarray(given).tolist()}, but its input has shape {source}"
        )
    missing = node.values.get("bias") is None
    bias = np.zeros(len(weight)) if missing else np.broadcast_to(node.numbers("bias").reshape(-1), (len(weight),))
    if axes == 1:
        weight = weight[:, :, None, :]
    return Affine("conv2d", weight, bias.copy(), _pair(stride, 1), _pair(padding, 0), _pair(dilation, 1), groups)


def _pair(values: tuple[int, ...], missing: int) -> Pair:
    return (values[0], values[1]) if len(values) == 2 else (missing, values[0])


def _padding(node: Node, kernel: Shape, stride: Shape, dilation: Shape) -> tuple[int, ...]:
    given = node.values.get("padding")
    if not isinstance(given, str):
        return node.integers("padding", len(kernel))
    if given == "valid":
        return (0,) * len(kernel)
    total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    if given != "same" or any(s != 1 for s in stride) or any(t % 2 for t in total):
        raise UnsupportedError(
            f"{node.where}: padding {given!r} with kernel {tuple(kernel)}, stride {tuple(stride)} is not the same "
            "on both sides; give numbers"
        )
    return tuple(t // 2 for t in total)


def _pooling(node: Node, source: Shape) -> Operation:  # noqa: ARG001
    size, stride = node.integers("kernel_size", 2), node.integers("stride", 2)
    padding = node.integers("padding", 2)
    if min(*size, *stride) < 1 or min(padding) < 0 or any(2 * p > k for p, k in zip(padding, size, strict=True)):
        raise FileFormatError(f"{node.where}: kernel {size}, stride {stride}, padding {padding} make no sense")
    factor = 1.0 if node.kind == "SumPool2d" else 1.0 / math.prod(size)
    return Pooling((size[0], size[1]), (stride[0], stride[1]), (padding[0], padding[1]), factor)


def _scale(node: Node, source: Shape) -> Operation:
    factor = node.numbers("scale")
    return Gain(factor.reshape(source) if factor.size == math.prod(source) else factor)


def _flatten(node: Node, source: Shape) -> Operation:
    flat = (math.prod(source),)
    start, end = (node.integers(k, 1)[0] if k in node.values else d for k, d in (("start_dim", 0), ("end_dim", -1)))
    n = len(source)
    start, end = (start + n if start < 0 else start), (end + n if end < 0 else end)
    if not 0 <= start <= end < n:
        return Reshape(flat)  # counts a batch axis, which NIR does not have
    merged = (*source[:start], math.prod(source[start : end + 1]), *source[end + 1 :])
    return Reshape(merged)


_OPERATIONS: dict[str, Callable[[Node, Shape], Operation]] = {
    "Linear": _dense,
    "Affine": _dense,
    "Scale": _scale,
    "Conv1d": _conv,
    "Conv2d": _conv,
    "AvgPool2d": _pooling,
    "SumPool2d": _pooling,
    "Flatten": _flatten,
}


def population_name(node: Node) -> str:
    """The node's name as a description allows it."""
    name = re.sub(r"[^A-Za-z0-9_.\-]", "_", node.name)[:150]
    return name if re.match(r"[A-Za-z_]", name) else f"{node.kind.lower()}{name}"
