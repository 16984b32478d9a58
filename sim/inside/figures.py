"""Figures of traces, as PNG or SVG files: raster, membranes with threshold and spikes, spike rates per layer.

Colours and style are those of the report (:mod:`lapilli.sim.page.plots`), on white. The same data give the same bytes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ...arithmetic import decay, saturate
from ...errors import DescriptionError, FileFormatError
from ...network import IntArray, Population
from ...whole_file import written_whole
from ..page.plots import BLUE, GREY, INK, SERIES, short, style
from ..simulation import Run
from .selection import name_neuron
from .traces import Traces

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg")
WIDTH = 9.0  # inches
PANELS = 6  # membranes drawn one below the other
PALEST = 0.15  # opacity of a graded spike that carries next to nothing
LABELLED = 16  # neurons of a population that are named in a raster


def raster(traces: Traces, path: str | Path, sample: int | None = None) -> Path:
    """Draw the spikes of the traced neurons of one sample, a row per neuron; graded spikes the darker, the larger.

    Parameters
    ----------
    traces : Traces
        With spikes.
    path : path ending in .png or .svg
    sample : int, optional
        One of ``traces.samples``; the first by default.

    Raises
    ------
    DescriptionError
        If the sample or the spikes were not traced.
    """
    at = _position(traces, sample)
    if not traces.spikes:
        raise DescriptionError("a raster needs spikes; trace the quantity 'spikes'")
    rows = {name: spikes.shape[2] for name, spikes in traces.spikes.items()}
    heights = [float(np.clip(0.16 * n, 0.7, 3.2)) for n in rows.values()]

    def draw(figure: Figure) -> None:
        grid = figure.subplots(len(rows), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
        for i, (axes, name) in enumerate(zip(grid, rows, strict=True)):
            sent = traces.spikes[name][:, at]
            step, neuron = np.nonzero(sent)
            tall = float(np.clip(0.8 * heights[i] * 72 / rows[name], 0.5, 9))
            marks = axes.hlines(neuron, step - 0.4, step + 0.4, linewidth=tall, color=SERIES[i % 5])
            if traces.network.population(name).graded and step.size:
                marks.set_alpha(PALEST + (1 - PALEST) * sent[step, neuron] / sent.max())
                axes.text(1.005, 0.5, f"up to {sent.max():,}", transform=axes.transAxes, va="center")
            axes.set_ylim(rows[name] - 0.5, -0.5)
            axes.set_xlim(-0.6, traces.network.steps - 0.4)
            _name_rows(axes, traces, name)
        grid[-1].set_xlabel("time step, from 0")
        grid[-1].xaxis.get_major_locator().set_params(integer=True)
        grid[0].set_title(f"{short(traces.network.name)}, sample {traces.samples[at]}", loc="left", fontsize=11.5)

    return _write(path, sum(heights) + 0.28 * len(rows) + 0.6, draw)


def membrane(traces: Traces, population: str, path: str | Path, sample: int | None = None) -> Path:
    """Draw the membranes of up to six traced neurons of a population: after every step, with threshold and spikes.

    A spike is drawn from the membrane that crossed the threshold down to the one after the reset. Neurons that spike
    come first, in the order of their index.

    Raises
    ------
    DescriptionError
        If the sample, the population or its membrane were not traced.
    """
    at = _position(traces, sample)
    if population not in traces.v:
        raise DescriptionError(f"there is no traced membrane of {population!r}; trace its quantity 'v'")
    p = traces.network.population(population)
    v = traces.v[population][:, at]
    fired = traces.spikes[population][:, at].astype(bool) if population in traces.spikes else None
    chosen = np.arange(v.shape[1])
    if fired is not None:
        chosen = np.argsort(~fired.any(axis=0), kind="stable")
    chosen = np.sort(chosen[:PANELS])
    left_out = v.shape[1] - len(chosen)

    def draw(figure: Figure) -> None:
        grid = figure.subplots(len(chosen), 1, sharex=True, squeeze=False)[:, 0]
        steps = np.arange(len(v))
        for axes, k in zip(grid, chosen, strict=True):
            neuron = int(traces.neurons[population][k])
            axes.plot(steps, v[:, k], color=BLUE, linewidth=1.4, drawstyle="steps-mid")
            axes.margins(x=0.01, y=0.15)
            if p.spikes:
                axes.axhline(p.threshold, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
            if fired is not None and fired[:, k].any():
                _draw_spikes(axes, p, v[:, k], fired[:, k], _crossing(traces, p, at, int(k)))
            axes.text(
                1.005, 0.5, name_neuron(short(p.name, 14), p.shape, neuron), transform=axes.transAxes, va="center"
            )
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}".replace("-", "−"))
            axes.locator_params(axis="y", nbins=4)
        more = f"; {left_out} more traced" if left_out else ""
        threshold = f", threshold {p.threshold:,} (dashed)" if p.spikes else ""
        grid[0].set_title(
            f"membrane of {short(p.name)} in state units, sample {traces.samples[at]}{threshold}{more}",
            loc="left",
            fontsize=11.5,
        )
        grid[-1].set_xlabel("time step, from 0")
        grid[-1].xaxis.get_major_locator().set_params(integer=True)

    return _write(path, 1.15 * len(chosen) + 0.75, draw)


def rates(run: Run, path: str | Path) -> Path:
    """Draw the spike rate of every layer: the mean over all samples and steps, and the course over the steps."""
    names = list(run.counts)
    over_time = {
        name: 100 * run.events_per_step[name] / (run.network.population(name).size * run.n_samples) for name in names
    }

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2, width_ratios=(5, 6))
        means = [100 * run.rates[name] for name in names]
        colours = [SERIES[i % 5] if len(names) <= 5 else GREY for i in range(len(names))]
        left.barh(range(len(names)), means, height=0.62, color=colours)
        for row, mean in enumerate(means):
            left.annotate(f"{mean:.2f} %", (mean, row), (4, 0), textcoords="offset points", va="center")
        left.set_yticks(range(len(names)), [short(name) for name in names])
        left.set_ylim(len(names) - 0.4, -0.6)
        left.set_xlim(0, max([*means, 0.1]) * 1.25)
        left.set_xlabel("neurons that spike in a step, %")
        if len(names) <= 5:
            for colour, (name, course) in zip(colours, over_time.items(), strict=True):
                right.plot(range(run.steps), course, color=colour, linewidth=1.8, label=short(name), marker=".")
            right.set_ylim(bottom=0)
            right.set_ylabel("%")
        else:
            image = right.imshow(np.stack(list(over_time.values())), aspect="auto", interpolation="none", vmin=0)
            right.set_yticks([])
            right.set_ylim(len(names) - 0.4, -0.6)
            figure.colorbar(image, ax=right, label="%")
        right.set_xlabel("time step, from 0")
        right.xaxis.get_major_locator().set_params(integer=True)
        left.set_title(
            f"{short(run.network.name)}: spike rates of {run.n_samples:,} samples", loc="left", fontsize=11.5
        )

    return _write(path, max(2.4, 0.32 * len(names) + 1.0), draw)


def draw_all(run: Run, traces: Traces | None, folder: str | Path, suffix: str = ".png") -> list[Path]:
    """Write every figure there is: ``rates``; of the first traced sample ``raster`` and ``membrane-POPULATION``.

    Raises
    ------
    FileFormatError
        If the folder cannot be made or a figure cannot be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileFormatError(f"{folder}: cannot make the folder for figures ({error.strerror})") from None
    made = [rates(run, folder / f"rates{suffix}")] if run.counts else []
    if traces is not None:
        if traces.spikes:
            made.append(raster(traces, folder / f"raster{suffix}"))
        made += [membrane(traces, name, folder / f"membrane-{name}{suffix}") for name in traces.v]
    return made


