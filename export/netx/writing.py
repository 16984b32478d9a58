"""Writes lava-dl ``.net`` files: what lava-dl's own loader makes of them emits the description's spikes.

A ``.net`` file (HDF5) is a list of layers for the stock Loihi neuron: hard reset, current and membrane with 12-bit
decays, threshold and bias in units of 64. Whatever of a description this cannot say exactly is refused by name.
The layout is the one that lava-dl's slayer writes (lava-dl 0.6.0, ``slayer/block/base.py``); beside it a dataset
``lapilli`` keeps, as JSON, what the format has no place for: steps, the input's range, names, readout, labels.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...bounds import PopulationBounds, population_bounds
from ...errors import FileFormatError, UnsupportedError
from ...network import INPUT, Connection, Conv2d, Dense, Network, Population
from ...validation import IntArray
from ...whole_file import written_whole
from .hdf5_values import import_h5py
from .packing import HIGH, LOW, why_inexact

UNIT_BITS = 6  # thresholds, biases and weights count 2^6 state units (lava LIF: a_in << 6, vth << 6)
UNIT = 1 << UNIT_BITS
STATE_BITS = 24
BIAS_LIMITS = (-4096, 4095)  # 13 bits with sign
NEVER = 2**18 - 1  # a threshold above every membrane; slayer's own mark for a layer that does not spike
MAX_DELAY = 62
MAX_INT8 = 127  # Lava's Conv keeps stride, padding, dilation and groups in int8
METADATA = "lapilli"

Value = npt.NDArray[Any] | str | bool | int


@dataclass
class Layer:
    """One group ``layer/<i>`` of a file: its datasets by name, strings and numbers as they are."""

    kind: str
    values: dict[str, Value] = field(default_factory=dict)


def save_net(network: Network, path: str | Path) -> Path:
    """Write a description as a lava-dl ``.net`` file; the file appears under its name only when it is complete.

    Load it with ``lava.lib.dl.netx.hdf5.Network(net_config=path, input_message_bits=..., reset_interval=network.steps,
    reset_offset=1)``; :func:`message_bits` says the first number.

    Returns
    -------
    Path
        ``path``.

    Raises
    ------
    UnsupportedError
        If the format, or lava-dl's loader, cannot represent something exactly; the message names it.
    FileFormatError
        If the file cannot be written there.
    MissingDependencyError
        If h5py is not installed.
    """
    path = Path(path)
    h5py = import_h5py()
    layers = net_layers(network)
    try:
        with written_whole(path) as temporary, h5py.File(temporary, "w", track_order=False) as file:
            file[METADATA] = json.dumps(_beside(network), sort_keys=True)
            for index, layer in enumerate(layers):
                group = file.create_group(f"layer/{index}")
                group["type"] = np.array([layer.kind.encode("ascii")], "S10")
                for key, value in layer.values.items():
                    group[key] = value
    except OSError as error:
        raise FileFormatError(f"{path}: cannot write ({error.strerror or error}); choose another path") from None
    return path


def round_to_net(network: Network) -> Network:
    """The network with thresholds and biases rounded to multiples of 64, the grid of a ``.net`` file.

    This is another network with other spikes: measure its accuracy again. The metadata say that it was rounded.
    """
    populations = tuple(
        replace(
            p,
            threshold=min(round(p.threshold / UNIT) * UNIT, 2 ** (p.state_bits - 1) - UNIT),
            bias=(np.rint(p.bias / UNIT) * UNIT).astype(np.int64),
        )
        for p in network.populations
    )
    return replace(network, populations=populations, metadata={**network.metadata, "rounded_to": UNIT})


def message_bits(network: Network) -> int:
    """``input_message_bits`` for lava-dl's loader: 0 for spikes, the width of the integers for graded input."""
    if network.input.binary:
        return 0
    return max(1, max(abs(network.input.low), abs(network.input.high)).bit_length())


