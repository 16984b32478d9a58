"""The chains of linear nodes and delays that lead from neurons, or the input, into a node of a NIR graph."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...errors import UnsupportedError
from ...network import Shape
from ..folding import FloatArray
from .graph import Graph, Node
from .linear import Operation, constant

MAX_PATHS = 4096  # into one node


@dataclass(frozen=True, eq=False)
class Chain:
    """Linear nodes in a row from ``source``, and the delay in steps on the way."""

    source: str
    operations: tuple[Operation, ...]
    delay: int


class Chains:
    """Chains of linear nodes and delays that lead into a node."""

    def __init__(self, graph: Graph, dt: float) -> None:
        self.graph, self.dt = graph, dt
        self._known: dict[str, list[Chain]] = {}
        self._constants: dict[str, FloatArray] = {}

    def into(self, name: str) -> list[Chain]:
        """All chains from neurons, or the input, to what enters ``name``."""
        found = [chain for source in self.graph.sources(name) for chain in self._out_of(source)]
        if len(found) > MAX_PATHS:
            raise UnsupportedError(f"NIR node {name!r}: more than {MAX_PATHS} paths lead there")
        return found

    def _out_of(self, name: str) -> list[Chain]:
        node = self.graph.nodes[name]
        if node.neuron or node.kind == "Input":
            return [Chain(name, (), 0)]
        if name not in self._known:
            self._visit(name, self._known)
        return self._known[name]

    def _visit(self, name: str, known: dict[str, list[Chain]]) -> None:
        """Chains out of the linear nodes before ``name``, the farthest first (no recursion: chains may be long)."""
        stack, entered = [name], set[str]()
        while stack:
            current = stack[-1]
            before = [s for s in self.graph.sources(current) if not self._ends(s) and s not in known]
            if current not in entered and before:
                entered.add(current)
                stack += before
                continue
            if before:
                raise UnsupportedError(f"NIR node {current!r}: is on a cycle without neurons")
            stack.pop()
            if current in known:
                continue
            node = self.graph.nodes[current]
            operation = self.graph.operations.get(current)
            more = (operation,) if operation else ()
            delay = self._delay(node)
            known[current] = [Chain(c.source, c.operations + more, c.delay + delay) for c in self.into(current)]
            enters = np.zeros(self._enters(current))
            for s in self.graph.sources(current):
                enters = enters + self._constant_out_of(s)
            self._constants[current] = constant(operation, enters, self.graph.shapes[current]) if operation else enters

    def _ends(self, name: str) -> bool:
        node = self.graph.nodes[name]
        return node.neuron or node.kind == "Input"

    def _enters(self, name: str) -> Shape:
        return self.graph.shapes[self.graph.sources(name)[0]]

    def _constant_out_of(self, name: str) -> FloatArray:
        if self._ends(name):
            return np.zeros(self.graph.shapes[name])
        self._out_of(name)
        return self._constants[name]

    def constant_into(self, name: str) -> FloatArray:
        """What biases on the way bring to ``name`` at every step."""
        total = np.zeros(self._enters(name))
        for source in self.graph.sources(name):
            total = total + self._constant_out_of(source)
        return total

    def _delay(self, node: Node) -> int:
        if node.kind != "Delay":
            return 0
        steps = node.numbers("delay") / self.dt
        whole = int(np.rint(steps.flat[0]))
        if (np.abs(steps - whole) > 1e-3).any() or whole < 0:
            raise UnsupportedError(
                f"{node.where}: delays of {steps.min():g} to {steps.max():g} steps (dt {self.dt:g}); "
                "a connection has one delay, a whole number of steps"
            )
        return whole
