"""What quantization did to each layer of a network, and what that layer alone costs in spikes and accuracy.

The folded network in float64 is the yardstick. For each layer three things run on the same samples::

    float            float -> float -> float        the yardstick
    layer alone      float -> LAYER -> float        this layer in integers, fed with the yardstick's spikes
    whole            LAYER -> LAYER -> LAYER        what is deployed

A layer in integers is exactly what a chip does with it: the description's weights, biases, thresholds, truncating
decays and state widths. A layer that reads the input counts the quantization of the input as its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ..arithmetic import neuron_step
from ..errors import DataError
from ..network import INPUT, Input, IntArray, Network, Population
from ..recording import Executor, Recording, at_every_step, decide, scores
from .folding import FloatArray, Folded, FoldedLayer, FoldedRun, identity
from .quantization import LayerReport, QuantizeConfig, Quantized, quantize_with_latent

if TYPE_CHECKING:
    from rich.console import RenderableType

CHUNK_VALUES = 2**22  # of one layer over all steps of a chunk: 32 MiB in float64
_WIDEST = 32  # state bits of the description, so that a lone sum of branches does not wrap

Spikes: TypeAlias = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class LayerSensitivity:
    """One layer of a :class:`QuantizationReport`. Shares are between 0 and 1.

    Attributes
    ----------
    rounding : LayerReport
        Weight, bias and threshold errors, and what limited the scale.
    parameters, memory_bits : int
        Stored weights of all connections into the layer, and ``parameters x weight_bits``.
    current_error : float
        Root mean square of (integer minus real current, biases included) over that of the real current, per neuron,
        step and sample; both get the spikes of the float network.
    spike_rate : float or None
        Spikes per neuron and step in the float network; None for a readout accumulator, as the next two.
    spike_agreement : float or None
        Share of (neuron, step, sample) where this layer in integers, fed with the spikes of the float network,
        does what it does in float.
    spike_agreement_whole : float or None
        The same with all layers in integers, so with what the layers before it did.
    decisions_alone : float
        Share of samples with the class of the float network if this layer alone is in integers.
    accuracy_alone : float or None
        Accuracy then; None without labels.
    wraps, saturations : int or None
        Overflow events in the run of the whole network; None if the executor does not count them.
    """

    rounding: LayerReport
    parameters: int
    memory_bits: int
    current_error: float
    spike_rate: float | None
    spike_agreement: float | None
    spike_agreement_whole: float | None
    decisions_alone: float
    accuracy_alone: float | None
    wraps: int | None
    saturations: int | None

    @property
    def name(self) -> str:
        """The layer's name."""
        return self.rounding.name


@dataclass(frozen=True)
class QuantizationReport:
    """What :func:`quantization_report` found.

    Attributes
    ----------
    layers : tuple of LayerSensitivity
    samples : int
        How many were run.
    decisions : float
        Share of samples that the quantized network puts into the class of the float network.
    accuracy_float, accuracy : float or None
        Of the folded network in float64 and of the quantized network; None without labels.
    memory_bits : int
        Sum over the layers.
    digest : str
        Of the quantized network.
    settings : dict
        The configuration.
    """

    name: str
    layers: tuple[LayerSensitivity, ...]
    samples: int
    decisions: float
    accuracy_float: float | None
    accuracy: float | None
    memory_bits: int
    digest: str
    settings: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """JSON values; the rounding of a layer stands beside its other numbers."""
        document = asdict(self)
        document["settings"] = dict(self.settings)
        document["layers"] = [layer.pop("rounding") | layer for layer in document["layers"]]
        return document | {"warnings": self.warnings()}

    def warnings(self) -> list[str]:
        """What a reader should not miss: layers whose weights vanish, whose range is lost, or that overflow."""
        found: list[str] = []
        for layer in self.layers:
            r = layer.rounding
            if r.zero_weights > 0.5:
                found.append(f"{r.name}: {r.zero_weights:.0%} of its weights round to zero at {r.weight_bits} bits")
            if r.limited_by != "weights":
                found.append(
                    f"{r.name}: its weights do not fill their {r.weight_bits} bits: {r.limited_by} is the limit"
                )
            if layer.wraps:
                found.append(f"{r.name}: its current wrapped {layer.wraps:,} times")
            if layer.saturations:
                found.append(f"{r.name}: its membrane saturated {layer.saturations:,} times")
            elif r.can_saturate:
                found.append(f"{r.name}: its membrane may saturate in the worst case; it did not on these samples")
        return found

    def render(self) -> RenderableType:
        """A table for a terminal of 100 columns or more (a rich renderable)."""
        from rich import box
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
        columns = ("layer", "bits", "weights", "memory", "weight error", "current error", "spikes equal",
                   "equal in whole", "decisions", "accuracy", "limit")  # fmt: skip
        for column in columns:
            table.add_column(column, justify="left" if column in ("layer", "limit") else "right")
        for layer in self.layers:
            r = layer.rounding
            table.add_row(
                r.name, str(r.weight_bits), f"{layer.parameters:,}", memory_text(layer.memory_bits),
                share(r.weight_error_rms), share(layer.current_error), share(layer.spike_agreement),
                share(layer.spike_agreement_whole), share(layer.decisions_alone), share(layer.accuracy_alone),
                r.limited_by,
            )  # fmt: skip
        table.add_section()
        table.add_row(
            "whole", "", f"{sum(layer.parameters for layer in self.layers):,}", memory_text(self.memory_bits),
            "", "", "", "", share(self.decisions), share(self.accuracy), "",
        )  # fmt: skip
        legend = (
            f"{self.samples:,} samples. Errors: root mean square, of weights relative to the largest, of currents to "
            "the currents' own. Spikes equal: this layer in integers on the float network's spikes. Decisions (as in "
            "the float network) and accuracy: this layer alone in integers."
        )
        if self.accuracy_float is not None:
            legend += f" Accuracy of the float network: {share(self.accuracy_float)}."
        return Group(table, "", Text(legend), *(Text(f"warning: {line}") for line in self.warnings()))

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=140, color_system=None)
        with console.capture() as capture:
            console.print(self.render(), markup=False)
        return "\n".join(line.rstrip() for line in capture.get().splitlines())


