"""Post-training quantization: from a folded real-valued network to the integers of a description.

Thresholds belong to populations, so each population has one scale ``S``: weight steps per real unit. Weights of
fewer than 8 bits count ``2^e = 2^(8 - bits)`` each (they take the upper bits of an 8-bit weight, as on Loihi), so that
thresholds and biases keep their resolution; a step is ``64 * 2^e`` state units:

    W_q = round(S W')        state units = 64 2^e S x real        for bias b', threshold alpha th, reset amount th

Where several branches meet, ``S`` follows the branch with the smallest weights, and those of a branch with larger ones
count ``2^d`` times as much, ``W_q = round(S W' / 2^d)``: so a strong shortcut does not take the bits of the convolution
beside it, and every branch fills at least half of its range.

each on the grid that Loihi's registers have (LOIHI constants below). For IF every membrane is then a multiple of 64,
and ``theta = 64 (T - 1)`` with ``T = ceil(2^e S alpha th)`` is exactly "fires at alpha th or above".

Importing this module does not import torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..bounds import population_bounds
from ..errors import DataError, RecipeError, UnsupportedError
from ..network import DECAY_ONE, INPUT, Connection, Input, Network, Population, Readout, Shape
from .folding import Affine, Branch, FloatArray, Folded, FoldedLayer

if TYPE_CHECKING:
    from .nir.real_network import RealNetwork

FRACTION_BITS = 6  # LOIHI: synaptic input and threshold mantissa are shifted left by 6
STEP = 2**FRACTION_BITS  # state units in one step of an 8-bit weight, a threshold, or a bias of exponent 6
STATE_BITS = 24  # LOIHI: u wraps and v saturates at 24 bits with sign
CURRENT = (2 ** (STATE_BITS - 1) - 1) // STEP  # largest synaptic sum of a time step that does not wrap
THRESHOLD_MANTISSA = 2**17 - 1  # LOIHI: 17-bit threshold mantissa, in steps of 64
BIAS_MANTISSA = 4095  # LOIHI: 13-bit signed bias mantissa (nengo-loihi keeps to ±4095)
WEIGHT_EXPONENT = 7  # LOIHI: largest exponent of a connection's weights
BIAS_EXPONENT = 7  # LOIHI: 3-bit bias exponent, shared by a population

WeightBits: TypeAlias = Annotated[int, Field(ge=2, le=8)]


RANGE_CHUNK = 2**20  # input values looked at at a time; a few copies of them exist at once
Clipping: TypeAlias = Annotated[float, Field(ge=1)] | Literal["mse", "percentile"]


class QuantizeConfig(BaseModel):
    """The recipe's section ``[quantize]``."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    weight_bits: WeightBits | dict[str, WeightBits] = Field(
        8, description="bits of a weight, sign included: one number, or one for each layer by name (others have 8)"
    )
    weight_scale: Literal["max", "percentile", "mse", "spikes"] = Field(
        "max",
        description="the largest weight at the end of the range, a percentile there, least square error, or fewest "
        "spikes that differ from the float network's on calibration data",
    )
    clipping: dict[str, Clipping] = Field(
        default_factory=dict,
        description="with weight_scale spikes: by layer, how far the scale exceeds that of max, or the method that "
        "finds it (mse, percentile); found by calibration where it is left out",
    )
    bias_correction: bool = Field(
        False, description="shift biases so that mean currents on calibration data stay those of the float network"
    )
    calibration_samples: int = Field(256, ge=1, description="training samples for spikes and bias_correction")
    percentile: float = Field(99.9, gt=50, le=100, description="of the absolute weights, with weight_scale percentile")
    reset: Literal["subtract", "zero"] | None = Field(
        None,
        description="of the deployed neurons, if not the one that they were trained with (network.reset): zero swaps "
        "in the hard reset of stock chips",
    )
    input_bits: int = Field(8, ge=1, le=16, description="bits of an input value; with a sign if it can be negative")
    input_levels: int | None = Field(
        None, ge=1, lt=2**16, description="steps above zero of an input value, instead of input_bits: 16 for the digits"
    )
    input_range: tuple[float, float] | None = Field(
        None, description="smallest and largest real input (before input_mean and input_std); default: as in the data"
    )
    input_mean: tuple[float, ...] = Field(
        (), description="per channel: the network was trained on (x - mean) / std; integers then stand for x itself"
    )
    input_std: tuple[float, ...] = Field((), description="per channel, see input_mean")

    @model_validator(mode="after")
    def _consistent(self) -> QuantizeConfig:
        if self.input_range is not None and self.input_range[0] >= self.input_range[1]:
            raise ValueError(f"input_range: {list(self.input_range)} is empty")
        if len(self.input_mean) != len(self.input_std):
            raise ValueError("input_mean and input_std: give both, of equal length")
        if any(s <= 0 for s in self.input_std):
            raise ValueError(f"input_std: {list(self.input_std)} is not positive")
        return self

    def bits(self, layer: str) -> int:
        """Weight bits of a layer."""
        return self.weight_bits if isinstance(self.weight_bits, int) else self.weight_bits.get(layer, 8)


