"""What calibration data decide of a quantization: the clipping of weights, and a correction of biases.

Both look at one layer at a time, fed with the spikes of the float network (as "layer alone" in :mod:`.sensitivity`).
So what is chosen for a layer at some width is the best of the candidates for that layer on these samples, whatever the
other layers and their widths are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ..errors import DataError, UnsupportedError
from ..network import INPUT, Network
from ..recording import Executor, at_every_step
from .folding import FloatArray, Folded, FoldedLayer
from .quantization import Clipping, QuantizeConfig, input_range, quantize_with_latent
from .sensitivity import Samples, layer_drive, layer_neurons, real_current, real_neurons

_Key: TypeAlias = tuple[str, int]  # a layer and its weight bits
_Measure: TypeAlias = Callable[..., Any]  # (layer, network, current, spikes, drive) to something that can be added up

# How far a scale may exceed that of "max": 1 to 4, as far as "mse" looks; and what the other methods find.
CLIPPINGS: tuple[Clipping, ...] = (*(2 ** (i / 8) for i in range(17)), "mse", "percentile")


def calibrate(
    folded: Folded, config: QuantizeConfig, calibration: npt.ArrayLike | None, *, execute: Executor
) -> tuple[Folded, QuantizeConfig]:
    """Find what ``weight_scale = "spikes"`` and ``bias_correction`` ask for; without them, nothing changes.

    ``spikes``: of ``CLIPPINGS``, the one with the fewest (neuron, step, sample) where the layer's integers spike and
    the float layer does not, or the other way round; of a layer that does not spike, the one with the least squared
    error of the current. Of equal ones, the first. ``bias_correction``: each channel's bias gets the mean
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
        With ``clipping`` for every layer.

    Raises
    ------
    DataError
        If the samples are absent or do not fit the network.
    UnsupportedError
        If a layer does not survive the rounding with any clipping; the message names it.
    """
    return Calibrator(folded, config, calibration, execute=execute)(config.weight_bits)


class Calibrator:
    """:func:`calibrate` for many choices of weight bits; what was found for a layer at some width is kept.

    Parameters are those of :func:`calibrate`.
    """

    def __init__(
        self, folded: Folded, config: QuantizeConfig, calibration: npt.ArrayLike | None, *, execute: Executor
    ) -> None:
        self.folded = folded
        self.config = config
        self._execute = execute
        self._clipping: dict[tuple[str, int], Clipping] = {}
        self._excess: dict[tuple[str, int], FloatArray] = {}
        self._corrects = config.bias_correction and not folded.corrected
        if config.weight_scale == "spikes" or self._corrects:
            self._samples = _first_samples(folded, config, calibration)
            given = config.input_range or input_range(folded.input_shape, config, calibration)
            self._uniform: dict[tuple[int, Clipping | None], Network | None] = {}
            self._ready = config.model_copy(update={"input_range": given, "bias_correction": False})

    def __call__(self, weight_bits: int | Mapping[str, int]) -> tuple[Folded, QuantizeConfig]:
        """The network and the configuration with these bits, calibrated.

        Raises
        ------
        UnsupportedError
            If a layer does not survive the rounding with any clipping; the message names it.
        """
        bits = weight_bits if isinstance(weight_bits, int) else dict(weight_bits)
        config = QuantizeConfig.model_validate(self.config.model_dump() | {"weight_bits": bits})
        wanted = [(layer.name, config.bits(layer.name)) for layer in self.folded.layers]
        clipping = dict(config.clipping)
        if config.weight_scale == "spikes":
            missing = [key for key in wanted if key[0] not in clipping and key not in self._clipping]
            for key, costs in self._measure(dict.fromkeys(missing, CLIPPINGS), _disagreement).items():
                self._clipping[key] = min(costs, key=lambda choice, costs=costs: costs[choice])
            clipping |= {name: self._clipping[name, width] for name, width in wanted if name not in clipping}
            config = config.model_copy(update={"clipping": clipping})
        if not self._corrects:
            return self.folded, config
        missing = [key for key in wanted if key not in self._excess]
        for key, found in self._measure({key: (clipping.get(key[0]),) for key in missing}, _excess).items():
            self._excess[key] = found[clipping.get(key[0])] / len(self._samples)
        steps = self.folded.steps
        shifted = (
            _shifted(layer, self._excess[key], steps) for layer, key in zip(self.folded.layers, wanted, strict=True)
        )
        return replace(self.folded, layers=tuple(shifted), corrected=True), config

    def _measure(
        self, tasks: Mapping[_Key, Sequence[Clipping | None]], measure: _Measure
    ) -> dict[_Key, dict[Any, Any]]:
        """Sums over the samples of a measure of layers alone, by layer and width and clipping; one pass for all.

        Clippings that a layer does not survive are left out.

        Raises
        ------
        UnsupportedError
            If none is left.
        """
        networks: dict[tuple[_Key, Clipping | None], Network] = {}
        for key, choices in tasks.items():
            refused: UnsupportedError | None = None
            for clipping in choices:
                try:
                    networks[key, clipping] = self._network(key, clipping)
                except UnsupportedError as error:  # noqa: PERF203 - few bits and little clipping: all weights round to zero
                    refused = error
            if refused is not None and not any((key, clipping) in networks for clipping in choices):
                raise refused
        totals: dict[_Key, dict[Any, Any]] = {key: {} for key in tasks}
        for chunk, _ in self._samples.chunks(self.folded) if networks else ():
            for layer, current, sent in _float_layers(self.folded, chunk):
                spikes = real_neurons(self.folded, layer, current).spikes
                for (key, clipping), network in networks.items():
                    if key[0] == layer.name:
                        drive = _drive(network, layer, chunk, sent, self._execute)
                        found = measure(layer, network, current, spikes, drive)
                        sums = totals[key]
                        sums[clipping] = sums[clipping] + found if clipping in sums else found
        return totals

    def _network(self, key: _Key, clipping: Clipping | None) -> Network:
        """Integers of a layer at a width and with a clipping; the other layers are not looked at.

        They take part where they can, so that one quantization serves them all, and else have 8 bits.
        """
        name, width = key
        if (width, clipping) not in self._uniform:
            try:
                self._uniform[width, clipping] = self._quantized(width, clipping)
            except UnsupportedError:
                self._uniform[width, clipping] = None
        shared = self._uniform[width, clipping]
        return shared if shared is not None and clipping is not None else self._quantized({name: width}, clipping, name)

    def _quantized(self, bits: int | Mapping[str, int], clipping: Clipping | None, only: str | None = None) -> Network:
        others: dict[str, Clipping] = {layer.name: 1.0 for layer in self.folded.layers}
        chosen = (
            {name: clipping if only in (None, name) else 1.0 for name in others} if clipping is not None else others
        )
        given = {"weight_bits": bits, "clipping": chosen if self._ready.weight_scale == "spikes" else {}}
        return quantize_with_latent(self.folded, self._ready.model_copy(update=given)).network


def _first_samples(folded: Folded, config: QuantizeConfig, calibration: npt.ArrayLike | None) -> Samples:
    """Sliced before anything is converted, so that a large data set is not copied."""
    wanted = "weight_scale = 'spikes'" if config.weight_scale == "spikes" else "bias_correction"
    if calibration is None or np.size(calibration) == 0:
        raise DataError(f"quantize: {wanted} needs calibration samples: give some, for example training inputs")
    x = np.asarray(calibration)
    first = slice(config.calibration_samples)
    return Samples.of(folded, x[:, first] if x.ndim == len(folded.input_shape) + 2 else x[first], None)


def mean_excess(folded: Folded, network: Network, samples: Samples, *, execute: Executor) -> dict[str, FloatArray]:
    """By layer, what the integers' current has too much in each channel: mean over steps, places and samples, real."""
    totals: dict[str, FloatArray] = {layer.name: np.zeros(layer.shape[0]) for layer in folded.layers}
    for chunk, _ in samples.chunks(folded):
        for layer, current, sent in _float_layers(folded, chunk):
            drive = _drive(network, layer, chunk, sent, execute)
            totals[layer.name] += _excess(layer, network, current, {}, drive)
    return {name: total / len(samples) for name, total in totals.items()}