def quantization_report(
    folded: Folded,
    config: QuantizeConfig,
    x: npt.ArrayLike,
    y: npt.ArrayLike | None = None,
    *,
    calibration: npt.ArrayLike | None = None,
    made: Quantized | None = None,
    execute: Executor,
) -> QuantizationReport:
    """Quantize a folded network and measure what that did, layer by layer (module text).

    Costs one run of the network in float64 NumPy, and for each layer one of the layers after it: a few hundred
    samples tell enough.

    Parameters
    ----------
    folded : Folded
    config : QuantizeConfig
    x : float [samples, *input_shape] or [steps, samples, *input_shape]
        Inputs as the network was trained on.
    y : int [samples], optional
        Their classes; without them there is no accuracy.
    calibration : optional
        As for :func:`lapilli.export.quantization.quantize_with_latent`.
    made : Quantized, optional
        The quantized network, where it was not made from ``folded`` as it is (corrected biases); ``folded`` stays the
        yardstick.
    execute : Executor
        Runs the integers, for example ``lapilli.sim.executors.find("fast")``.

    Raises
    ------
    DataError
        If the samples do not fit the network or each other.
    Error
        As :func:`lapilli.export.quantization.quantize_with_latent`.
    """
    made = made or quantize_with_latent(folded, config, calibration)
    network = made.network
    data = Samples.of(folded, x, y)
    tallies = {layer.name: _Tally() for layer in folded.layers}
    whole = _Tally()
    for chunk, classes in data.chunks(folded):
        _measure(folded, network, chunk, classes, execute, tallies, whole)
    n = len(data)
    layers = []
    for r in made.report:
        t = tallies[r.name]
        parameters = sum(c.synapse.weight.size for c in network.incoming(r.name))
        spikes = network.population(r.name).spikes
        layers.append(
            LayerSensitivity(
                rounding=r,
                parameters=parameters,
                memory_bits=sum(c.synapse.weight.size * c.weight_bits for c in network.incoming(r.name)),
                current_error=float(np.sqrt(t.error_squares / t.squares)) if t.squares else 0.0,
                spike_rate=t.spikes / t.places if spikes else None,
                spike_agreement=t.equal / t.places if spikes else None,
                spike_agreement_whole=t.equal_whole / t.places if spikes else None,
                decisions_alone=t.same / n,
                accuracy_alone=t.correct / n if data.y is not None else None,
                wraps=t.wraps,
                saturations=t.saturations,
            )
        )
    return QuantizationReport(
        name=network.name,
        layers=tuple(layers),
        samples=n,
        decisions=whole.same / n,
        accuracy_float=whole.correct_float / n if data.y is not None else None,
        accuracy=whole.correct / n if data.y is not None else None,
        memory_bits=memory_bits(network),
        digest=network.digest(),
        settings=config.model_dump(mode="json"),
    )


def memory_bits(network: Network) -> int:
    """Synaptic memory: sum over connections of stored weights times their bits (a convolution's weights are shared).

    The weights alone, as the description stores them; a chip's own figure is in its deployment plan.
    """
    return sum(c.synapse.weight.size * c.weight_bits for c in network.connections)