@dataclass(frozen=True)
class LayerReport:
    """What rounding did to one layer, all its branches together.

    Attributes
    ----------
    name : str
    weight_bits : int
    scale : float
        ``S``: weight steps per real unit, of the finest branch.
    limited_by : str
        What kept ``S`` from being larger: "weights" (the ordinary case), "bias", "threshold" or "current".
    weight_error_max, weight_error_rms : float
        ``|W_q / S - W'|``, relative to the largest ``|W'|``.
    zero_weights : float
        Part of the non-zero real weights that became zero.
    clipped_weights : float
        Part of the weights beyond the range.
    bias_error_max, threshold_error, reset_error : float
        Relative to the real threshold; of an accumulator relative to the largest ``|W'|``.
    bias_exponent : int
        Of Loihi's bias register.
    can_saturate : bool
        Whether a membrane could leave 24 bits in the worst case (a safe, not tight bound).
    """

    name: str
    weight_bits: int
    scale: float
    limited_by: str
    weight_error_max: float
    weight_error_rms: float
    zero_weights: float
    clipped_weights: float
    bias_error_max: float
    threshold_error: float
    reset_error: float
    bias_exponent: int
    can_saturate: bool


@dataclass(frozen=True, eq=False)
class Quantized:
    """Result of :func:`quantize_with_latent`.

    Attributes
    ----------
    network : Network
    latent : dict of float64 arrays
        The weights (in weight steps) and biases (in state units) before rounding, by their names in
        ``network.tensors()``: where bit-true training starts from.
    report : tuple of LayerReport
    """

    network: Network
    latent: Mapping[str, FloatArray]
    report: tuple[LayerReport, ...]


def quantize(folded: Folded | RealNetwork, config: QuantizeConfig, calibration: npt.ArrayLike | None = None) -> Network:
    """Quantize a folded network; see :func:`quantize_with_latent`.

    Or a network in steps, as :func:`from_torch` gives where neurons have currents or recurrent weights.
    """
    if not isinstance(folded, Folded):
        from .nir.rounding import quantize_real

        return quantize_real(folded, config, calibration, {})
    return quantize_with_latent(folded, config, calibration).network


