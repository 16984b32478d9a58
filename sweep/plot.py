"""A sweep in one figure: for every setting, the accuracy of each stage, a dot for every seed and a tick at the mean."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from statistics import fmean

from .running import Result
from .table import STAGES, groups

_COLORS = {"float": "#8a8f98", "quantized": "#d9602b", "deployed": "#3a86c8"}  # after Okabe and Ito 2008
_ROW, _WIDTH = 0.42, 9.6  # inches


def draw(results: Sequence[Result]) -> str:
    """SVG text; the same results give the same bytes."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    rows = groups(results)
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "lapilli"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure = Figure(figsize=(_WIDTH, 1.1 + _ROW * len(rows)), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        for i, stage in enumerate(STAGES):
            offset = (i - 1) * 0.22
            label = stage
            for y, group in enumerate(rows):
                values = group.values(lambda m, s=stage: 100 * m["accuracy"][s])
                if values:
                    heights = [y + offset] * len(values)
                    axes.plot(
                        values, heights, "o", color=_COLORS[stage], markersize=4.5, alpha=0.75, mew=0, label=label
                    )
                    axes.plot([fmean(values)], [y + offset], "|", color=_COLORS[stage], markersize=11, mew=1.6)
                    label = ""
        for y in range(1, len(rows)):
            axes.axhline(y - 0.5, color="#0b0c0d", linewidth=0.3, alpha=0.3)
        axes.set_yticks(range(len(rows)), [group.label.replace("$", r"\$") for group in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel("test accuracy (%); a dot is a seed, a line the mean")
        axes.spines[["top", "right"]].set_visible(False)
        if any(not r.error for r in results):
            figure.legend(loc="outside upper right", ncols=len(STAGES), frameon=False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
