"""Figures of the quantization report and of the search for bits, as SVG text. Matplotlib is imported at the first one.

Text and axes are drawn in ``currentColor``, so that a figure follows the page from light to dark. The same data give
the same bytes.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import MissingDependencyError
from .bit_search import MixedPrecision
from .sensitivity import LayerSensitivity, QuantizationReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BLUE, _ORANGE, _GREY = "#3a86c8", "#d9602b", "#8a8f98"  # after Okabe and Ito 2008: told apart by colour-blind readers
_INK = "#0b0c0d"  # stands for currentColor until the text is written


def plot(report: QuantizationReport) -> str:
    """Bars for each layer: error of its current, spikes that differ, and decisions that differ with it alone.

    Raises
    ------
    MissingDependencyError
        If matplotlib is not installed.
    """
    layers = report.layers
    panels = (
        ("current error (%)", [100 * layer.current_error for layer in layers]),
        ("spikes that differ (%)", [100 * _unequal(layer) for layer in layers]),
        ("decisions that differ (%)", [100 * (1 - layer.decisions_alone) for layer in layers]),
    )
    names = [f"{layer.name} ({layer.rounding.weight_bits} bit)".replace("$", r"\$") for layer in layers]

    def draw(figure: Figure) -> None:
        axes = figure.subplots(1, len(panels), sharey=True)
        for axis, (title, values) in zip(axes, panels, strict=True):
            axis.barh(range(len(names)), values, height=0.6, color=_BLUE)
            axis.set_xlim(0, max(*values, 0.0) * 1.08 or 1.0)
            axis.set_xlabel(title)
            _quiet(axis)
        axes[0].set_yticks(range(len(names)), names)
        axes[0].set_ylim(len(names) - 0.4, -0.6)

    return _svg(9.6, 0.9 + 0.32 * len(names), draw)


def plot_search(found: MixedPrecision) -> str:
    """Every choice that was tried: accuracy over synaptic memory, the chosen one marked.

    Raises
    ------
    MissingDependencyError
        If matplotlib is not installed.
    """
    tried = [(t.memory_bits / 8192, 100 * t.accuracy) for t in found.tried if t.accuracy is not None]

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        axis.scatter([m for m, _ in tried], [a for _, a in tried], s=14, color=_GREY, label="tried")
        axis.scatter([found.memory_bits / 8192], [100 * found.accuracy], s=48, color=_ORANGE, label="chosen")
        needed = 100 * (found.accuracy_reference - found.max_loss)
        axis.axhline(needed, color=_BLUE, linewidth=1, label="asked for")
        axis.set_xlabel("synaptic memory (KiB)")
        axis.set_ylabel("accuracy (%)")
        axis.legend()
        _quiet(axis)

    return _svg(6.4, 3.6, draw)


def _unequal(layer: LayerSensitivity) -> float:
    """Share of spikes that differ; a readout accumulator has none."""
    return 0.0 if layer.spike_agreement is None else 1 - layer.spike_agreement


def _quiet(axis: Axes) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(visible=True, axis="x", color=_INK, alpha=0.14, linewidth=0.7)
    axis.set_axisbelow(True)


def _svg(width: float, height: float, draw: Callable[[Figure], None]) -> str:
    """Draw on a transparent figure of ``width`` x ``height`` inches and return its SVG element."""
    try:
        import matplotlib as mpl
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise MissingDependencyError("a plot needs the package 'matplotlib'; pip install matplotlib") from None
    ink = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "lapilli",
        "legend.frameon": False,
    } | dict.fromkeys(ink, _INK)
    with mpl.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the reader's fonts draw the text, not ours
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :].replace(_INK, "currentColor").strip()