def _crossing(traces: Traces, p: Population, at: int, k: int) -> IntArray | None:
    """Membrane of one neuron before the reset, at every step; None if the current was not traced."""
    if p.name not in traces.u:
        return None
    u, v = traces.u[p.name][:, at, k], traces.v[p.name][:, at, k]
    before = np.concatenate([[p.v_init], v[:-1]])
    bias = np.broadcast_to(p.bias, p.shape).ravel()[traces.neurons[p.name][k]]
    return saturate(decay(before, p.dv) + u + bias, p.state_bits)


def _draw_spikes(
    axes: Axes, p: Population, v: IntArray, fired: npt.NDArray[np.bool_], crossing: IntArray | None
) -> None:
    steps = np.flatnonzero(fired)
    tops = np.maximum(v[steps], p.threshold) if crossing is None else crossing[steps]
    size = float(np.clip(600 / len(v), 1.5, 5))
    axes.vlines(steps, v[steps], tops, color=SERIES[1], linewidth=0.28 * size)
    axes.plot(steps, tops, linestyle="none", marker="v", markersize=size, color=SERIES[1])


def _name_rows(axes: Axes, traces: Traces, name: str) -> None:
    p, neurons = traces.network.population(name), traces.neurons[name]
    axes.tick_params(axis="y", length=0)
    if len(neurons) <= LABELLED:
        labels = [name_neuron(short(name, 14), p.shape, int(n)) for n in neurons]
        axes.set_yticks(range(len(neurons)), labels, fontsize=9)
    else:
        axes.set_yticks([0, len(neurons) - 1], [f"{int(neurons[i])}" for i in (0, -1)], fontsize=9)
        axes.set_ylabel(f"{short(name, 14)}\n{len(neurons)} of {p.size}", rotation=0, ha="right", va="center")


def _position(traces: Traces, sample: int | None) -> int:
    if sample is None:
        return 0
    found = np.flatnonzero(traces.samples == sample)
    if not found.size:
        raise DescriptionError(f"sample {sample} was not traced; traced are {', '.join(map(str, traces.samples))}")
    return int(found[0])


def _write(path: str | Path, height: float, draw: Callable[[Figure], None]) -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise FileFormatError(f"{path}: figures are written as {' or '.join(SUFFIXES)}, by suffix")
    with style(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure = Figure(figsize=(WIDTH, height), layout="constrained", dpi=72)
        FigureCanvasAgg(figure)
        draw(figure)
        metadata = {"Date": None, "Creator": None} if path.suffix == ".svg" else {"Software": None}
        try:
            with written_whole(path) as temporary:
                figure.savefig(temporary, format=path.suffix[1:], dpi=144, metadata=metadata)
        except OSError as error:
            raise FileFormatError(f"{path}: cannot write the figure ({error.strerror or error})") from None
    return path