def quantize_with_latent(folded: Folded, config: QuantizeConfig, calibration: npt.ArrayLike | None = None) -> Quantized:
    """Quantize a folded network, and keep what the integers were before rounding.

    Parameters
    ----------
    folded : Folded
    config : QuantizeConfig
    calibration : float [samples, *input_shape] (or [steps, samples, ...]), optional
        Inputs as the network was trained on, for their range; may be left out if ``config.input_range`` is given.

    Raises
    ------
    RecipeError
        If the configuration names an unknown layer.
    DataError
        If the input's range is not known, or calibration data do not fit.
    UnsupportedError
        If a layer does not survive the rounding; the message names it.
    """
    names = [layer.name for layer in folded.layers]
    if not isinstance(config.weight_bits, int):
        unknown = sorted(set(config.weight_bits) - set(names))
        if unknown:
            raise RecipeError(f"quantize.weight_bits: there is no layer {unknown[0]!r}; there are {', '.join(names)}")
    unknown = sorted(set(config.clipping) - set(names))
    if unknown:
        raise RecipeError(f"quantize.clipping: there is no layer {unknown[0]!r}; there are {', '.join(names)}")
    if config.bias_correction and not folded.corrected:
        raise RecipeError(
            "quantize.bias_correction: needs calibration data: use lapilli.export.calibration.calibrate first"
        )
    net_input = quantized_input(folded.input_shape, config, calibration)
    sources = {INPUT: net_input} | {layer.name: Input(shape=layer.shape) for layer in folded.layers}
    made: list[_Made] = []
    for layer in folded.layers:
        bias = layer.affine.bias.reshape(-1, *[1] * (len(layer.shape) - 1))
        branches = []
        for branch in folded.branches(layer):
            affine = branch.affine
            if branch.source == INPUT:
                if layer.current_beta and np.any(net_input.zero):
                    raise UnsupportedError(
                        f"layer {layer.name!r}: has synaptic current, so the input's offset is no constant bias of its "
                        "membrane; leave out quantize.input_mean and input_std"
                    )
                affine, bias = _after_input(affine, bias, net_input)
            branches.append(replace(branch, affine=affine))
        made.append(_quantize_layer(layer, branches, bias, config, sources))
    network = Network(
        name=folded.name,
        steps=folded.steps,
        input=net_input,
        populations=tuple(m.population for m in made),
        connections=tuple(c for m in made for c in m.connections),
        readout=_readout(made[-1].population, folded),
        labels=folded.labels,
    )
    report = tuple(_report(layer, m, network) for layer, m in zip(folded.layers, made, strict=True))
    metadata = {"settings": config.model_dump(mode="json"), "layers": [asdict(r) for r in report]}
    trained_by = {} if folded.gradient == "dsr" else {"gradient": folded.gradient}
    latent = {f"{c.name}/weight": w for m in made for c, w in zip(m.connections, m.weight_steps, strict=True)}
    latent |= {f"{m.population.name}/bias": m.bias_units for m in made}
    return Quantized(replace(network, metadata={"quantization": metadata, **trained_by}), latent, report)


def _readout(last: Population, folded: Folded) -> Readout:
    if last.reset == "none":
        return Readout(population=last.name, kind="membrane")
    if last.dv and folded.read == "weighted":
        return Readout(population=last.name, kind="weighted_count", decay=last.dv)
    return Readout(population=last.name)


def quantized_input(shape: Shape, config: QuantizeConfig, calibration: npt.ArrayLike | None) -> Input:
    """The integer input: ``x = zero + scale q`` with ``q`` in ``low..high``."""
    mean, std = _normalization(shape, config)
    least, most = config.input_range or input_range(shape, config, calibration)
    # Rounding in float normalization must not turn a range that starts at 0 into one with a sign.
    signed = least < -1e-6 * max(abs(least), abs(most))
    reach = max(abs(least), abs(most)) if signed else most
    if reach <= 0:
        raise DataError(
            f"the input's range {least:g}..{most:g} has no width; give other calibration data or input_range"
        )
    high = config.input_levels or (2 ** (config.input_bits - signed) - 1 or 1)
    return Input(shape=shape, low=-high if signed else 0, high=high, scale=reach / (high * std), zero=-mean / std)


