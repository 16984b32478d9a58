"""From a real-valued network in steps to a description's integers, on Loihi's grids.

As in :mod:`.quantization`, a population has one scale: ``m`` steps of 64 state units per real unit. A connection
stores ``round(W m / 2^e)``, with ``e`` the least exponent (0 or more) for which its largest weight fits its bits, so
connections of different size into one population all keep their resolution. ``m`` is as large as weights, bias,
threshold and the worst-case current allow.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import RecipeError, UnsupportedError
from ...network import DECAY_ONE, INPUT, Connection, Input, Network, Population, Readout
from ..folding import FloatArray
from ..quantization import (
    BIAS_EXPONENT,
    BIAS_MANTISSA,
    CURRENT,
    FRACTION_BITS,
    STATE_BITS,
    STEP,
    THRESHOLD_MANTISSA,
    WEIGHT_EXPONENT,
    QuantizeConfig,
    bias_exponent,
    quantized_input,
    weight_scale,
)
from .linear import RealSynapse
from .real_network import RealConnection, RealNetwork, RealPopulation


@dataclass(frozen=True, eq=False)
class _Weights:
    """A connection into one population, ready to be rounded at any scale."""

    connection: RealConnection
    synapse: RealSynapse  # on what the source sends, integers of the input included
    bits: int
    finest: float  # largest scale at which the weights fit, without an exponent
    low: int  # of what the source sends
    high: int

    def exponent(self, scale: float) -> int:
        return 0 if scale <= self.finest else max(0, math.ceil(math.log2(scale / self.finest) - 1e-9))

    def integers(self, scale: float) -> npt.NDArray[np.int64]:
        limit = 2 ** (self.bits - 1) - 1
        rounded = np.rint(self.synapse.weight * (scale / 2 ** self.exponent(scale)))
        return np.clip(rounded, -limit, limit).astype(np.int64)

    def reach(self, scale: float) -> int:
        """Largest magnitude of ``W x`` in steps of 64."""
        flat = self.integers(scale).reshape(len(self.synapse.weight), -1) << self.exponent(scale)
        ends = flat * self.low, flat * self.high
        return max(int(np.maximum(*ends).sum(1).max()), -int(np.minimum(*ends).sum(1).min()))


def quantize_real(
    real: RealNetwork, config: QuantizeConfig, calibration: npt.ArrayLike | None, metadata: Mapping[str, Any]
) -> Network:
    """Integers for a real-valued network in steps.

    Raises
    ------
    RecipeError
        If ``config.weight_bits`` names a population that does not exist.
    UnsupportedError
        If a population does not survive the rounding; the message names it.
    """
    names = [p.name for p in real.populations]
    if not isinstance(config.weight_bits, int):
        unknown = sorted(set(config.weight_bits) - set(names))
        if unknown:
            raise RecipeError(f"weight_bits: there is no population {unknown[0]!r}; there are {', '.join(names)}")
    known = config.input_range is not None or calibration is not None
    net_input = quantized_input(real.input_shape, config, calibration) if known else Input(shape=real.input_shape)
    populations: list[Population] = []
    connections: list[Connection] = []
    report: list[dict[str, Any]] = []
    for p in real.populations:
        into = [c for c in real.connections if c.target == p.name]
        made, joined, said = _quantized(p, into, real.steps, net_input, config)
        populations.append(made)
        connections += joined
        report.append(said)
    spikes = next(p for p in real.populations if p.name == real.readout).reset != "none"
    return Network(
        name=real.name,
        steps=real.steps,
        input=net_input,
        populations=tuple(populations),
        connections=tuple(connections),
        readout=Readout(population=real.readout, kind="count" if spikes else "membrane"),
        labels=real.labels,
        metadata={**metadata, "quantization": {"settings": config.model_dump(mode="json"), "populations": report}},
    )


def _quantized(
    p: RealPopulation, into: list[RealConnection], steps: int, net_input: Input, config: QuantizeConfig
) -> tuple[Population, list[Connection], dict[str, Any]]:
    where = f"population {p.name!r}"
    bits = config.bits(p.name)
    bias = p.bias
    weights: list[_Weights] = []
    for c in into:
        synapse, offset = c.synapse, None
        low, high = 0, 1
        if c.source == INPUT:
            synapse, offset = _on_integers(where, c, net_input, p)
            low, high = min(net_input.low, 0), max(net_input.high, 0)
        if offset is not None:
            bias = bias + offset
        if not np.isfinite(synapse.weight).all():
            raise UnsupportedError(f"{where}: weights from {c.source!r} are not finite")
        if synapse.weight.any():  # a connection of zeros is none
            finest = weight_scale(synapse.weight, 2 ** (bits - 1) - 1, config)
            if not 0 < finest < math.inf:
                raise UnsupportedError(f"{where}: weights from {c.source!r} are too small for double precision")
            weights.append(_Weights(c, synapse, bits, finest, low, high))
    if not np.isfinite([p.threshold, p.reset_amount]).all() or not np.isfinite(bias).all():
        raise UnsupportedError(f"{where}: its bias or threshold is not finite")
    if not weights and into and not bias.any():
        raise UnsupportedError(f"{where}: all weights into it are zero; nothing can be quantized")
    scale, limited_by = _scale(p, weights, bias, steps, bits)
    connections = []
    for w in weights:
        integers = w.integers(scale)
        if not integers.any():
            raise UnsupportedError(
                f"{where}: all weights from {w.connection.source!r} round to zero, because the {limited_by} of the "
                "population is at its limit; use fewer input levels or rescale the layer"
            )
        connections.append(
            Connection(
                source=w.connection.source,
                target=p.name,
                name=w.connection.name,
                synapse=w.synapse.integers(integers),
                weight_bits=bits,
                weight_exponent=w.exponent(scale),
                delay=w.connection.delay,
            )
        )
    unit = scale * STEP
    dv = round(DECAY_ONE * (1 - p.keep_v))
    exponent = bias_exponent(bias * unit, leaky=dv != 0)
    population = Population(
        name=p.name,
        shape=p.shape,
        reset=p.reset,
        du=round(DECAY_ONE * (1 - p.keep_u)),
        dv=dv,
        bias=(np.rint(bias * unit / 2**exponent) * 2**exponent).astype(np.int64),
        fraction_bits=FRACTION_BITS,
        state_bits=STATE_BITS,
        scale=unit,
        **_levels(where, p, scale, on_grid=dv == 0),
    )
    errors = [np.abs(w.integers(scale) * 2.0 ** w.exponent(scale) / scale - w.synapse.weight).max() for w in weights]
    largest = [np.abs(w.synapse.weight).max() for w in weights]
    said = {
        "name": p.name,
        "weight_bits": bits,
        "scale": scale,
        "limited_by": limited_by,
        "weight_error_max": max((float(e / m) for e, m in zip(errors, largest, strict=True)), default=0.0),
        "decay_error": max(
            abs(population.dv / DECAY_ONE - (1 - p.keep_v)), abs(population.du / DECAY_ONE - (1 - p.keep_u))
        ),
    }
    return population, connections, said


def _on_integers(
    where: str, c: RealConnection, net_input: Input, p: RealPopulation
) -> tuple[RealSynapse, FloatArray | None]:
    """Weights on the input's integers ``q`` where the real input is ``zero + scale q``, and what ``zero`` adds."""
    if net_input.scale.size != 1:
        raise RecipeError("input_mean and input_std: give one number each; channels cannot differ with NIR")
    synapse = replace(c.synapse, weight=c.synapse.weight * float(net_input.scale.flat[0]))
    if not net_input.zero.any():
        return synapse, None
    if p.keep_u != 0.0 or c.delay:
        raise UnsupportedError(f"{where}: an input with an offset (input_mean) before a current that decays or a delay")
    constant = np.broadcast_to(net_input.zero, (1, *net_input.shape))
    return synapse, c.synapse(constant, p.shape)[0]


