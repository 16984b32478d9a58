"""A description as the nodes and edges of a NIR graph, in nested dictionaries; no metadata.

Weights are ``w 2^e``, thresholds ``theta / 2^f``, time constants ``dt 4096 / d``.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import UnsupportedError
from ...network import DECAY_ONE, INPUT, Connection, Network, Population, Shape

OUTPUT = "output"


def build_tree(network: Network, dt: float) -> dict[str, Any]:
    """The NIR graph as nested dictionaries, as ``nir.NIRGraph.to_dict`` gives it; no metadata.

    Raises
    ------
    UnsupportedError
        If NIR has no node for something.
    """
    builder = _Builder(network)
    shape = np.array(network.input.shape)
    builder.nodes[INPUT] = {"type": "Input", "shape": shape}
    for p in network.populations:
        builder.nodes[p.name] = _neuron(p, dt)
    for p in network.populations:
        builder.connect(p, dt)
    read = network.readout.population if network.readout else network.order[-1].name
    output = builder.free(OUTPUT)
    builder.nodes[output] = {"type": "Output", "shape": np.array(network.population(read).shape)}
    builder.edges.append((read, output))
    return {"type": "NIRGraph", "nodes": builder.nodes, "edges": builder.edges}


def weight_nodes(network: Network) -> dict[str, str]:
    """The name of the NIR node with the weights of each connection."""
    taken = {p.name for p in network.populations} | {INPUT}
    names: dict[str, str] = {}
    for c in network.connections:
        base = name = f"{c.source}_to_{c.target}"
        count = 1
        while name in taken:
            count += 1
            name = f"{base}.{count}"
        taken.add(name)
        names[c.name] = name
    return names


class _Builder:
    def __init__(self, network: Network) -> None:
        self.network = network
        self.nodes: dict[str, dict[str, Any]] = {}
        self.edges: list[tuple[str, str]] = []
        self.weight_names = weight_nodes(network)
        self.reserved = {*self.weight_names.values(), *(p.name for p in network.populations), INPUT}

    def free(self, name: str) -> str:
        """``name``, or one like it that no node has."""
        base, count = name, 1
        while name in self.reserved or name in self.nodes:
            count += 1
            name = f"{base}.{count}"
        return name

    def connect(self, p: Population, dt: float) -> None:
        """Nodes and edges of all connections into a population, its bias included."""
        incoming = list(self.network.incoming(p.name))
        bias = np.broadcast_to(p.bias, p.shape) / 2**p.fraction_bits if p.dv == 0 else np.zeros(p.shape)
        home = next((c for c in incoming if _takes_bias(c, p, bias)), None)
        for c in incoming:
            source, shape = self._delayed(c, p, dt), self.network.shape_of(c.source)
            node = _weights(c, shape, p, bias if c is home else None)
            if node["type"] in ("Linear", "Affine") and len(shape) > 1:
                source = self._flattened(source, shape, self.weight_names[c.name])
            self._chain(source, self.weight_names[c.name], node, p.name)
        if home is None and (bias.any() or not incoming):
            self._constant(p, bias)

    def _chain(self, source: str, name: str, node: dict[str, Any], target: str) -> None:
        self.nodes[name] = node
        self.edges += [(source, name), (name, target)]

    def _delayed(self, c: Connection, p: Population, dt: float) -> str:
        if c.delay == 0 or (c.delay == 1 and c.source == p.name):  # a cycle takes one step in NIR's readers
            return c.source
        name = self.free(f"{self.weight_names[c.name]}.delay")
        shape = self.network.shape_of(c.source)
        self.nodes[name] = {"type": "Delay", "delay": np.full(shape, c.delay * dt)}
        self.edges.append((c.source, name))
        return name

    def _flattened(self, source: str, shape: Shape, before: str) -> str:
        name = self.free(f"{before}.flatten")
        self.nodes[name] = {"type": "Flatten", "start_dim": 0, "end_dim": -1, "input_type": np.array(shape)}
        self.edges.append((source, name))
        return name

    def _constant(self, p: Population, bias: npt.NDArray[np.float64]) -> None:
        """A bias that no weights take in: NIR has no source of a constant, so the input feeds it with weights of 0."""
        if len(p.shape) > 1:
            raise UnsupportedError(
                f"population {p.name!r}: NIR has no bias for each neuron of shape {p.shape} without a leak; "
                "use one for each channel"
            )
        shape, name = self.network.input.shape, self.free(f"{p.name}.constant")
        zeros = np.zeros((p.size, math.prod(shape)), np.float32)
        source = self._flattened(INPUT, shape, name) if len(shape) > 1 else INPUT
        self._chain(source, name, {"type": "Affine", "weight": zeros, "bias": bias.astype(np.float64)}, p.name)


def _takes_bias(c: Connection, p: Population, bias: npt.NDArray[np.float64]) -> bool:
    if not bias.any() or p.du != DECAY_ONE:
        return False
    if c.synapse.kind == "dense":
        return True
    per_channel = bias.reshape(len(bias), -1)
    return c.synapse.kind == "conv2d" and bool((per_channel == per_channel[:, :1]).all())


def _weights(c: Connection, source: Shape, p: Population, bias: npt.NDArray[np.float64] | None) -> dict[str, Any]:
    real = c.synapse.weight.astype(np.float64) * 2.0**c.weight_exponent
    weight = real.astype(np.float32)  # at most 8 bits times a power of two: exact
    match c.synapse.kind:
        case "dense":
            if len(p.shape) > 1:
                raise UnsupportedError(
                    f"connection {c.name!r}: NIR cannot give the flat output of a dense layer the shape {p.shape}"
                )
            return (
                {"type": "Linear", "weight": weight}
                if bias is None
                else {
                    "type": "Affine",
                    "weight": weight,
                    "bias": bias.astype(np.float64),
                }
            )
        case "scale":
            per_channel = weight.reshape(-1, *[1] * (len(source) - 1))
            return {"type": "Scale", "scale": np.broadcast_to(per_channel, source).copy()}
    per_channel = np.zeros(len(weight)) if bias is None else bias.reshape(len(bias), -1)[:, 0]
    s: Any = c.synapse
    return {
        "type": "Conv2d",
        "input_shape": np.array(source[1:]),
        "weight": weight,
        "stride": np.array(s.stride),
        "padding": np.array(s.padding),
        "dilation": np.array(s.dilation),
        "groups": s.groups,
        "bias": per_channel.astype(np.float64),
    }


def _neuron(p: Population, dt: float) -> dict[str, Any]:
    """The neuron node: parameters are arrays of the population's shape, as NIR wants them."""
    if p.graded:
        raise UnsupportedError(
            f"population {p.name!r}: graded spikes (payload_max {p.payload_max}); NIR's neurons send plain ones; "
            "write ONNX, which says all of it"
        )

    def full(value: float) -> npt.NDArray[np.float64]:
        return np.full(p.shape, value, np.float64)

    spiking = {"v_threshold": full(p.threshold / 2**p.fraction_bits), "v_reset": full(0.0)} if p.spikes else {}
    if p.du == DECAY_ONE and p.dv == 0:
        return {"type": "IF" if p.spikes else "I", "r": full(1 / dt), **spiking}
    if p.dv == 0 or p.du == 0:
        what = "membrane" if p.dv == 0 else "current"
        raise UnsupportedError(
            f"population {p.name!r}: NIR has no neuron with a current (du {p.du}) and a {what} that never decays"
        )
    gain = DECAY_ONE / p.dv  # cancels the factor dt / tau before the input
    leak = np.broadcast_to(p.bias, p.shape) / 2**p.fraction_bits * gain
    membrane = {"r": full(gain), "v_leak": leak.copy(), **spiking}
    if p.du == DECAY_ONE:
        return {"type": "LIF" if p.spikes else "LI", "tau": full(dt * gain), **membrane}
    gain_u = DECAY_ONE / p.du
    currents = {"tau_syn": full(dt * gain_u), "tau_mem": full(dt * gain), "w_in": full(gain_u)}
    return {"type": "CubaLIF" if p.spikes else "CubaLI", **currents, **membrane}