def net_layers(network: Network) -> list[Layer]:
    """The layers that :func:`save_net` writes; raises :class:`UnsupportedError` as it does."""
    chain = chain_of(network)
    layers = [Layer("input", {"shape": np.array(network.input.shape, np.int64)})]
    volume = len(network.input.shape) == 3
    for source, p in zip((INPUT, *(q.name for q in chain)), chain, strict=False):
        _check_population(network, p)
        forward = [c for c in network.incoming(p.name) if c.source == source]
        if isinstance(forward[0].synapse, Conv2d) and len(forward) == 1:
            if not volume:
                raise UnsupportedError(
                    f"connection {forward[0].name!r}: a convolution after a dense layer, which lava-dl's loader "
                    "cannot connect; make the dense layer a convolution too, or the convolution dense"
                )
            layers.append(_conv(network, forward[0], p))
        else:
            if volume:
                size = int(np.prod(network.shape_of(source)))
                layers.append(Layer("flatten", {"shape": np.array([size], np.int64)}))
            volume = False
            layers.append(_dense(network, forward, p))
    return layers


def _beside(network: Network) -> dict[str, Any]:
    """What the format has no place for."""
    structure = network.structure()
    return {
        "format": 1,
        "name": network.name,
        "steps": network.steps,
        "input": {
            **structure["input"],
            "scale": network.input.scale.tolist(),
            "zero": network.input.zero.tolist(),
            "message_bits": message_bits(network),
        },
        "populations": [p.name for p in chain_of(network)],
        "readout": structure["readout"],
        "labels": structure["labels"],
        "metadata": network.metadata,
    }


def chain_of(network: Network) -> list[Population]:
    """Populations one after the other, from the input on."""
    chain: list[Population] = []
    source = INPUT
    while True:
        targets = {c.target for c in network.outgoing(source) if c.target != source}
        back = [c for c in network.outgoing(source) if c.target in {p.name for p in chain} - {source}]
        if len(targets) > 1 or back:
            c = back[0] if back else next(c for c in network.outgoing(source) if c.target != min(targets))
            raise UnsupportedError(
                f"connection {c.name!r}: a branch; lava-dl's loader knows one layer after the other only, so "
                f"{source!r} can feed one population; export to ONNX, which says residual and feedback branches"
            )
        if not targets:
            break
        chain.append(network.population(targets.pop()))
        source = chain[-1].name
    left = [p.name for p in network.populations if p.name not in {q.name for q in chain}]
    if left:
        raise UnsupportedError(
            f"population {left[0]!r}: not on the one path from the input that a .net file describes; leave it out"
        )
    return chain


def _check_population(network: Network, p: Population) -> None:
    where = f"population {p.name!r}"
    if p.graded:
        raise UnsupportedError(
            f"{where}: graded spikes (payload_max {p.payload_max}); lava-dl's loader gives Loihi's stock neuron plain "
            "ones, whatever a .net file says; run it on Lava with lapilli's own Process (deploy --run)"
        )
    if p.reset == "subtract":
        raise UnsupportedError(
            f"{where}: soft reset (subtract); a .net file means Loihi's stock neuron, which resets to zero; lava-dl "
            "has no other; train with reset = 'zero', or run it on Lava with lapilli's own Process (deploy --run)"
        )
    if p.v_init:
        raise UnsupportedError(
            f"{where}: v_init {p.v_init}; lava-dl's reset sets the membrane to 0; train with reset = 'zero', v_init = 0"
        )
    if p.spikes and p.threshold % UNIT:
        raise UnsupportedError(
            f"{where}: threshold {p.threshold} is not a multiple of 64; round it to "
            f"{round(p.threshold / UNIT) * UNIT} (lapilli.export.round_to_net rounds them all)"
        )
    mantissa = p.bias >> UNIT_BITS
    if np.any(p.bias % UNIT):
        wrong = int(p.bias.reshape(-1)[(p.bias % UNIT != 0).reshape(-1)][0])
        raise UnsupportedError(
            f"{where}: bias {wrong} is not a multiple of 64; round it to {round(wrong / UNIT) * UNIT} "
            "(lapilli.export.round_to_net rounds them all)"
        )
    if mantissa.min() < BIAS_LIMITS[0] or mantissa.max() > BIAS_LIMITS[1]:
        raise UnsupportedError(
            f"{where}: biases {int(p.bias.min())}..{int(p.bias.max())} are outside {BIAS_LIMITS[0] * UNIT}.."
            f"{BIAS_LIMITS[1] * UNIT} (13 bits in units of 64); lower the scale of this population"
        )
    bounds = population_bounds(network, p)
    if max(-bounds.drive[0], bounds.drive[1]) >= 2**STATE_BITS:
        raise UnsupportedError(
            f"{where}: its input can reach {bounds.drive[0]}..{bounds.drive[1]} in one step, and Lava wraps a current "
            "beyond 24 bits once only; lower its weights or their exponent"
        )
    if p.state_bits != STATE_BITS and not _never_overflows(p, bounds):
        raise UnsupportedError(
            f"{where}: state_bits {p.state_bits}; the stock neuron has {STATE_BITS}, and this one can overflow"
        )


