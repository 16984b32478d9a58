"""From NIR's differential equations to steps: a float64 network of the description's form, which can be simulated.

NIR says how a membrane moves in continuous time and nothing about steps. With the step ``dt``, ``k = dt / tau``
("euler") or ``k = 1 - exp(-dt / tau)`` ("exponential"), and ``v`` counted from ``v_reset``, each node becomes

    IF       v = v + dt r I
    LIF      v = (1 - k) v + k (r I + v_leak - v_reset)
    CubaLIF  u = (1 - k_syn) u + k_syn w_in S        v = (1 - k_mem) v + k_mem (r u + v_leak - v_reset)
    I, LI, CubaLI                                    the same without spikes
    Threshold                                        v = I

and spikes where ``v > v_threshold - v_reset``. The factors before ``I`` go into the weights. Membranes start at
``v_reset``, currents at 0. A cycle without a Delay node takes one step.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np

from ...errors import UnsupportedError
from ...network import DECAY_ONE, INPUT, Reset, Shape
from ..folding import FloatArray
from .chains import Chains
from .graph import INTEGRATORS, Graph, Node, population_name
from .linear import Gain, Reshape, compose
from .real_network import NIRWarning, RealConnection, RealNetwork, RealPopulation, constant_source

Discretization: TypeAlias = Literal["euler", "exponential"]
NirReset: TypeAlias = Literal["subtract", "zero", "subtract-next"]


@dataclass(frozen=True, eq=False)
class _Dynamics:
    """A node in steps: all arrays have the population's shape."""

    keep_u: FloatArray
    keep_v: FloatArray
    gain: FloatArray  # before the sum of incoming connections
    bias: FloatArray
    threshold: FloatArray | None


def discretize(
    graph: Graph,
    *,
    steps: int,
    dt: float,
    reset: NirReset,
    discretization: Discretization,
    name: str = "network",
    strict: bool = False,
) -> RealNetwork:
    """A NIR graph in steps of ``dt``.

    Raises
    ------
    UnsupportedError
        If a description cannot express a node, or, with ``strict``, if something had to be decided for NIR.
    """
    notes: list[str] = []
    chains = Chains(graph, dt)
    neurons = [n for n in graph.nodes.values() if n.neuron]
    names = {n.name: population_name(n) for n in neurons}
    names[graph.only("Input")] = INPUT
    populations: list[RealPopulation] = []
    connections: list[RealConnection] = []
    for node in neurons:
        shape = graph.shapes[node.name]
        dynamics = _DYNAMICS[node.kind](node, shape, dt, discretization)
        ours, into = _population(node, names[node.name], shape, dynamics, reset, chains, names)
        populations += ours
        connections += into
    readout = _readout(graph, chains, names, populations, connections, notes)
    _check_readouts(populations, connections)
    connections = _with_delayed_cycles(connections, notes)
    for note in notes:
        if strict:
            raise UnsupportedError(f"{note} (refused because of strict)")
        warnings.warn(note, NIRWarning, stacklevel=3)
    made = RealNetwork(
        name=name,
        steps=steps,
        input_shape=graph.shapes[graph.only("Input")],
        populations=tuple(populations),
        connections=tuple(_with_names(connections)),
        readout=readout,
        notes=tuple(notes),
    )
    return replace(made, populations=tuple(made.order()))


def _lost(node: Node, key: str, tau: FloatArray, dt: float, how: Discretization) -> FloatArray:
    """``k``: the part of a state that is lost in one step."""
    if (tau <= 0).any():
        raise UnsupportedError(f"{node.where}: {key} is not positive")
    if how == "exponential":
        return -np.expm1(-dt / tau)
    lost = dt / tau
    if (lost > 1 + 1e-6).any():
        raise UnsupportedError(
            f"{node.where}: dt {dt:g} is longer than {key} {tau.min():g}, which Euler's rule does not survive; "
            "check the unit of dt, or take the exponential discretization"
        )
    return np.minimum(lost, 1.0)


def _integrate(node: Node, shape: Shape, dt: float, how: Discretization) -> _Dynamics:  # noqa: ARG001
    p = node.parameters(shape)
    one = np.ones(shape)
    return _Dynamics(0 * one, one, dt * p["r"], 0 * one, _threshold(p))


