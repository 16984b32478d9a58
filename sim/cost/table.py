"""An energy report as tables for the terminal (needs rich)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ..units import count, percent, si, si_range

if TYPE_CHECKING:
    from rich.console import RenderableType

    from .energy_report import EnergyReport
    from .model import Range


def render(report: EnergyReport) -> RenderableType:
    """Energy by layer, latency, the ANN beside it, and the sources as footnotes."""
    parts: list[RenderableType] = [_layers(report)]
    parts += [Text(line) for line in (*_latency(report), *_comparison(report))]
    parts += [Text(line, style="dim") for line in footnotes(report)]
    return Group(*parts)


def _layers(report: EnergyReport) -> Table:
    table = Table(
        title=f"{escape(report.network)} on {escape(report.chip)}: one inference, {report.steps} steps "
        f"(mean of {report.samples} samples)",
        title_justify="left",
    )
    columns = ("layer", "synaptic ops", "updates", "spikes", "rate", "synapses", "updates", "spikes", "energy")
    priced = report.energy is not None
    for column in columns if priced else columns[:5]:
        table.add_column(column, justify="left" if column == "layer" else "right")
    for layer in report.layers():
        p = layer.population
        cells = [escape(p.name), count(layer.synops), count(p.updates), count(p.spikes), percent(p.spike_rate, 1)]
        energies = (layer.synapse_energy, p.update_energy, p.spike_energy)
        table.add_row(*cells, *(_typical(e) for e in energies if priced), *([_band(layer.energy)] if priced else []))
    if report.host_synops:
        table.add_row("input, on the host", f"({count(report.host_synops)})", *[""] * (7 if priced else 3))
    if report.static is not None:
        table.add_row("static power x time", *[""] * 7, _band(report.static))
    table.add_section()
    updates, spikes = (sum(getattr(p, name) for p in report.populations) for name in ("updates", "spikes"))
    total = ["total", count(report.synops), count(updates), count(spikes), ""]
    table.add_row(*total, *(["", "", "", _band(report.energy)] if priced else []), style="bold")
    return table


def _typical(value: Range | None) -> str:
    return si(value.typical, "J") if value is not None else "—"


def _band(value: Range | None) -> str:
    return f"{si(value.typical, 'J')} ({si_range(value.low, value.high, 'J')})" if value is not None else "—"


def _latency(report: EnergyReport) -> list[str]:
    lines = [f"energy: {report.reason}"] if report.reason else []
    if report.energy_per_step is not None:
        lines.append(f"energy per step     {_band_text(report.energy_per_step, 'J')}")
    timing = report.latency
    if timing is not None:
        lines += [
            f"time of one step    {_band_text(timing.step, 's')}; slowest core: {timing.slowest}",
            f"latency             {_band_text(timing.inference, 's')}  = {report.steps} + {timing.depth} steps",
            f"time per inference  {_band_text(timing.interval, 's')}  back to back",
        ]
    return lines


def _band_text(value: Range, unit: str) -> str:
    return f"{si(value.typical, unit)} ({si_range(value.low, value.high, unit)})"


def _comparison(report: EnergyReport) -> list[str]:
    ann, sparse = report.comparison, report.sparsity
    as_ann = f"{count(ann.total_macs)} MAC: {si(ann.int8, 'J')} int8, {si(ann.fp32, 'J')} fp32 (arithmetic only, 45 nm)"
    operations = f"{count(ann.effective_acs)} effective AC, {count(ann.effective_macs)} effective MAC"
    shares = f"activation sparsity {percent(sparse.activation, 1)}, connection sparsity {percent(sparse.connection, 1)}"
    stored = f"{count(sparse.footprint_bits / 8)} B stored integers"
    return [
        f"same network as ANN {as_ann}",
        f"NeuroBench          {operations}, {count(ann.dense)} dense; {shares}",
        f"footprint           {stored}, {count(sparse.footprint_neurobench)} B by NeuroBench (float32)",
    ]


def footnotes(report: EnergyReport) -> list[str]:
    """Which published model each column is, the other sources, and what the estimate leaves out."""
    lines = [f"energy, {column}: {s.text}" for column, s in report.scenarios.items()]
    if report.latency is not None:
        lines += [f"time, {column}: {s.text}" for column, s in report.latency.scenarios.items()]
    statics = {s.model.static_source for s in report.scenarios.values() if s.model.static_source}
    lines += [f"static power: {source}" for source in sorted(statics)]
    return [*lines, f"ANN: {report.comparison.source}", f"placement: {report.layout}", *report.notes]