def _never_overflows(p: Population, bounds: PopulationBounds) -> bool:
    if bounds.can_wrap or bounds.can_saturate or bounds.current is None or bounds.membrane is None:
        return False
    reach = max(map(abs, (*bounds.current, *bounds.membrane, p.threshold)))
    return reach < 2 ** (STATE_BITS - 1)


def _neuron(p: Population) -> dict[str, Value]:
    """Datasets of the neurons: signed integers, because lava-dl subtracts 1 from ``iDecay`` (and fails on floats)."""
    return {
        "neuron/type": "CUBA",
        "neuron/iDecay": np.array(p.du, np.int64),
        "neuron/vDecay": np.array(p.dv, np.int64),
        "neuron/vThMant": np.array(p.threshold >> UNIT_BITS if p.spikes else NEVER, np.int64),
        "neuron/refDelay": np.array(1, np.int64),
        "neuron/gradedSpike": np.array(False),
    }


def _weight(c: Connection, p: Population) -> IntArray:
    """Weights in units of 64."""
    shift = c.weight_exponent + p.fraction_bits - UNIT_BITS
    weight = c.synapse.weight.astype(np.int64)
    if shift >= 0:
        return weight << shift
    if np.any(weight % (1 << -shift)):
        raise UnsupportedError(
            f"connection {c.name!r}: weights count 2^{c.weight_exponent + p.fraction_bits} state units, finer than the "
            f"2^6 of a .net file; raise weight_exponent to {UNIT_BITS - p.fraction_bits} and the threshold with it"
        )
    return weight >> -shift


def _dense(network: Network, forward: list[Connection], p: Population) -> Layer:
    for c in forward:
        if not isinstance(c.synapse, Dense):
            raise UnsupportedError(
                f"connection {c.name!r}: {c.synapse.kind}"
                + (" beside another connection" if isinstance(c.synapse, Conv2d) else "")
                + ", which a .net file has no layer for; write it as one Dense matrix, or a one-to-one connection of "
                "channels as a 1x1 Conv2d with as many groups"
            )
    weight, delay = _merged(forward, p)
    recurrent = [c for c in network.incoming(p.name) if c.source == p.name]
    values: dict[str, Value] = {
        "shape": np.array([p.size], np.int64),
        "inFeatures": weight.shape[1],
        "outFeatures": weight.shape[0],
        "weight": weight.astype(np.float32),
        **_bias(np.broadcast_to(p.bias, p.shape).reshape(-1)),
        **_neuron(p),
    }
    parts = [weight]
    if recurrent:
        values["weight_rec"] = _recurrent(recurrent, p, parts, bool(delay.any())).astype(np.float32)
    if delay.any():
        values["delay"] = delay
    reason = why_inexact(parts)
    if reason:
        raise UnsupportedError(f"connection {forward[0].name!r}: {reason}")
    return Layer("dense_rec" if recurrent else "dense", values)