def _leak(node: Node, shape: Shape, dt: float, how: Discretization) -> _Dynamics:
    p = node.parameters(shape)
    lost = _lost(node, "tau", p["tau"], dt, how)
    return _Dynamics(np.zeros(shape), 1 - lost, lost * p["r"], lost * (p["v_leak"] - p["v_reset"]), _threshold(p))


def _leak_with_current(node: Node, shape: Shape, dt: float, how: Discretization) -> _Dynamics:
    p = node.parameters(shape)
    lost = _lost(node, "tau_mem", p["tau_mem"], dt, how)
    lost_u = _lost(node, "tau_syn", p["tau_syn"], dt, how)
    gain = lost_u * p["w_in"] * lost * p["r"]
    return _Dynamics(1 - lost_u, 1 - lost, gain, lost * (p["v_leak"] - p["v_reset"]), _threshold(p))


def _compare(node: Node, shape: Shape, dt: float, how: Discretization) -> _Dynamics:  # noqa: ARG001
    zero = np.zeros(shape)
    return _Dynamics(zero, zero, zero + 1.0, zero, node.parameters(shape)["threshold"])


def _threshold(p: dict[str, FloatArray]) -> FloatArray | None:
    return p["v_threshold"] - p["v_reset"] if "v_threshold" in p else None


_DYNAMICS: dict[str, Callable[[Node, Shape, float, Discretization], _Dynamics]] = {
    "IF": _integrate,
    "I": _integrate,
    "LIF": _leak,
    "LI": _leak,
    "CubaLIF": _leak_with_current,
    "CubaLI": _leak_with_current,
    "Threshold": _compare,
}


def _uniform(node: Node, what: str, values: FloatArray) -> float:
    """The one value of a population; they may differ by less than Loihi's decays can tell apart."""
    least, most = float(values.min()), float(values.max())
    if most - least > 1e-6 and round(least * DECAY_ONE) != round(most * DECAY_ONE):
        raise UnsupportedError(
            f"{node.where}: {what} differs between neurons ({least:.6g} to {most:.6g} is kept in a step); a population "
            "has one; split it into nodes of equal time constants"
        )
    return (least + most) / 2


def _population(
    node: Node,
    name: str,
    shape: Shape,
    dynamics: _Dynamics,
    reset: NirReset,
    chains: Chains,
    names: dict[str, str],
) -> tuple[list[RealPopulation], list[RealConnection]]:
    """A population and its incoming connections; perhaps one more population, which sends a constant."""
    keep_u = _uniform(node, "the current's decay", dynamics.keep_u)
    keep_v = _uniform(node, "the membrane's decay", dynamics.keep_v)
    gain, bias, threshold = dynamics.gain, dynamics.bias, 0.0
    if dynamics.threshold is not None:
        if (dynamics.threshold < 0).any():
            raise UnsupportedError(f"{node.where}: a threshold is below the reset; the neuron would never stop spiking")
        # Neurons with different thresholds have one, once everything that drives them is scaled.
        threshold = float(dynamics.threshold.flat[0])
        if (dynamics.threshold != threshold).any():
            if (dynamics.threshold <= 0).any():
                raise UnsupportedError(f"{node.where}: thresholds differ, and some are zero; a population has one")
            gain, bias = gain * (threshold / dynamics.threshold), bias * (threshold / dynamics.threshold)
    connections = []
    for chain in chains.into(node.name):
        plain = compose(
            f"{node.where}: input from {chain.source!r}", chain.operations, chains.graph.shapes[chain.source]
        )
        synapse = plain.with_gain(gain)
        if synapse is None:
            raise UnsupportedError(
                f"{node.where}: r, time constants, w_in or thresholds differ between neurons of a channel, which a "
                "convolution cannot take in; make them equal in each channel"
            )
        connections.append(
            RealConnection(source=names[chain.source], target=name, name="", synapse=synapse, delay=chain.delay)
        )
    drive = gain * chains.constant_into(node.name)
    populations = []
    if keep_u == 0.0:
        bias = bias + drive
    elif drive.any():
        always, column = constant_source(name, drive)
        populations.append(always)
        connections.append(column)
    kind, amount = _reset(node, reset, threshold, keep_v)
    if reset == "subtract-next" and keep_v == 0.0 and kind == "subtract":
        raise UnsupportedError(f"{node.where}: keeps nothing from step to step; 'subtract-next' has no meaning there")
    populations.append(
        RealPopulation(
            name=name,
            shape=shape,
            reset=kind,
            threshold=threshold,
            reset_amount=amount,
            keep_u=keep_u,
            keep_v=keep_v,
            bias=np.broadcast_to(bias, shape).copy(),
        )
    )
    return populations, connections