def input_range(shape: Shape, config: QuantizeConfig, calibration: npt.ArrayLike | None) -> tuple[float, float]:
    """Smallest and largest real input, before normalization; a part of the samples at a time.

    Raises
    ------
    DataError
        If there are none, or they are not finite or of another shape.
    """
    if calibration is None:
        raise DataError("the range of the input is not known: give calibration data, or quantize.input_range")
    data = np.asarray(calibration)
    extra = data.ndim - len(shape)
    if data.size == 0 or extra < 1 or data.shape[extra:] != shape or data.dtype.kind not in "biuf":
        raise DataError(f"calibration data of shape {data.shape} ({data.dtype}) are empty or not of shape {shape}")
    mean, std = _normalization(shape, config)
    flat = data.reshape(-1, *shape)
    rows = max(1, RANGE_CHUNK // math.prod(shape))
    least, most = math.inf, -math.inf
    for start in range(0, len(flat), rows):
        raw = np.asarray(flat[start : start + rows], np.float64) * std + mean
        if not np.isfinite(raw).all():
            raise DataError(f"calibration data of shape {data.shape} are not finite")
        least, most = min(least, float(raw.min())), max(most, float(raw.max()))
    return least, most


def _normalization(shape: Shape, config: QuantizeConfig) -> tuple[FloatArray, FloatArray]:
    """Mean and standard deviation, to be broadcast to the input's shape."""
    if not config.input_mean:
        return np.zeros((1,)), np.ones((1,))
    if len(config.input_mean) not in (1, shape[0]):
        raise RecipeError(f"quantize.input_mean: {len(config.input_mean)} numbers for an input of shape {shape}")
    per_channel = (-1, *[1] * (len(shape) - 1))
    return np.array(config.input_mean).reshape(per_channel), np.array(config.input_std).reshape(per_channel)


def _after_input(affine: Affine, bias: FloatArray, net_input: Input) -> tuple[Affine, FloatArray]:
    """The first layer on integers: ``W (zero + scale q) + b`` as weights on ``q`` and a bias.

    Padding is zero in training and zero in integers, so a ``zero`` that is not 0 adds less at the border: the bias
    is then one for each neuron.
    """
    shape = net_input.shape
    if np.any(net_input.zero):
        bias = bias + affine(np.broadcast_to(net_input.zero, (1, *shape)))[0]
    scale = net_input.scale
    if affine.kind == "dense":
        factor = np.broadcast_to(scale, shape).reshape(1, -1)
    elif affine.kind == "scale":
        factor = scale.reshape(-1)
    elif scale.size == 1:
        factor = scale.reshape(1, 1, 1, 1)
    else:
        # Output channel o of group g reads the input channels of group g.
        of_group = scale.reshape(affine.groups, 1, -1)
        repeated = np.repeat(of_group, affine.weight.shape[0] // affine.groups, axis=1)
        factor = repeated.reshape(*affine.weight.shape[:2], 1, 1)
    return replace(affine, weight=affine.weight * factor), bias


@dataclass(frozen=True, eq=False)
class _Made:
    population: Population
    connections: tuple[Connection, ...]
    weights: tuple[FloatArray, ...]  # real, of each connection, on what its source sends
    bias: FloatArray  # real
    scale: float
    finer: int  # exponent of the weights of the finest connection
    limited_by: str
    bias_exponent: int

    @property
    def unit(self) -> float:
        """State units per real unit."""
        return self.scale * 2**self.finer * STEP

    @property
    def weight_scales(self) -> list[float]:
        """Weight steps per real unit of each connection."""
        return [self.scale / 2 ** (c.weight_exponent - self.finer) for c in self.connections]

    @property
    def weight_steps(self) -> list[FloatArray]:
        return [w * s for w, s in zip(self.weights, self.weight_scales, strict=True)]

    @property
    def bias_units(self) -> FloatArray:
        return self.bias * self.unit


def _quantize_layer(
    layer: FoldedLayer,
    branches: Sequence[Branch],
    bias: FloatArray,
    config: QuantizeConfig,
    sources: Mapping[str, Input],
) -> _Made:
    where = f"layer {layer.name!r}"
    bits = config.bits(layer.name)
    limit = 2 ** (bits - 1) - 1
    weights = tuple(b.affine.weight for b in branches)
    if not all(np.isfinite(w).all() for w in weights) or not np.isfinite(bias).all():
        raise UnsupportedError(f"{where}: weights or biases are not finite; the training has diverged")
    largest = max(float(np.abs(w).max()) for w in weights)
    if largest == 0:
        raise UnsupportedError(f"{where}: all weights are zero; nothing can be quantized")
    full = [weight_scale(w, limit, config, layer.name) if w.any() else math.inf for w in weights]
    # The weight exponent; less where branches differ so much that the coarsest would need more than there are.
    finer = max(0, min(8 - bits, WEIGHT_EXPONENT - _coarser(max(s for s in full if s < math.inf), min(full))))
    # S is the least of these: each is where something is full.
    ceilings = {"weights": _joint_scale(weights, full, limit, WEIGHT_EXPONENT - finer)}
    if np.any(bias):
        ceilings["bias"] = BIAS_MANTISSA * 2**BIAS_EXPONENT / (2**finer * STEP * float(np.abs(bias).max()))
    if layer.reset != "none":
        ceilings["threshold"] = THRESHOLD_MANTISSA / (2**finer * max(layer.threshold, layer.reset_amount))
    limited_by = min(ceilings, key=lambda name: ceilings[name])
    scale = ceilings[limited_by]
    while True:
        coarser = [_coarser(scale, s) for s in full]
        integers = [np.clip(np.rint(w * (scale / 2**d)), -limit, limit) for w, d in zip(weights, coarser, strict=True)]
        reach = sum(
            _largest_current(q, sources[b.source]) * 2 ** (finer + d)
            for q, b, d in zip(integers, branches, coarser, strict=True)
        )
        if reach <= CURRENT:
            break
        scale, limited_by = scale * min(CURRENT / reach, 0.999), "current"
    for branch, q in zip(branches, integers, strict=True):
        if branch.affine.weight.any() and not q.any():
            which = f" from {branch.source!r}" if len(branches) > 1 else ""
            raise UnsupportedError(
                f"{where}: all weights{which} round to zero at {bits} bits, because {limited_by} is at its limit "
                f"(largest weight {np.abs(branch.affine.weight).max():.3g}, {scale:.3g} steps per unit); "
                "use fewer input levels or retrain the layer"
            )
    unit = scale * 2**finer * STEP  # state units per real unit
    exponent = bias_exponent(bias * unit, leaky=not _on_grid(layer))
    population = Population(
        name=layer.name,
        shape=layer.shape,
        reset=layer.reset,
        du=round(DECAY_ONE * (1.0 - layer.current_beta)),
        dv=0 if layer.beta == 1.0 else round(DECAY_ONE * (1.0 - layer.beta)),
        bias=(np.rint(bias * unit / 2**exponent) * 2**exponent).astype(np.int64),
        fraction_bits=FRACTION_BITS,
        state_bits=STATE_BITS,
        scale=unit,
        **_levels(where, layer, unit / STEP),
    )
    connections = tuple(
        Connection(
            source=branch.source,
            target=layer.name,
            synapse=branch.affine.synapse(q),
            weight_bits=bits,
            weight_exponent=finer + d,
            name=_connection_name(branches, i, layer.name),
        )
        for i, (branch, q, d) in enumerate(zip(branches, integers, coarser, strict=True))
    )
    return _Made(population, connections, weights, bias, scale, finer, limited_by, exponent)


def _coarser(scale: float, full: float) -> int:
    """``d``: how often a branch that is full at the scale ``full`` must be halved to fit at ``scale``."""
    return max(0, math.ceil(math.log2(scale / full))) if full < math.inf else 0


def _joint_scale(weights: Sequence[FloatArray], full: Sequence[float], limit: int, most: int) -> float:
    """``S`` of several branches as far as their weights decide it.

    The scale that fills one of the branches, up to a power of two, and has the least sum of squared errors; at most
    half of the finest branch's range stays empty. ``most``: the largest ``d`` that the exponents allow.
    """
    finite = [s for s in full if s < math.inf]
    finest = max(finite)

    def error(scale: float) -> float:
        total = 0.0
        for w, s in zip(weights, full, strict=True):
            steps = scale / 2 ** _coarser(scale, s)
            total += float(((np.clip(np.rint(w * steps), -limit, limit) / steps - w) ** 2).sum())
        return total

    candidates = {s * 2 ** math.floor(math.log2(finest / s)) for s in finite}
    best = min(sorted(candidates), key=error) if len(candidates) > 1 else finest
    return min(best, min(finite) * 2**most)


def _connection_name(branches: Sequence[Branch], i: int, target: str) -> str:
    """``source->target``, and a number where several branches come from one source."""
    source = branches[i].source
    earlier = sum(b.source == source for b in branches[:i])
    return f"{source}->{target}" + (f"#{earlier + 1}" if earlier else "")


def weight_scale(weight: FloatArray, limit: int, config: QuantizeConfig, layer: str = "") -> float:
    """``S`` as far as the weights decide it.

    Raises
    ------
    RecipeError
        If spikes are to decide and no calibration has found a clipping for the layer.
    """
    size = np.abs(weight)
    if config.weight_scale == "percentile":
        return limit / float(np.percentile(size[size > 0], config.percentile))
    largest = limit / float(size.max())
    if config.weight_scale == "max":
        return largest
    if config.weight_scale == "spikes":
        if layer not in config.clipping:
            raise RecipeError(
                f"quantize.weight_scale: 'spikes' needs calibration data for layer {layer!r}: use "
                "lapilli.export.calibration.calibrate first, or give quantize.clipping"
            )
        chosen = config.clipping[layer]
        if isinstance(chosen, str):
            return weight_scale(weight, limit, config.model_copy(update={"weight_scale": chosen}))
        return largest * chosen
    candidates = largest * np.linspace(1.0, 4.0, 61)
    errors = [np.mean((np.clip(np.rint(weight * s), -limit, limit) / s - weight) ** 2) for s in candidates]
    return float(candidates[int(np.argmin(errors))])


def _largest_current(integers: FloatArray, source: Input) -> float:
    """Largest magnitude of ``W q`` in one step."""
    low, high = min(source.low, 0), max(source.high, 0)
    flat = integers.reshape(len(integers), -1)
    return max(
        float(np.maximum(flat * low, flat * high).sum(1).max()),
        -float(np.minimum(flat * low, flat * high).sum(1).min()),
    )


def bias_exponent(bias: FloatArray, *, leaky: bool) -> int:
    """Exponent of Loihi's bias register for these state units.

    Without a leak 6 if it fits, so that membranes stay on the weights' grid; with a leak the finest that fits.
    """
    exponent = 0 if leaky else FRACTION_BITS
    while exponent < BIAS_EXPONENT and np.rint(np.abs(bias).max() / 2**exponent) > BIAS_MANTISSA:
        exponent += 1
    return exponent


def _levels(where: str, layer: FoldedLayer, scale: float) -> dict[str, int]:
    """Threshold and reset amount in state units, multiples of 64."""
    if layer.reset == "none":
        return {}
    fire_at = layer.threshold * scale
    reset_amount = round(layer.reset_amount * scale)
    if layer.reset == "subtract" and reset_amount == 0:
        raise UnsupportedError(
            f"{where}: its threshold is {layer.reset_amount * scale:.2g} of Loihi's threshold steps and rounds to "
            "zero, the weights being so much larger; retrain the layer"
        )
    # IF: membranes are multiples of 64, so v > 64 (T - 1) is v >= 64 T. LIF: v takes all integers.
    theta = math.ceil(fire_at) - 1 if _on_grid(layer) else round(fire_at)
    return {"threshold": STEP * theta, "reset_amount": STEP * reset_amount}


def _on_grid(layer: FoldedLayer) -> bool:
    """Whether membranes stay multiples of a weight step: no decay."""
    return layer.beta == 1.0 and not layer.current_beta


def _report(layer: FoldedLayer, made: _Made, network: Network) -> LayerReport:
    weight = np.concatenate([w.ravel() for w in made.weights])
    largest = float(np.abs(weight).max())
    scales = np.repeat(made.weight_scales, [w.size for w in made.weights])
    integers = np.concatenate([c.synapse.weight.ravel() for c in made.connections])
    error = np.abs(integers / scales - weight) / largest
    bits = made.connections[0].weight_bits
    relative_to = made.unit * (layer.reset_amount or layer.threshold or largest)
    fires_at = made.population.threshold + (STEP if _on_grid(layer) else 0)
    spikes = layer.reset != "none"
    return LayerReport(
        name=layer.name,
        weight_bits=bits,
        scale=made.scale,
        limited_by=made.limited_by,
        weight_error_max=float(error.max()),
        weight_error_rms=float(np.sqrt((error**2).mean())),
        zero_weights=float(np.mean(integers[weight != 0] == 0)),
        clipped_weights=float(np.mean(np.abs(weight * scales) > 2 ** (bits - 1) - 0.5)),
        bias_error_max=float(np.abs(made.population.bias - made.bias_units).max()) / relative_to,
        threshold_error=abs(fires_at - layer.threshold * made.unit) / relative_to if spikes else 0.0,
        reset_error=abs(made.population.reset_amount - layer.reset_amount * made.unit) / relative_to,
        bias_exponent=made.bias_exponent,
        can_saturate=population_bounds(network, made.population).can_saturate,
    )