def _recurrent(recurrent: list[Connection], p: Population, parts: list[IntArray], delayed: bool) -> IntArray:
    c = recurrent[0]
    if len(recurrent) > 1 or not isinstance(c.synapse, Dense) or c.delay != 1 or delayed:
        raise UnsupportedError(
            f"connection {c.name!r}: a recurrent layer of a .net file has one dense feedback connection of delay 1 and "
            f"no delay on its input; this one is {len(recurrent)} x {c.synapse.kind} with delay {c.delay}"
        )
    parts.append(_weight(c, p))
    return parts[-1]


def _merged(forward: list[Connection], p: Population) -> tuple[IntArray, IntArray]:
    """Parallel dense connections as one matrix, and its delays: per neuron where that says it, else per synapse."""
    weight = np.zeros_like(_weight(forward[0], p))
    delay = np.zeros_like(weight)
    for c in forward:
        more = _weight(c, p)
        clash = (more != 0) & (weight != 0) & (delay != c.delay)
        if clash.any():
            i, j = np.argwhere(clash)[0]
            raise UnsupportedError(
                f"connection {c.name!r}: a second synapse with another delay from {int(j)} to {int(i)}; "
                "a .net file has one per pair of neurons, so drop one"
            )
        delay[more != 0] = c.delay
        weight = weight + more
    if len(forward) == 1:
        delay[:] = forward[0].delay
    delay[weight == 0] = -1  # says nothing
    per_neuron = delay.max(axis=1)
    if bool(((delay == per_neuron[:, None]) | (delay < 0)).all()):
        return weight, np.maximum(per_neuron, 0)
    return weight, np.maximum(delay, 0)


def _bias(mantissa_units: IntArray) -> dict[str, Value]:
    return {"bias": (mantissa_units >> UNIT_BITS).astype(np.float32)} if mantissa_units.any() else {}


def _conv(network: Network, c: Connection, p: Population) -> Layer:
    synapse = c.synapse
    assert isinstance(synapse, Conv2d)
    where = f"connection {c.name!r}"
    weight = _weight(c, p)
    if any(True for _ in (r for r in network.incoming(p.name) if r.source == p.name)):
        raise UnsupportedError(f"{where}: a convolution with recurrent connections; only dense layers have them")
    if c.delay:
        raise UnsupportedError(
            f"{where}: delay {c.delay} on a convolution, which lava-dl's loader ignores; move it to a dense layer"
        )
    if weight.min() < LOW or weight.max() > HIGH:
        raise UnsupportedError(
            f"{where}: its weights are {int(weight.min())}..{int(weight.max())} in units of 64 (2^6), and a synapse "
            "holds -256..254; lower the weight_exponent together with threshold and bias"
        )
    largest = max(*synapse.stride, *synapse.padding, *synapse.dilation, synapse.groups, *weight.shape[2:])
    if largest > MAX_INT8:
        raise UnsupportedError(
            f"{where}: {largest} as stride, padding, dilation, kernel or groups; Lava's Conv keeps them in 8 bits "
            f"(at most {MAX_INT8}); make it dense, or split it"
        )
    bias = np.broadcast_to(p.bias, p.shape)
    per_channel = bool((bias == bias[:, :1, :1]).all())
    return Layer(
        "conv",
        {
            "shape": np.array(p.shape, np.int64),
            "inChannels": weight.shape[1] * synapse.groups,
            "outChannels": weight.shape[0],
            "kernelSize": np.array(weight.shape[2:], np.int64),
            "stride": np.array(synapse.stride, np.int64),
            "padding": np.array(synapse.padding, np.int64),
            "dilation": np.array(synapse.dilation, np.int64),
            "groups": np.array(synapse.groups, np.int64),
            "weight": weight.astype(np.float32),
            # one bias per neuron is wanted in Lava's order (X, Y, C)
            **_bias(bias[:, 0, 0] if per_channel else bias.transpose(2, 1, 0)),
            **_neuron(p),
        },
    )
