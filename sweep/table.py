"""What a sweep found: a row for every point (CSV, JSON), a row for every setting with mean and spread over seeds."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from ..whole_file import write_texts
from .running import Result

if TYPE_CHECKING:
    from rich.console import RenderableType

STAGES = ("float", "quantized", "deployed")


@dataclass(frozen=True)
class Group:
    """The points that differ in nothing but the seed."""

    settings: dict[str, str]
    results: tuple[Result, ...]

    @property
    def label(self) -> str:
        """The settings in one line, without the sections of their keys."""
        return ", ".join(f"{short(key)} {value}" for key, value in self.settings.items()) or "the recipe"

    def values(self, of: Callable[[dict[str, Any]], float]) -> list[float]:
        """A quantity of the points that did not fail."""
        return [of(r.measured) for r in self.results if not r.error]


def short(key: str) -> str:
    """``quantize.weight_bits`` as ``weight_bits``; what two sections have keeps its section."""
    return key if key.rpartition(".")[2] in ("reset", "epochs", "seed", "learning_rate") else key.rpartition(".")[2]


def groups(results: Sequence[Result]) -> list[Group]:
    """In the order of the sweep."""
    found: dict[tuple[tuple[str, str], ...], list[Result]] = {}
    for r in results:
        found.setdefault(tuple(r.point.settings.items()), []).append(r)
    return [Group(dict(settings), tuple(members)) for settings, members in found.items()]


def render(results: Sequence[Result]) -> RenderableType:
    """A table of the groups, and a line for every point that failed."""
    from rich.console import Group as Lines
    from rich.table import Table

    varied = list(results[0].point.settings) if results else []
    chips = list(dict.fromkeys(chip for r in results for chip in r.measured.get("energy", {})))
    columns = [*(short(key) for key in varied), "seeds", *(f"{stage} %" for stage in STAGES)]
    table = Table(*columns, "rate %", "synops", *(f"{chip}, µJ" for chip in chips))
    for column in table.columns:
        column.overflow = "fold"
    for column in table.columns[len(varied) :]:
        column.justify = "right"
    for group in groups(results):
        energies = [group.values(lambda m, c=chip: m["energy"].get(c, {}).get("typical", math.nan)) for chip in chips]
        table.add_row(
            *group.settings.values(),
            str(len(group.values(lambda _m: 0.0))),
            *(spread(group.values(lambda m, s=stage: 100 * m["accuracy"][s])) for stage in STAGES),
            spread(group.values(lambda m: 100 * m["rate"])),
            f"{fmean(synops):,.0f}" if (synops := group.values(lambda m: m["synops"])) else "-",
            *(f"{1e6 * fmean(values):.3g}" if values else "-" for values in energies),
        )
    failed = [r for r in results if r.error]
    lines = [f"failed: {_name(r)}: {r.error}" for r in failed]
    return Lines(table, *lines)


def spread(values: Sequence[float]) -> str:
    """Mean, and the standard deviation where there are several."""
    if not values:
        return "-"
    return f"{fmean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def _name(result: Result) -> str:
    settings = [f"{key}={value}" for key, value in result.point.settings.items()]
    return ", ".join([*settings, f"seed {result.point.seed}"])


def document(results: Sequence[Result]) -> dict[str, Any]:
    """JSON values: all points, and the settings with what they gave."""
    return {
        "recipe": results[0].point.recipe.name if results else None,
        "points": [
            {
                "settings": r.point.settings,
                "seed": r.point.seed,
                "folder": f"{r.folder.parent.name}/{r.folder.name}",
                **r.measured,
                "error": r.error or None,
            }
            for r in results
        ],
        "groups": [
            {
                "settings": g.settings,
                "seeds": len(g.values(lambda _m: 0.0)),
                **{
                    stage: {"mean": fmean(values), "deviation": stdev(values) if len(values) > 1 else None}
                    for stage in STAGES
                    if (values := g.values(lambda m, s=stage: m["accuracy"][s]))
                },
            }
            for g in groups(results)
        ],
    }


def to_csv(results: Sequence[Result]) -> str:
    """A line for every point."""
    varied = list(results[0].point.settings) if results else []
    chips = list(dict.fromkeys(chip for r in results for chip in r.measured.get("energy", {})))
    ranges = [(chip, level) for chip in chips for level in ("low", "typical", "high")]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        [*varied, "seed", *(f"accuracy_{stage}" for stage in STAGES), "rate", "synops_per_sample",
         *(f"{chip}_{level}_joule" for chip, level in ranges), "samples", "digest", "error"]
    )  # fmt: skip
    for r in results:
        m = r.measured
        writer.writerow(
            [*r.point.settings.values(), r.point.seed, *(m.get("accuracy", {}).get(stage, "") for stage in STAGES),
             m.get("rate", ""), m.get("synops", ""),
             *(m.get("energy", {}).get(chip, {}).get(level, "") for chip, level in ranges),
             m.get("samples", ""), m.get("digest", ""), r.error]
        )  # fmt: skip
    return out.getvalue()


def write(results: Sequence[Result], folder: Path) -> list[Path]:
    """Write ``sweep.csv``, ``sweep.json`` and ``sweep.svg``.

    Raises
    ------
    FileFormatError
        If the folder cannot be written.
    """
    from .plot import draw

    texts: Iterable[tuple[str, str]] = (
        ("sweep.csv", to_csv(results)),
        ("sweep.json", json.dumps(document(results), indent=2, allow_nan=False) + "\n"),
        ("sweep.svg", draw(results)),
    )
    return write_texts(folder, texts)