def _reset(node: Node, reset: NirReset, threshold: float, keep_v: float) -> tuple[Reset, float]:
    if node.kind in INTEGRATORS:
        return "none", 0.0
    if node.kind == "Threshold" or reset == "zero":
        return "zero", 0.0
    if reset == "subtract-next" and keep_v > 0:
        return "subtract", threshold / keep_v  # what is left of it one step later is the threshold
    return "subtract", threshold


def _readout(
    graph: Graph,
    chains: Chains,
    names: dict[str, str],
    populations: list[RealPopulation],
    connections: list[RealConnection],
    notes: list[str],
) -> str:
    """The population that the Output reads; linear nodes before it become an accumulator of their own."""
    output = graph.only("Output")
    into = chains.into(output)
    plain = len(into) == 1 and into[0].delay == 0
    if plain and all(isinstance(o, Reshape) for o in into[0].operations):
        if names[into[0].source] == INPUT:
            raise UnsupportedError("the NIR graph has no neurons between its Input and its Output")
        return names[into[0].source]
    if not into:
        raise UnsupportedError("nothing leads to the NIR graph's Output")
    name = "readout"
    while name in names.values():
        name += "_"
    notes.append(
        f"the NIR Output is not fed by one neuron node; its input is summed over all steps in a population {name!r} "
        "that does not spike"
    )
    shape = graph.shapes[output]
    for chain in into:
        synapse = compose(
            f"NIR node {output!r}: input", chain.operations or (Gain(np.ones(1)),), graph.shapes[chain.source]
        )
        connections.append(
            RealConnection(source=names[chain.source], target=name, name="", synapse=synapse, delay=chain.delay)
        )
    populations.append(
        RealPopulation(
            name=name,
            shape=shape,
            reset="none",
            threshold=0.0,
            reset_amount=0.0,
            keep_u=0.0,
            keep_v=1.0,
            bias=chains.constant_into(output),
        )
    )
    return name


def _check_readouts(populations: list[RealPopulation], connections: list[RealConnection]) -> None:
    silent = {p.name for p in populations if p.reset == "none"}
    for c in connections:
        if c.source in silent:
            raise UnsupportedError(
                f"NIR node {c.source!r} does not spike and feeds {c.target!r}; a description sends spikes only, "
                "so I, LI and CubaLI are readouts"
            )


def _with_delayed_cycles(connections: list[RealConnection], notes: list[str]) -> list[RealConnection]:
    """A delay of one step on every connection that closes a cycle without one."""
    out: dict[str, list[int]] = {}
    for i, c in enumerate(connections):
        if c.delay == 0 and c.source != c.target:
            out.setdefault(c.source, []).append(i)
    closing: set[int] = set()
    done: set[str] = set()
    for start in [INPUT, *out]:
        path: dict[str, int] = {start: 0}  # the nodes on the way, with the number of followers already taken
        while path and start not in done:
            name = next(reversed(path))
            followers = out.get(name, [])
            if path[name] == len(followers):
                del path[name]
                done.add(name)
                continue
            i = followers[path[name]]
            path[name] += 1
            target = connections[i].target
            if target in path:
                closing.add(i)
            elif target not in done:
                path[target] = 0
    for i in sorted(closing):
        c = connections[i]
        notes.append(
            f"NIR nodes {c.source!r} and {c.target!r} are on a cycle without a Delay; the connection "
            f"{c.source}->{c.target} was given one step"
        )
    return [
        replace(c, delay=1) if i in closing or (c.source == c.target and c.delay == 0) else c
        for i, c in enumerate(connections)
    ]


def _with_names(connections: list[RealConnection]) -> list[RealConnection]:
    """Names as a description's connections have them; parallel ones are numbered."""
    count: dict[str, int] = {}
    named = []
    for c in connections:
        base = f"{c.source}->{c.target}"
        count[base] = count.get(base, 0) + 1
        named.append(replace(c, name=base if count[base] == 1 else f"{base}.{count[base]}"))
    return named