# ---------------------------------------------------------------------------------------------- samples


@dataclass(frozen=True, eq=False)
class Samples:
    """Real inputs ``[samples, *shape]`` or ``[steps, samples, *shape]`` and, if known, their classes ``[samples]``."""

    x: FloatArray
    y: IntArray | None
    axis: int  # of the samples in x

    @classmethod
    def of(cls, folded: Folded, x: npt.ArrayLike, y: npt.ArrayLike | None) -> Samples:
        """Checked samples for a network.

        Raises
        ------
        DataError
            If they do not fit it, or each other, or there are none.
        """
        real = np.asarray(x, np.float64)
        axis = real.ndim - len(folded.input_shape) - 1
        if axis not in (0, 1) or real.shape[axis + 1 :] != folded.input_shape or not np.isfinite(real).all():
            raise DataError(
                f"samples of shape {real.shape} do not fit, or are not finite: give [samples, *{folded.input_shape}], "
                "or with steps"
            )
        if axis == 1 and len(real) != folded.steps:
            raise DataError(f"the network runs {folded.steps} steps; the samples have {len(real)} frames")
        if real.shape[axis] == 0:
            raise DataError("there are no samples; give at least one")
        classes = None if y is None else np.asarray(y)
        if classes is not None and (classes.shape != (real.shape[axis],) or classes.dtype.kind not in "iu"):
            raise DataError(
                f"classes of shape {classes.shape} ({classes.dtype}) for {real.shape[axis]} samples; "
                "give one integer for each"
            )
        return cls(real, None if classes is None else classes.astype(np.int64), axis)

    def __len__(self) -> int:
        return self.x.shape[self.axis]

    def chunks(self, folded: Folded) -> Iterator[tuple[FloatArray, IntArray | None]]:
        """Parts small enough that a layer over all steps stays below ``CHUNK_VALUES``."""
        largest = max(int(np.prod(shape)) for shape in (folded.input_shape, *(layer.shape for layer in folded.layers)))
        size = max(1, CHUNK_VALUES // (largest * folded.steps))
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            yield (self.x[:, part] if self.axis else self.x[part]), None if self.y is None else self.y[part]


# ---------------------------------------------------------------------------------------------- running


@dataclass
class _Tally:
    """Sums over samples, from which shares and errors are made."""

    error_squares: float = 0.0
    squares: float = 0.0
    places: int = 0  # neurons x steps x samples
    spikes: int = 0
    equal: int = 0
    equal_whole: int = 0
    same: int = 0
    correct: int = 0
    correct_float: int = 0
    wraps: int | None = None
    saturations: int | None = None


def _measure(
    folded: Folded,
    network: Network,
    x: FloatArray,
    y: IntArray | None,
    execute: Executor,
    tallies: Mapping[str, _Tally],
    whole: _Tally,
) -> None:
    """Add one chunk of samples to the tallies."""
    encoded = network.input.encode(x)
    done = execute(network, encoded)
    frames = x if x.ndim > len(folded.input_shape) + 1 else np.broadcast_to(x, (folded.steps, *x.shape))
    sent: dict[str, npt.NDArray[Any]] = {INPUT: frames}
    runs: dict[str, FoldedRun] = {}
    currents: dict[str, FloatArray] = {}
    for layer in folded.layers:
        currents[layer.name] = real_current(folded, layer, sent)
        runs[layer.name] = run = real_neurons(folded, layer, currents[layer.name])
        sent |= run.spikes
    last = folded.layers[-1].name
    wanted = runs[last].scores.argmax(1)
    decided = decide(scores(network, done))
    whole.same += int((decided == wanted).sum())
    if y is not None:
        whole.correct += int((decided == y).sum())
        whole.correct_float += int((wanted == y).sum())

    source = {**sent, INPUT: at_every_step(network, encoded)}
    for layer in folded.layers:
        tally = tallies[layer.name]
        population = network.population(layer.name)
        drive = layer_drive(network, population, source, execute)
        assert population.scale is not None
        real = currents[layer.name]
        tally.error_squares += float((((drive + population.bias) / population.scale - real) ** 2).sum())
        tally.squares += float((real**2).sum())
        tally.places += real.size
        alone = layer_neurons(population, drive)
        if population.spikes:
            spikes = sent[layer.name]
            tally.spikes += int(spikes.sum(dtype=np.int64))
            tally.equal += int((alone.spikes[layer.name] == spikes).sum())
            tally.equal_whole += int((done.spikes[layer.name] == spikes).sum())
        for what in ("wraps", "saturations"):
            counted = getattr(done, what).get(layer.name)
            if counted is not None:
                setattr(tally, what, (getattr(tally, what) or 0) + counted)
        if layer.name == last:
            classes = decide(scores(network, alone))
        else:
            classes = _rest(folded, runs, sent, alone).scores.argmax(1)
        tally.same += int((classes == wanted).sum())
        if y is not None:
            tally.correct += int((classes == y).sum())


def real_current(folded: Folded, layer: FoldedLayer, sent: Mapping[str, npt.NDArray[Any]]) -> FloatArray:
    """``W' s + b'`` of a layer at every step: float64 ``[T, B, *shape]``; ``sent`` is ``[T, B, ...]`` by source."""
    total = np.zeros(())
    for branch in folded.branches(layer):
        frames = sent[branch.source]
        steps, batch = frames.shape[:2]
        if frames.strides[0] == 0:  # direct coding repeats one and the same array
            part = branch.affine(np.asarray(frames[0], np.float64)).reshape(1, batch, *layer.shape)
        else:
            part = branch.affine(frames.reshape(steps * batch, *frames.shape[2:]).astype(np.float64))
            part = part.reshape(steps, batch, *layer.shape)
        total = total + part
    total = total + layer.affine.bias.reshape(-1, *[1] * (len(layer.shape) - 1))
    return np.broadcast_to(total, (folded.steps, *total.shape[1:]))


def real_neurons(folded: Folded, layer: FoldedLayer, current: FloatArray) -> FoldedRun:
    """A layer's neurons alone, on a given current."""
    neurons = replace(layer, affine=identity(layer.shape[0]), source="", shortcuts=())
    return Folded(layers=(neurons,), steps=folded.steps, input_shape=layer.shape).simulate(current)


def layer_drive(
    network: Network, population: Population, sent: Mapping[str, npt.NDArray[Any]], execute: Executor
) -> IntArray:
    """``I 2^f`` of a population from given spikes: int64 ``[T, B, *shape]``, steps run as if they were samples."""
    total = np.zeros((), np.int64)
    collector = Population(
        name="sum", shape=population.shape, reset="none", fraction_bits=population.fraction_bits, state_bits=_WIDEST
    )
    for c in network.incoming(population.name):
        frames = sent[c.source]
        low, high = (network.input.low, network.input.high) if c.source == INPUT else (0, 1)
        alone = Network(
            name="branch",
            steps=1,
            input=Input(shape=network.shape_of(c.source), low=low, high=high),
            populations=(collector,),
            connections=(replace(c, source=INPUT, target="sum", name=""),),
        )
        different = frames[:1] if frames.strides[0] == 0 else frames
        x = different.reshape(-1, *frames.shape[2:]).astype(np.int64)
        part = execute(alone, x, ("sum",)).current["sum"]
        total = total + part.reshape(*different.shape[:2], *population.shape)
    return np.broadcast_to(total, (network.steps, *total.shape[1:]))


def layer_neurons(population: Population, drive: IntArray) -> Recording:
    """A population's neurons alone, on a given drive."""
    u = np.zeros(drive.shape[1:], np.int64)
    v = np.full(drive.shape[1:], population.v_init, np.int64)
    fired: list[Spikes] = []
    for arriving in drive:
        step = neuron_step(population, u, v, arriving)
        u, v = step.u, step.v
        fired.append(step.spikes.astype(np.uint8))
    if not population.spikes:
        return Recording(v_final={population.name: v})
    return Recording(spikes={population.name: np.stack(fired)})


def _rest(
    folded: Folded, runs: Mapping[str, FoldedRun], sent: Mapping[str, npt.NDArray[Any]], alone: Recording
) -> FoldedRun:
    """The float network where one layer sent other spikes; only what those reach is run again."""
    seen = {**sent, **alone.spikes}
    changed = {name for name, spikes in alone.spikes.items() if not np.array_equal(spikes, sent[name])}
    run = runs[folded.layers[-1].name]
    for layer in folded.layers:
        if layer.name in alone.spikes or not any(b.source in changed for b in folded.branches(layer)):
            continue
        run = real_neurons(folded, layer, real_current(folded, layer, seen))
        seen |= run.spikes
        changed.add(layer.name)
    return run


# ---------------------------------------------------------------------------------------------- text


def share(value: float | None) -> str:
    """A share in per cent; "-" where there is none."""
    return "-" if value is None else f"{100 * value:.2f} %"


def memory_text(bits: int) -> str:
    """Bits, or KiB where there are many."""
    return f"{bits} bit" if bits < 8192 else f"{bits / 8192:,.1f} KiB"