def _shifted(layer: FoldedLayer, excess: FloatArray, steps: int) -> FoldedLayer:
    # Synaptic current carries what arrives in a step into later ones: the mean over steps of sum_{k<=t} current_beta^k.
    carried = np.cumsum(layer.current_beta ** np.arange(steps)).mean()
    return replace(layer, affine=replace(layer.affine, bias=layer.affine.bias - carried * excess))


def _float_layers(
    folded: Folded, x: FloatArray
) -> Iterator[tuple[FoldedLayer, FloatArray, Mapping[str, npt.NDArray[Any]]]]:
    """Each layer with its real current and the spikes of the layers before it, all of the float network."""
    frames = x if x.ndim > len(folded.input_shape) + 1 else np.broadcast_to(x, (folded.steps, *x.shape))
    sent: dict[str, npt.NDArray[Any]] = {INPUT: frames}
    for layer in folded.layers:
        current = real_current(folded, layer, sent)
        yield layer, current, sent
        sent |= real_neurons(folded, layer, current).spikes


def _drive(
    network: Network, layer: FoldedLayer, x: FloatArray, sent: Mapping[str, npt.NDArray[Any]], execute: Executor
) -> npt.NDArray[np.int64]:
    """A layer's synaptic sums in integers, from the float network's spikes."""
    integers = {**sent, INPUT: at_every_step(network, network.input.encode(x))}
    return layer_drive(network, network.population(layer.name), integers, execute)


def _disagreement(
    layer: FoldedLayer, network: Network, current: FloatArray, spikes: Mapping[str, Any], drive: npt.NDArray[np.int64]
) -> float:
    population = network.population(layer.name)
    if not population.spikes:
        return float(np.square(_real(network, layer, drive) - current).sum())
    alone = layer_neurons(population, drive).spikes[layer.name]
    return float((alone != spikes[layer.name]).sum())


def _excess(
    layer: FoldedLayer, network: Network, current: FloatArray, _spikes: Mapping[str, Any], drive: npt.NDArray[np.int64]
) -> FloatArray:
    """By channel, what the integers' current has too much: mean over steps and places, sum over samples."""
    error = _real(network, layer, drive) - current
    by_channel = error.mean(0).reshape(error.shape[1], error.shape[2], -1)
    return by_channel.mean(2).sum(0)


def _real(network: Network, layer: FoldedLayer, drive: npt.NDArray[np.int64]) -> FloatArray:
    population = network.population(layer.name)
    assert population.scale is not None
    return (drive + population.bias) / population.scale
