"""What calibration data decide of a quantization: the clipping of weights, and a correction of biases.

Both look at one layer at a time, fed with the spikes of the float network (as "layer alone" in :mod:`.sensitivity`).
So what is chosen for a layer is the best of the candidates for that layer on these samples, whatever the others do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import UnsupportedError
from ..network import INPUT, Network
from ..recording import Executor, at_every_step
from .folding import FloatArray, Folded, FoldedLayer
from .quantization import QuantizeConfig, quantize_with_latent
from .sensitivity import Samples, layer_drive, layer_neurons, real_current, real_neurons

CLIPPINGS = tuple(2 ** (i / 8) for i in range(17))  # 1 to 4, as far as weight_scale "mse" looks


def calibrate(
    folded: Folded, config: QuantizeConfig, calibration: npt.ArrayLike | None, *, execute: Executor
) -> tuple[Folded, QuantizeConfig]:
    """Find what ``weight_scale = "spikes"`` and ``bias_correction`` ask for; without them, nothing changes.

    ``spikes``: of ``CLIPPINGS``, the one with the fewest (neuron, step, sample) where the layer's integers spike and
    the float layer does not, or the other way round; of a layer that does not spike, the one with the least squared
    error of the current. Of equal ones, the least clipping. ``bias_correction``: each channel's bias gets the mean
    current that rounding took away (Nagel et al., Data-Free Quantization, ICCV 2019, measured
    on data and for spiking layers).

    Parameters
    ----------
    folded : Folded
    config : QuantizeConfig
    calibration : float [samples, *input_shape] or [steps, samples, *input_shape]
        Training inputs; the first ``config.calibration_samples`` are used.
    execute : Executor
        Sums synapses, for example ``lapilli.sim.executors.find("fast")``.

    Returns
    -------
    folded : Folded
        With corrected biases.
    config : QuantizeConfig
        With ``clipping`` for every layer and ``bias_correction`` done and off.

    Raises
    ------
    DataError
        If the samples are absent or do not fit the network.
    UnsupportedError
        If a layer does not survive the rounding with any clipping; the message names it.
    """
    wanted = config.weight_scale == "spikes" and any(layer.name not in config.clipping for layer in folded.layers)
    if not wanted and not config.bias_correction:
        return folded, config
    samples = Samples.of(folded, () if calibration is None else calibration, None)
    first = slice(config.calibration_samples)
    samples = Samples(samples.x[:, first] if samples.axis else samples.x[first], None, samples.axis)
    ready = config.model_copy(update={"bias_correction": False})

    def quantized(network: Folded, clipping: float | None) -> Network:
        given = ready
        if clipping is not None:  # the same for all layers: each is looked at alone
            given = ready.model_copy(update={"clipping": {layer.name: clipping for layer in network.layers}})
        return quantize_with_latent(network, given, calibration).network

    if wanted:
        costs: dict[float, dict[str, float]] = {}
        refused: UnsupportedError | None = None
        for c in CLIPPINGS:
            try:
                network = quantized(folded, c)
            except UnsupportedError as error:  # few bits and little clipping: all weights of a layer round to zero
                refused = error
                continue
            costs[c] = _sum(folded, network, samples, execute, _disagreement)
        if refused is not None and not costs:
            raise refused
        best = {layer.name: min(costs, key=lambda c: costs[c][layer.name]) for layer in folded.layers}
        ready = ready.model_copy(update={"clipping": best | config.clipping})
    if config.bias_correction:
        excess = mean_excess(folded, quantized(folded, None), samples, execute=execute)
        folded = replace(folded, layers=tuple(_shifted(layer, excess[layer.name]) for layer in folded.layers))
    return folded, ready


def mean_excess(folded: Folded, network: Network, samples: Samples, *, execute: Executor) -> dict[str, FloatArray]:
    """By layer, what the integers' current has too much in each channel: mean over steps, places and samples, real."""
    return {name: total / len(samples) for name, total in _sum(folded, network, samples, execute, _excess).items()}


def _shifted(layer: FoldedLayer, excess: FloatArray) -> FoldedLayer:
    return replace(layer, affine=replace(layer.affine, bias=layer.affine.bias - excess))


_Measure = Callable[[Folded, FoldedLayer, Network, FloatArray, npt.NDArray[np.int64]], Any]


def _sum(folded: Folded, network: Network, samples: Samples, execute: Executor, measure: _Measure) -> dict[str, Any]:
    """Sum over samples of a measure of each layer alone."""
    totals: dict[str, Any] = {}
    for chunk, _ in samples.chunks(folded):
        for layer, current, drive in _layers_alone(folded, network, chunk, execute):
            found = measure(folded, layer, network, current, drive)
            totals[layer.name] = totals[layer.name] + found if layer.name in totals else found
    return totals


def _layers_alone(
    folded: Folded, network: Network, x: FloatArray, execute: Executor
) -> Iterator[tuple[FoldedLayer, FloatArray, npt.NDArray[np.int64]]]:
    """Each layer with its real current, and its synaptic sums in integers, both from the float network's spikes."""
    frames = x if x.ndim > len(folded.input_shape) + 1 else np.broadcast_to(x, (folded.steps, *x.shape))
    sent: dict[str, npt.NDArray[Any]] = {INPUT: frames}
    integers: dict[str, npt.NDArray[Any]] = {INPUT: at_every_step(network, network.input.encode(x))}
    for layer in folded.layers:
        current = real_current(folded, layer, sent)
        yield layer, current, layer_drive(network, network.population(layer.name), integers, execute)
        spikes = real_neurons(folded, layer, current).spikes
        sent |= spikes
        integers |= spikes


def _disagreement(
    folded: Folded, layer: FoldedLayer, network: Network, current: FloatArray, drive: npt.NDArray[np.int64]
) -> float:
    population = network.population(layer.name)
    if not population.spikes:
        return float(np.square(_real(network, layer, drive) - current).sum())
    alone = layer_neurons(population, drive).spikes[layer.name]
    return float((alone != real_neurons(folded, layer, current).spikes[layer.name]).sum())


def _excess(
    _folded: Folded, layer: FoldedLayer, network: Network, current: FloatArray, drive: npt.NDArray[np.int64]
) -> FloatArray:
    """By channel, what the integers' current has too much: mean over steps and places, sum over samples."""
    error = _real(network, layer, drive) - current
    by_channel = error.mean(0).reshape(error.shape[1], error.shape[2], -1)
    return by_channel.mean(2).sum(0)


def _real(network: Network, layer: FoldedLayer, drive: npt.NDArray[np.int64]) -> FloatArray:
    population = network.population(layer.name)
    assert population.scale is not None
    return (drive + population.bias) / population.scale
