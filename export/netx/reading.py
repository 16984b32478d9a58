"""Reads lava-dl ``.net`` files: what slayer wrote becomes a description.

The layers and datasets are those of lava-dl 0.6.0 (``slayer/block/base.py``, ``netx/hdf5.py``). lava-dl's own loader
ignores what it does not know, clips and truncates; this reader says instead what it would have lost. Nothing in the
file is trusted: see :mod:`.hdf5_values`.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import FileFormatError, UnsupportedError
from ...network import INPUT, Connection, Conv2d, Dense, Input, Network, Population, Readout, Scale
from ...validation import MAX_ELEMENTS, IntArray, Shape
from .hdf5_values import Section, open_hdf5
from .packing import HIGH, LOW, why_inexact
from .writing import BIAS_LIMITS, MAX_DELAY, METADATA, UNIT_BITS

BIAS_INT16 = (-(2**15), 2**15 - 1)  # what Lava's LIF keeps; Loihi has 13 bits
NEVER_SPIKES = 2**17  # thresholds from here on are above the saturated membrane: 2^17 << 6 = 2^23
MAX_LAYERS = 1024
_ANY = (-(2**31), 2**31 - 1)

_NEURON_KEYS = {"type", "iDecay", "vDecay", "vThMant", "refDelay", "gradedSpike"}
_LEGACY_KEYS = {"wgtExp", "theta", "scaleRho", "tauRho"}  # of type LOIHI; lava-dl ignores all but a zero wgtExp
_DENSE_KEYS = {"type", "shape", "inFeatures", "outFeatures", "weight", "bias", "delay", "neuron"}
_LAYER_KEYS = {
    "input": {"type", "shape", "weight", "bias", "neuron"},
    "flatten": {"type", "shape"},
    "dense": _DENSE_KEYS,
    "dense_rec": _DENSE_KEYS | {"weight_rec"},
    "conv": {
        *("type", "shape", "inChannels", "outChannels", "kernelSize", "stride", "padding", "dilation", "groups"),
        *("weight", "bias", "delay", "neuron"),
    },
}
_IGNORED_KEYS = {"count_log", "weight_norm"}
_WRITTEN_BY_SLAYER_ONLY = ("pool", "convT", "unpool", "average", "concat", "dense_comp")


@dataclass
class _Reading:
    """What has been read so far."""

    names: list[str]  # given ones, may be empty
    shape: Shape | None  # of the last layer, or of the input
    ours: bool  # written by lapilli: delays act on what a neuron receives
    input: Input | None = None
    populations: list[Population] = field(default_factory=list)
    connections: list[Connection] = field(default_factory=list)

    @property
    def source(self) -> str:
        return self.populations[-1].name if self.populations else INPUT

    def name(self, kind: str, index: int) -> str:
        place = len(self.populations)
        return self.names[place] if place < len(self.names) else f"{kind}{index}"


def load_net(
    path: str | Path,
    *,
    steps: int | None = None,
    input_shape: Shape | None = None,
    low: int | None = None,
    high: int | None = None,
    layers: int | None = None,
) -> Network:
    """Read a lava-dl ``.net`` file as a description.

    Parameters
    ----------
    path : path
    steps : int
        Length of a sample's window. The format does not say it, so it must be given; only a file that lapilli wrote
        carries it.
    input_shape : tuple of int, optional
        ``(C, Y, X)`` or ``(N,)``, where the file does not say it (a convolution without an input layer).
    low, high : int, optional
        Range of the input's integers; 0 and 1 (spikes) by default. For an input layer with neurons they are
        its biases after the file's own transformation, -4096..4095 by default.
    layers : int, optional
        Read the first ``layers`` layers only, as lava-dl's ``num_layers``.

    Raises
    ------
    FileFormatError
        If the file is damaged, hostile, or not a ``.net`` file.
    UnsupportedError
        If it says something that a description cannot represent exactly; the message names it.
    """
    path = Path(path)
    with open_hdf5(path) as root:
        beside = _beside(root)
        steps = steps if steps is not None else beside.get("steps")
        if steps is None:
            raise UnsupportedError(
                f"{path}: a .net file does not say how many steps a sample takes; give steps=N (--steps N)"
            )
        table = root.section("layer")
        count = _count(table)
        reading = _Reading([str(n) for n in beside.get("populations", ())], input_shape, bool(beside))
        shape_of_input = _input_shape(table, count, input_shape)
        reading.shape = shape_of_input
        for index in range(count if layers is None else min(count, layers)):
            _read_layer(table.section(str(index)), index, reading)
        if not reading.populations:
            table.refuse("has no layer with neurons")
        return _network(path, steps, shape_of_input, low, high, beside, reading)


def _count(table: Section) -> int:
    count = len(table.names)
    if count > MAX_LAYERS:
        table.refuse(f"has {count} layers, more than {MAX_LAYERS}")
    missing = [str(i) for i in range(count) if str(i) not in table.names]
    if missing or not count:
        table.refuse(f"its groups are not named 0 to {max(count - 1, 0)}: {missing[0] if missing else '0'} is missing")
    return count


def _beside(root: Section) -> dict[str, Any]:
    """What :func:`.save_net` keeps beside the layers; empty for files of lava-dl."""
    if METADATA not in root.names:
        return {}
    try:
        said = json.loads(root.text(METADATA))
    except (ValueError, RecursionError) as error:
        root.refuse(f"not JSON ({type(error).__name__})", METADATA)
    if not isinstance(said, dict) or said.get("format") != 1:
        root.refuse("not of format 1; read it with the lapilli that wrote it", METADATA)
    for key, kind in (("name", str), ("steps", int), ("input", dict), ("populations", list), ("labels", list)):
        if not isinstance(said.get(key), kind):
            root.refuse(f"its {key!r} is not a {kind.__name__}", METADATA)
    return said


def _network(
    path: Path, steps: int, shape: Shape, low: int | None, high: int | None, beside: dict[str, Any], reading: _Reading
) -> Network:
    last = reading.populations[-1]
    for p in reading.populations[:-1]:
        if not p.spikes:
            raise UnsupportedError(
                f"{path}: layer {p.name!r} never spikes (its threshold is above every membrane) and is not the last one"
            )
    readout = Readout(population=last.name, kind="count" if last.spikes else "membrane")
    made = reading.input
    if made is None:
        said = beside.get("input", {})
        try:
            made = Input(
                shape=shape,
                low=low if low is not None else said.get("low", 0),
                high=high if high is not None else said.get("high", 1),
                scale=np.asarray(said.get("scale", [1.0]), np.float64),
                zero=np.asarray(said.get("zero", [0.0]), np.float64),
            )
        except (TypeError, ValueError) as error:
            raise FileFormatError(f"{path}: {METADATA}: the input is malformed ({error})") from None
    elif low is not None or high is not None:
        made = Input(
            shape=made.shape,
            low=made.low if low is None else low,
            high=made.high if high is None else high,
            scale=made.scale,
            zero=made.zero,
        )
    if beside.get("readout"):
        try:
            given = Readout(**beside["readout"])
        except TypeError as error:
            raise FileFormatError(f"{path}: {METADATA}: the readout is malformed ({error})") from None
        readout = given if any(p.name == given.population for p in reading.populations) else readout
    metadata = beside.get("metadata", {})
    return Network(
        name=beside.get("name", path.stem[:200]),
        steps=steps,
        input=made,
        populations=tuple(reading.populations),
        connections=tuple(reading.connections),
        readout=readout,
        labels=tuple(beside.get("labels", ())),
        metadata=metadata if isinstance(metadata, dict) and metadata else {"source": f"lava-dl .net file {path.name}"},
    )


# Layers


def _read_layer(section: Section, index: int, reading: _Reading) -> None:
    kind = section.text("type")
    if kind in _WRITTEN_BY_SLAYER_ONLY:
        raise UnsupportedError(
            f"{section.file}: {section.where}: a layer of type {kind!r}, which lava-dl's own loader cannot run either; "
            "read the layers before it with layers=N, or train without it"
        )
    if kind not in _READERS:
        raise UnsupportedError(
            f"{section.file}: {section.where}: a layer of type {kind!r:.40}, which lava-dl's loader would leave out "
            f"without a word; lapilli reads {', '.join(_READERS)}"
        )
    unknown = sorted(set(section.names) - _LAYER_KEYS[kind] - _IGNORED_KEYS)
    if unknown:
        raise UnsupportedError(
            f"{section.file}: {section.where}: unknown dataset {unknown[0]!r:.60} in a {kind} layer; lapilli reads "
            f"{', '.join(sorted(_LAYER_KEYS[kind]))}"
        )
    _READERS[kind](section, index, reading)


def _shape(section: Section) -> Shape:
    shape = section.integers("shape", 1, MAX_ELEMENTS)
    if shape.ndim != 1 or len(shape) > 4 or math.prod(map(int, shape)) > MAX_ELEMENTS:
        section.refuse(f"is {shape.tolist()[:8]}, not a list of 1 to 4 sizes", "shape")
    return tuple(map(int, shape))


def _input_shape(table: Section, count: int, given: Shape | None) -> Shape:
    """Shape of the input: as given, or of the input layer, or what the first dense layer takes."""
    if given is not None:
        return tuple(given)
    for index in range(count):
        section = table.section(str(index))
        kind = section.text("type")
        if kind == "input" and "shape" in section.names:
            return _shape(section)
        if kind in ("dense", "dense_rec"):
            return (_matrix(section, "weight", math.prod(_shape(section))).shape[1],)
        if kind == "conv":
            break
    raise UnsupportedError(
        f"{table.file}: the file does not say the shape of its input; give input_shape=(C, Y, X) (--input-shape C,Y,X)"
    )


def _read_input(section: Section, index: int, reading: _Reading) -> None:
    """An input layer; with neurons, these are driven through their bias: an integer per neuron and step."""
    if index != 0:
        section.refuse("an input layer that is not the first one")
    if "neuron" not in section.names:
        return
    assert reading.shape is not None
    name = reading.name("input", index) if reading.names else "input_layer"
    population = _population(section, name, reading.shape, section.section("neuron"))
    if population.du != 4096:
        raise UnsupportedError(
            f"{section.file}: {section.where}/neuron: iDecay {population.du} in an input layer, where slayer filters "
            "the input with it and lava-dl's loader does not; train with a current decay of 1"
        )
    weight = section.integer("weight", *_ANY) if "weight" in section.names else 64
    offset = section.integer("bias", *_ANY) if "bias" in section.names else 0
    if weight <= 0:
        section.refuse(f"is {weight}; the input is multiplied by it, so it must be positive", "weight")
    reading.input = Input(
        shape=reading.shape,
        low=BIAS_LIMITS[0],
        high=BIAS_LIMITS[1],
        scale=np.array([1 / weight]),
        zero=np.array([-offset / weight]),
    )
    # bias << 6 is added to the membrane, as is the current of a one-to-one connection without current memory.
    reading.populations.append(population)
    reading.connections.append(Connection(source=INPUT, target=name, synapse=Scale(np.array([1]))))


def _read_flatten(section: Section, index: int, reading: _Reading) -> None:  # noqa: ARG001
    assert reading.shape is not None
    reading.shape = (math.prod(reading.shape),)


def _read_dense(section: Section, index: int, reading: _Reading) -> None:
    assert reading.shape is not None
    n_out = math.prod(_shape(section))
    if len(reading.shape) == 3 and reading.populations and math.prod(reading.shape) != max(reading.shape):
        section.refuse("a dense layer after a convolution without a flatten layer, which lava-dl's loader cannot run")
    weight = _matrix(section, "weight", n_out)
    if weight.shape[1] != math.prod(reading.shape):
        section.refuse(f"takes {weight.shape[1]} inputs and gets {math.prod(reading.shape)}", "weight")
    name, source = reading.name("dense", index), reading.source
    population = _population(section, name, (n_out,), section.section("neuron") if "neuron" in section.names else None)
    parts = [weight]
    if "weight_rec" in section.names:
        parts.append(_matrix(section, "weight_rec", n_out))
        if parts[1].shape != (n_out, n_out):
            section.refuse(f"has shape {parts[1].shape}, not {(n_out, n_out)}", "weight_rec")
    _warn_of_packing(section, parts)
    delay = _delay(section, weight.shape, reading.ours, population)
    if len(parts) == 2 and delay.any():
        raise UnsupportedError(
            f"{section.file}: {section.where}/delay: delays in a recurrent layer, which lava-dl's loader cannot run"
        )
    reading.populations.append(population)
    reading.connections += _by_delay(section, source, name, weight, delay)
    if len(parts) == 2:
        synapse, exponent = _fit(section, "weight_rec", parts[1])
        reading.connections.append(
            Connection(
                source=name, target=name, synapse=Dense(synapse), weight_exponent=exponent, delay=1, name=f"{name}:rec"
            )
        )
    reading.shape = (n_out,)


def _read_conv(section: Section, index: int, reading: _Reading) -> None:
    assert reading.shape is not None
    weight = section.integers("weight", LOW, HIGH)
    if weight.ndim == 5 and weight.shape[4] == 1:  # older slayer kept its time axis
        weight = weight[..., 0]
    if weight.ndim != 4:
        section.refuse(f"has shape {weight.shape}, not (out, in, y, x)", "weight")
    if "delay" in section.names and section.numbers("delay").any():
        raise UnsupportedError(
            f"{section.file}: {section.where}/delay: delays of a convolution, which slayer simulates and lava-dl's "
            "loader ignores; train without them"
        )
    if len(reading.shape) != 3:
        section.refuse(f"a convolution of an input of shape {reading.shape}; it needs (C, Y, X)")
    fitted, exponent = _fit(section, "weight", weight)
    synapse = Conv2d(
        fitted,
        stride=_pair(section, "stride", 1),
        padding=_pair(section, "padding", 0),
        dilation=_pair(section, "dilation", 1),
        groups=section.integer("groups", 1, 2**15) if "groups" in section.names else 1,
    )
    shape = synapse.output_size(reading.shape)
    assert isinstance(shape, tuple)
    if _shape(section) != shape:
        section.refuse(f"is {_shape(section)}, but the convolution of {reading.shape} gives {shape}", "shape")
    if "neuron" not in section.names:
        section.refuse("a convolution without neurons")
    name, source = reading.name("conv", index), reading.source
    reading.populations.append(_population(section, name, shape, section.section("neuron")))
    reading.connections.append(Connection(source=source, target=name, synapse=synapse, weight_exponent=exponent))
    reading.shape = shape


_READERS: dict[str, Callable[[Section, int, _Reading], None]] = {
    "input": _read_input,
    "flatten": _read_flatten,
    "dense": _read_dense,
    "dense_rec": _read_dense,
    "conv": _read_conv,
}


# Parts of layers


def _pair(section: Section, key: str, least: int) -> tuple[int, int]:
    value = section.integers(key, least, 127) if key in section.names else np.array([least])
    if value.size not in (1, 2):
        section.refuse(f"has shape {value.shape}; give one number or (y, x)", key)
    y, x = np.broadcast_to(value.reshape(-1), 2)
    return int(y), int(x)


def _matrix(section: Section, key: str, n_out: int) -> IntArray:
    weight = section.integers(key, LOW, HIGH)
    if weight.ndim == 1 and weight.size % n_out == 0:
        weight = weight.reshape(n_out, -1)
    if weight.ndim != 2 or weight.shape[0] != n_out:
        section.refuse(f"has shape {weight.shape} in a layer of {n_out} neurons", key)
    return weight


def _fit(section: Section, key: str, weight: IntArray) -> tuple[npt.NDArray[np.int8], int]:
    """Weights as int8 and their exponent."""
    if weight.min() >= -128 and weight.max() <= 127:
        return weight.astype(np.int8), 0
    if not np.any(weight % 2):
        return (weight // 2).astype(np.int8), 1
    raise UnsupportedError(
        f"{section.file}: {section.where}/{key}: weights {int(weight.min())}..{int(weight.max())} with odd ones among "
        "them need 9 bits; slayer writes even ones (quantize_8bit), so round them to even numbers"
    )


def _by_delay(section: Section, source: str, target: str, weight: IntArray, delay: IntArray) -> list[Connection]:
    """One connection per delay, each with the synapses of that delay and zeros elsewhere."""
    fitted, exponent = _fit(section, "weight", weight)
    waits = np.unique(delay[weight != 0]) if weight.any() else np.zeros(1, np.int64)
    return [
        Connection(
            source=source,
            target=target,
            synapse=Dense(np.where(delay == d, fitted, np.int8(0))),
            weight_exponent=exponent,
            delay=int(d),
            name="" if len(waits) == 1 else f"{source}->{target}:delay{int(d)}",
        )
        for d in waits
    ]


def _delay(section: Section, shape: tuple[int, ...], ours: bool, population: Population) -> IntArray:
    """Delay of every synapse, ``[N_out, N_in]``."""
    if "delay" not in section.names:
        return np.zeros(shape, np.int64)
    given = section.numbers("delay")
    if not given.size or not (given.min() >= 0 and np.floor(given.max()) <= MAX_DELAY):  # true for nan too
        section.refuse(f"has values outside 0..{MAX_DELAY} (lava-dl would clip them)", "delay")
    given = np.floor(given).astype(np.int64)  # as slayer does
    n_out, n_in = shape
    if given.size == 1 and given.ndim <= 1:
        full = np.broadcast_to(given.reshape(()), shape)
    elif given.shape == (n_out,):
        full = np.broadcast_to(given[:, None], shape)
    elif given.shape == (n_in,):
        full = np.broadcast_to(given[None, :], shape)
    elif given.shape == shape:
        full = given
    else:
        section.refuse(f"has shape {given.shape} in a layer of {n_in} inputs and {n_out} neurons", "delay")
    if full.any() and population.bias.any() and not ours:
        raise UnsupportedError(
            f"{section.file}: {section.where}: delays and biases in one layer; slayer delays what a neuron sends, "
            "lava-dl's loader what it receives, and with a bias these differ; train without one of them"
        )
    return full


def _population(section: Section, name: str, shape: Shape, neuron: Section | None) -> Population:
    bias = _bias(section, shape) if section.text("type") != "input" else np.zeros(1, np.int64)
    if neuron is None:  # lava-dl's default: the membrane is the sum of all input so far
        return Population(name=name, shape=shape, reset="none", du=0, dv=4096, bias=bias)
    _check_neuron(neuron)
    threshold = neuron.integer("vThMant", 0, 2**24)
    spikes = threshold < NEVER_SPIKES
    return Population(
        name=name,
        shape=shape,
        threshold=threshold << UNIT_BITS if spikes else 0,
        reset="zero" if spikes else "none",
        du=neuron.integer("iDecay", 0, 4096),
        dv=neuron.integer("vDecay", 0, 4096),
        bias=bias,
    )


def _check_neuron(neuron: Section) -> None:
    kind = neuron.text("type")

    def refuse(what: str) -> None:
        raise UnsupportedError(f"{neuron.file}: {neuron.where}: {what}")

    if kind not in ("CUBA", "LOIHI"):
        known = {"SDNN": "sigma-delta neurons", "RF": "resonate-and-fire neurons"}
        what = next((text for start, text in known.items() if start in kind), "neurons that lava-dl's loader fails on")
        refuse(f"type {kind!r:.40}: {what}; a description has current-based LIF neurons (CUBA)")
    unknown = sorted(set(neuron.names) - _NEURON_KEYS - (_LEGACY_KEYS if kind == "LOIHI" else set()))
    if unknown:
        refuse(
            f"unknown dataset {unknown[0]!r:.60}, which lava-dl's loader leaves out or fails on "
            "(weight_exp comes from slayer's WgtScaleBatchNorm); train without it"
        )
    if "gradedSpike" in neuron.names and bool(neuron.numbers("gradedSpike").any()):
        refuse(
            "gradedSpike is set: in slayer its spikes carry the membrane, and lava-dl's loader sends plain ones; "
            "train without it"
        )
    if "refDelay" in neuron.names and neuron.integer("refDelay", 0, 2**16) > 1:
        refuse("refDelay above 1; neither slayer's CUBA neuron nor lava-dl's loader has a refractory period")
    if "wgtExp" in neuron.names and neuron.integer("wgtExp", *_ANY) != 0:
        refuse("wgtExp is not 0, and lava-dl's loader ignores it; scale the weights instead")


def _bias(section: Section, shape: Shape) -> IntArray:
    """Bias in state units, broadcastable to ``shape``."""
    if "bias" not in section.names:
        return np.zeros(1, np.int64)
    bias = section.integers("bias", *BIAS_INT16) << UNIT_BITS
    if len(shape) == 3 and bias.shape == shape[::-1]:  # Lava's order (X, Y, C)
        return bias.transpose(2, 1, 0)
    if bias.size not in (1, shape[0]) or bias.ndim > 1:
        section.refuse(f"has shape {bias.shape} in a layer of shape {shape}", "bias")
    return bias.reshape(-1, *[1] * (len(shape) - 1))  # one per channel


def _warn_of_packing(section: Section, parts: list[IntArray]) -> None:
    """Say where lava-dl's loader would not run the weights of the file; the description has those of the file."""
    reason = why_inexact(parts)
    if reason:
        warnings.warn(f"{section.file}: {section.where}: {reason}", UserWarning, stacklevel=6)