def _scale(p: RealPopulation, weights: list[_Weights], bias: FloatArray, steps: int, bits: int) -> tuple[float, str]:
    """``m`` and what keeps it from being larger."""
    ceilings: dict[str, float] = {}
    if np.any(bias):
        ceilings["bias"] = BIAS_MANTISSA * 2**BIAS_EXPONENT / (STEP * float(np.abs(bias).max()))
    if p.reset != "none" and p.threshold > 0:
        ceilings["threshold"] = THRESHOLD_MANTISSA / max(p.threshold, p.reset_amount)
    if not weights:  # nothing but a bias
        return min(64.0, *ceilings.values()), "bias"
    # The largest weights fill their bits; smaller ones elsewhere may ask for a larger m and leave the exponent to them.
    coarse, fine = min(w.finest for w in weights), max(w.finest for w in weights)
    least = coarse * 2 ** (8 - bits)  # fewer bits take the upper ones of 8, so that thresholds keep their resolution
    ratio = math.floor(math.log2(fine) - math.log2(coarse) + 1e-9)
    scale, limited_by = coarse * 2 ** min(max(ratio, 8 - bits), WEIGHT_EXPONENT), "weights"
    while scale > least and (_ceiling(scale, ceilings) or _overflows(p, weights, bias, scale, steps)):
        scale /= 2
    tightest = _ceiling(scale, ceilings)
    if tightest:
        scale, limited_by = ceilings[tightest], tightest
    while True:
        over = _overflows(p, weights, bias, scale, steps)
        if not over:
            return scale, limited_by
        scale, limited_by = scale * min(1 / over, 0.999), "current" if p.reset != "none" else "membrane"


def _ceiling(scale: float, ceilings: dict[str, float]) -> str | None:
    """Which ceiling is lowest, if ``scale`` is above it."""
    lowest = min(ceilings, key=lambda name: ceilings[name], default=None)
    return lowest if lowest is not None and scale > ceilings[lowest] else None


def _overflows(p: RealPopulation, weights: list[_Weights], bias: FloatArray, scale: float, steps: int) -> float:
    """How many times too large the worst case is: of the current and, for a readout, of the membrane; 0 if it fits."""

    def after_all_steps(keep: float) -> float:
        return steps if keep == 1.0 else min(steps, (1 - keep**steps) / (1 - keep))

    current = sum(w.reach(scale) for w in weights) * after_all_steps(p.keep_u)
    worst = current / CURRENT
    if p.reset == "none":
        membrane = (current + scale * float(np.abs(bias).max())) * after_all_steps(p.keep_v)
        worst = max(worst, membrane / CURRENT)
    return worst if worst > 1 else 0.0


def _levels(where: str, p: RealPopulation, scale: float, *, on_grid: bool) -> dict[str, int]:
    """Threshold and reset amount in state units, multiples of 64.

    Without a leak membranes are multiples of 64, so ``v > threshold`` is exact after rounding the threshold down.
    """
    if p.reset == "none":
        return {}
    fires_above = p.threshold * scale
    theta = math.floor(fires_above + 1e-9) if on_grid else round(fires_above)
    if p.reset == "zero":
        return {"threshold": STEP * theta}
    amount = round(p.reset_amount * scale)
    if amount == 0:
        raise UnsupportedError(
            f"{where}: its threshold {p.threshold:g} rounds to zero, the weights being so much larger; "
            "rescale the layer"
        )
    return {"threshold": STEP * theta, "reset_amount": STEP * amount}
