"""Figures of a run as SVG text, to be placed inline in a page.

Every function takes plain lists and numbers and returns one ``<svg>`` element. Text and axes are drawn in
``currentColor``, so that a figure follows the page from light to dark; the series colours (after Okabe and Ito 2008,
told apart by colour-blind readers) are legible on both. The same data give the same bytes. Matplotlib is imported at
the first figure.
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np

from ..units import axis_unit, count, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, AMBER, PURPLE, GREY = "#3a86c8", "#d9602b", "#2a9d74", "#c98a00", "#a66bb5", "#8a8f98"
SERIES = (BLUE, ORANGE, GREEN, AMBER, PURPLE, GREY)
NARROW, WIDE = 460, 960  # figure widths in CSS pixels: half a page (a whole phone) and a whole page
INK = "#0b0c0d"  # stands for currentColor until the text is written
_RASTER_HEIGHT = 720  # CSS pixels of all populations together, as far as their labels allow
_RASTER_ROWS = 400  # a population with more neurons is drawn with several neurons to a row


def style() -> AbstractContextManager[Any]:
    """Matplotlib's settings for all our figures."""
    import matplotlib as mpl

    return mpl.rc_context(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "lapilli",
            "font.size": 11.5,
            "text.color": INK,
            "axes.edgecolor": INK,
            "axes.labelcolor": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "axes.linewidth": 0.6,
            "xtick.major.width": 0.6,
            "ytick.major.width": 0.6,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "legend.frameon": False,
            "legend.fontsize": 11,
            "figure.dpi": 72,
        }
    )


def _svg(title: str, width: float, height: float, draw: Callable[[Figure], None]) -> str:
    """Draw on a transparent figure of ``width`` x ``height`` CSS pixels and return its SVG element."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with style(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the reader's fonts draw the text, not ours
        figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(buffer.getvalue(), title, width)


def _inline(text: str, title: str, width: float) -> str:
    """Matplotlib's SVG file as an element for a page: no prologue, unique ids, the page's font and text colour."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = text.replace(INK, "currentColor")
    text = re.sub(r"font: (?:(\d+|bold) )?([\d.]+)px [^;\"]*", _font, text)
    prefix = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    text = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', text)
    text = re.sub(r'href="#([^"]+)"', rf'href="#{prefix}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", text)
    text = re.sub(r' xmlns(?::xlink)?="[^"]*"', "", text).replace("xlink:href", "href")
    match = re.search(r'viewBox="([^"]+)"', text)
    assert match is not None
    head = (
        f'<svg viewBox="{match[1]}" role="img" style="max-width:{width:.0f}px" aria-label="{html.escape(title)}">'
        f"<title>{html.escape(title)}</title>"
    )
    return head + text[text.index(">") + 1 :].strip()


def _font(match: re.Match[str]) -> str:
    weight = f"font-weight: {match[1]}; " if match[1] else ""
    return f"{weight}font-size: {match[2]}px; font-family: inherit"


def _grid(axes: Axes, axis: Any) -> None:
    axes.grid(visible=True, axis=axis, color=INK, alpha=0.14, linewidth=0.7)
    axes.set_axisbelow(True)


def _horizontal(axes: Axes, names: Sequence[str]) -> None:
    """Rows for horizontal bars, the first name on top."""
    axes.set_yticks(range(len(names)), [short(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    _grid(axes, "x")


def short(name: str, limit: int = 22) -> str:
    """A name that fits beside an axis; ``$`` must not start a formula."""
    name = name if len(name) <= limit else f"{name[: limit - 1]}…"
    return name.replace("$", r"\$")


def _whole_numbers() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(integer=True)


def _bars_height(rows: int, extra: int = 62) -> float:
    return extra + 26 * max(rows, 1)


def raster(title: str, populations: Sequence[tuple[str, int, Sequence[Sequence[int]]]]) -> str:
    """Spikes of one sample, all populations one below the other.

    Parameters
    ----------
    title : str
    populations : sequence of (name, number of neurons, spikes)
        ``spikes[n]`` lists the indices of the neurons that spike at step ``n``.
    """
    rows = [min(size, _RASTER_ROWS) for _, size, _ in populations]
    heights = [float(np.clip(9 * np.sqrt(r), 34, 150)) for r in rows]
    shrink = min(1.0, _RASTER_HEIGHT / sum(heights)) if heights else 1.0
    heights = [max(h * shrink, 30.0) for h in heights]

    def draw(figure: Figure) -> None:
        grid = figure.subplots(len(rows), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
        for i, (axes, (name, size, spikes), n_rows) in enumerate(zip(grid, populations, rows, strict=True)):
            axes.imshow(
                _raster_image(spikes, size, n_rows, SERIES[i % 5]),
                aspect="auto",
                interpolation="none",
                extent=(0.5, len(spikes) + 0.5, size - 0.5, -0.5),
            )
            axes.set_yticks([])
            axes.set_ylabel(
                f"{short(name, 16)}\n{size} neurons", rotation=0, ha="right", va="center", fontsize=11, labelpad=6
            )
            axes.spines["left"].set_alpha(0.35)
            axes.spines["bottom"].set_alpha(0.35)
            axes.tick_params(axis="x", length=3 if i == len(rows) - 1 else 0)
        steps = max((len(spikes) for *_, spikes in populations), default=1)
        grid[-1].set_xticks(range(1, steps + 1, max(1, -(-steps // 20))))
        grid[-1].set_xlabel("time step")

    return _svg(title, WIDE, 58 + sum(h + 10 for h in heights), draw)


def _raster_image(spikes: Sequence[Sequence[int]], size: int, rows: int, colour: str) -> np.ndarray:
    """RGBA [rows, 12 T, 4]: a column of marks per step, gaps between; a row of many neurons is denser in colour."""
    hits = np.zeros((rows, len(spikes)))
    for n, neurons in enumerate(spikes):
        np.add.at(hits[:, n], np.asarray(neurons, np.int64) * rows // size, 1.0)
    share = np.clip(hits / (size / rows), 0, 1)
    opacity = np.where(hits > 0, 0.5 + 0.5 * share, 0.0)
    image = np.zeros((rows, len(spikes), 12, 4))
    image[..., :3] = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    image[..., 1:11, 3] = opacity[..., None]
    return image.reshape(rows, -1, 4)


def spike_rates(title: str, rates: Mapping[str, float]) -> str:
    """Spikes per neuron and step of each population, as bars."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.barh(range(len(rates)), [100 * r for r in rates.values()], height=0.62, color=BLUE)
        for row, rate in enumerate(rates.values()):
            axes.annotate(percent(rate, 1), (100 * rate, row), (5, 0), textcoords="offset points", va="center")
        _horizontal(axes, list(rates))
        axes.set_xlim(0, max([100 * r for r in rates.values()] + [1.0]) * 1.18)
        axes.set_xlabel("neurons that spike in a step, %")

    return _svg(title, NARROW, _bars_height(len(rates)), draw)


def energy_by_layer(
    title: str, layers: Sequence[str], parts: Mapping[str, Sequence[float]], totals: Sequence[tuple[float, float]]
) -> str:
    """Energy of each layer, stacked by cause (typical), with low-to-high whiskers.

    Parameters
    ----------
    title : str
    layers : names, top to bottom
    parts : by cause, joules of each layer (typical)
    totals : (low, high) joules of each layer
    """
    factor, unit = axis_unit([high for _, high in totals], "J")

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        left = np.zeros(len(layers))
        for colour, (cause, values) in zip((ORANGE, BLUE, AMBER, GREY, PURPLE), parts.items(), strict=False):
            scaled = np.asarray(values, float) * factor
            axes.barh(range(len(layers)), scaled, left=left, height=0.62, color=colour, label=cause)
            left += scaled
        low, high = (np.array([t[i] for t in totals], float) * factor for i in (0, 1))
        axes.errorbar(
            left,
            range(len(layers)),
            xerr=[np.maximum(left - low, 0), np.maximum(high - left, 0)],
            fmt="none",
            ecolor=INK,
            elinewidth=1.1,
            capsize=3.5,
        )
        _horizontal(axes, layers)
        axes.set_xlim(left=0)
        axes.set_xlabel(f"energy per inference, {unit}")
        figure.legend(loc="outside upper left", ncols=2, handlelength=1.1, columnspacing=1.2)

    return _svg(title, NARROW, _bars_height(len(layers), 62 + 18 * -(-len(parts) // 2)), draw)


def operations(title: str, values: Mapping[str, float]) -> str:
    """Numbers of operations on a logarithmic axis."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        numbers = list(values.values())
        axes.barh(range(len(numbers)), numbers, height=0.62, color=[GREY, *([PURPLE] * (len(numbers) - 1))])
        axes.set_xscale("log")
        for row, number in enumerate(numbers):
            axes.annotate(count(number), (number, row), (5, 0), textcoords="offset points", va="center")
        _horizontal(axes, list(values))
        low, high = min(numbers, default=1.0), max(numbers, default=1.0)
        axes.set_xlim(low / 30, high * 12)
        axes.xaxis.set_major_formatter(lambda value, _: count(value))
        axes.minorticks_off()
        axes.set_xlabel("operations, logarithmic")

    return _svg(title, NARROW, _bars_height(len(values)), draw)


def learning_curve(title: str, epochs: Sequence[Mapping[str, Any]]) -> str:
    """Loss and accuracy over the epochs of all training stages, one after the other.

    Parameters
    ----------
    title : str
    epochs : sequence of mappings
        Keys ``stage``, ``loss`` and ``accuracy`` (fractions; either may be None).
    """
    stages = list(dict.fromkeys(str(e.get("stage", "")) for e in epochs))

    def draw(figure: Figure) -> None:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        for colour, stage in zip(SERIES * len(stages), stages, strict=False):
            at = [i + 1 for i, e in enumerate(epochs) if str(e.get("stage", "")) == stage]
            for axes, key, factor in ((above, "accuracy", 100.0), (below, "loss", 1.0)):
                points = [(i, factor * epochs[i - 1][key]) for i in at if epochs[i - 1].get(key) is not None]
                axes.plot(
                    [i for i, _ in points],
                    [y for _, y in points],
                    color=colour,
                    linewidth=1.8,
                    marker="o",
                    markersize=3.2 if len(epochs) <= 60 else 0,
                    label=short(stage, 30),
                )
        above.set_ylabel("accuracy, %")
        below.set_ylabel("loss")
        below.set_xlabel("epoch")
        below.set_ylim(bottom=0)
        below.xaxis.set_major_locator(_whole_numbers())
        for axes in (above, below):
            _grid(axes, "y")
        if any(stages):
            above.legend(loc="lower right")

    return _svg(title, NARROW, 320, draw)


def accuracies(title: str, values: Mapping[str, float]) -> str:
    """Accuracy (fractions) of stages or executors as dots on an axis that shows their differences."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        points = [100 * v for v in values.values()]
        axes.plot(points, range(len(points)), linestyle="none", marker="o", markersize=8, color=GREEN)
        for row, point in enumerate(points):
            axes.annotate(f"{point:.2f} %", (point, row), (8, 0), textcoords="offset points", va="center")
        spread = max(max(points) - min(points), 1.0)
        _horizontal(axes, list(values))
        axes.set_xlim(max(min(points) - 0.3 * spread, -1), max(points) + 0.55 * spread)
        axes.set_xlabel("test accuracy, %")

    return _svg(title, NARROW, _bars_height(len(values)), draw)


def membrane(
    title: str,
    traces: Mapping[str, Sequence[float]],
    threshold: float | None = None,
    spikes: Mapping[str, Sequence[int]] | None = None,
) -> str:
    """Membrane of a few neurons over the steps, in state units, with the threshold and the spikes.

    The three neurons that end (or, where there is a threshold, spike) highest are coloured, the others grey.

    Parameters
    ----------
    title : str
    traces : by neuron, the membrane after each step
    threshold : float or None
        None for a readout accumulator.
    spikes : by neuron, the steps (0-based) at which it spikes
    """
    fired = spikes or {}
    ranked = sorted(traces, key=lambda name: (len(fired.get(name, ())), traces[name][-1]), reverse=True)
    colours = dict(zip(ranked, (ORANGE, BLUE, GREEN), strict=False))

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for name in reversed(ranked):
            values, colour = traces[name], colours.get(name, GREY)
            width, alpha = (2.0, 1.0) if name in colours else (1.1, 0.55)
            axes.plot(range(1, len(values) + 1), values, color=colour, linewidth=width, alpha=alpha)
            at = fired.get(name, ())
            axes.plot(
                [n + 1 for n in at], [values[n] for n in at], linestyle="none", marker="v", color=colour, alpha=alpha
            )
        handles = [
            axes.plot([], [], color=colour, linewidth=2.0, label=short(name, 14))[0] for name, colour in colours.items()
        ]
        if len(traces) > len(colours):
            handles += axes.plot([], [], color=GREY, linewidth=1.1, label=f"{len(traces) - len(colours)} others")
        if threshold is not None:
            axes.axhline(threshold, color=INK, linewidth=1.0, linestyle=(0, (4, 3)))
            axes.annotate(
                "threshold",
                (1.0, threshold),
                (0, 4),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                ha="right",
            )
        axes.set_xlabel("time step")
        axes.set_ylabel("membrane, state units")
        axes.xaxis.set_major_locator(_whole_numbers())
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}".replace("-", "−"))
        _grid(axes, "y")
        figure.legend(handles=handles, loc="outside upper left", ncols=4, handlelength=1.1, columnspacing=1.2)

    return _svg(title, NARROW, 290, draw)


def confusion(title: str, matrix: Sequence[Sequence[int]], labels: Sequence[str]) -> str:
    """Confusion matrix: rows are true classes, columns predictions; counts are written in up to 12 classes."""
    counts = np.asarray(matrix, np.int64)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    n = len(counts)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        diagonal = np.eye(n, dtype=bool)
        image = np.zeros((n, n, 4))
        for mask, colour in ((diagonal, BLUE), (~diagonal, ORANGE)):
            image[mask, :3] = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        # Wrong answers are few: the root keeps a single one visible.
        image[..., 3] = np.where(counts > 0, np.where(diagonal, 0.15 + 0.7 * share, 0.25 + 0.7 * np.sqrt(share)), 0)
        axes.imshow(image, interpolation="none", aspect="equal")
        if n <= 12:
            for i, j in zip(*np.nonzero(counts), strict=True):
                axes.text(j, i, str(counts[i, j]), ha="center", va="center", fontsize=10.5)
        step = max(1, -(-n // 20))
        ticks = range(0, n, step)
        long = max((len(x) for x in labels), default=0) > 3
        axes.set_xticks(ticks, [short(labels[i], 12) for i in ticks], rotation=60 if long else 0)
        axes.set_yticks(ticks, [short(labels[i], 12) for i in ticks])
        axes.tick_params(length=0)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.set_xticks(np.arange(-0.5, n), minor=True)
        axes.set_yticks(np.arange(-0.5, n), minor=True)
        axes.grid(visible=True, which="minor", color=INK, alpha=0.1, linewidth=0.6)
        axes.tick_params(which="minor", length=0)

    return _svg(title, NARROW, 430, draw)


def samples(title: str, images: Sequence[Any], truths: Sequence[str], predictions: Sequence[str]) -> str:
    """Input images with the network's answers; wrong ones are marked by colour and a cross.

    Parameters
    ----------
    title : str
    images : sequence of [Y, X] or [C, Y, X]
        Any numbers; each image is scaled to its own range. One channel or three (RGB); otherwise the mean.
    truths, predictions : class names
    """
    columns = max(min(len(images), 6), 1)
    rows = -(-len(images) // columns)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()  # one for all: a frame of its own for each image takes ten times as long
        axes.axis("off")
        for i, (image, truth, answer) in enumerate(zip(images, truths, predictions, strict=True)):
            row, column = divmod(i, columns)
            left, top = column * 1.08, row * 1.34
            picture = _picture(image)
            tall, wide = (n / max(picture.shape[:2]) for n in picture.shape[:2])
            x, y = left + (1 - wide) / 2, top + (1 - tall)
            axes.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="none", extent=(x, x + wide, y + tall, y))
            right = truth == answer
            note = f"✓ {short(answer, 12)}" if right else f"✗ {short(answer, 9)} ({short(truth, 9)})"
            axes.text(left + 0.5, top - 0.06, note, ha="center", color=GREEN if right else ORANGE, fontsize=11)
        axes.set_xlim(0, columns * 1.08 - 0.08)
        axes.set_ylim(rows * 1.34 - 0.34, -0.3)
        axes.set_aspect("equal")

    height = NARROW * (rows * 1.34) / (columns * 1.08)
    return _svg(title, NARROW, max(height, 60), draw)


def _picture(image: Any) -> np.ndarray:
    """[Y, X] or [Y, X, 3] in 0..1."""
    array = np.asarray(image, float)
    if array.ndim == 3:
        array = np.moveaxis(array, 0, -1) if array.shape[0] == 3 else array.mean(axis=0)
    if array.ndim == 1:
        array = array[None]
    low, high = array.min(), array.max()
    return (array - low) / (high - low) if high > low else np.zeros_like(array)
