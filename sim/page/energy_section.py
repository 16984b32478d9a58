"""The page's section on energy and latency: layers, sources, and the ANN beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..units import count, percent, si, si_range
from . import plots
from .markup import Html, figure, join, section, table, tag
from .summary import RunSummary

_COLUMNS = ("low", "typical", "high")


def energy(summary: RunSummary) -> Html:
    """Every chip's report, one after the other, and once the network as an ANN."""
    if not summary.energy:
        return Html("")
    parts = [_chip(report, titled=len(summary.energy) > 1) for report in summary.energy]
    return section(
        "energy",
        "Energy and latency",
        *parts,
        _ann(summary.energy[0]),
        lead="Events counted by the simulator, on every sample, times published constants. Low, typical and high are "
        "whole published cost models, never a mixture.",
    )


def band(value: Mapping[str, float] | None, unit: str) -> str:
    """``low-high`` of a range."""
    return si_range(value["low"], value["high"], unit) if value else "—"


class Footnotes:
    """Numbered notes below a report; the same text gets the same number."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def mark(self, line: str) -> Html:
        """The superscript that refers to ``line``."""
        if line not in self.lines:
            self.lines.append(line)
        return tag("sup", str(self.lines.index(line) + 1))

    def html(self) -> Html:
        """The numbered list."""
        return tag("ol", *(tag("li", line) for line in self.lines), cls="notes") if self.lines else Html("")


def _chip(report: Mapping[str, Any], *, titled: bool) -> Html:
    title = tag("h3", report["chip"]) if titled else Html("")
    notes = Footnotes()
    if report["energy"] is None:
        reason = report["reason"] or "No energies are published for this chip."
        parts = [title, tag("p", reason), _counts(report), _timing(report, notes)]
    else:
        parts = [title, _layers(report, notes), _figures(report), _timing(report, notes)]
    for line in (f"Placement: {report['layout']}", *report["notes"]):
        notes.mark(line)
    return join([*parts, notes.html()])


def _layers(report: Mapping[str, Any], notes: Footnotes) -> Html:
    marks = [notes.mark(report["scenarios"][column]["text"]) for column in _COLUMNS]
    headers = [
        "layer",
        *(join([name, mark]) for name, mark in zip(("energy, low", "typical", "high"), marks, strict=True)),
        "synapses", "updates", "spikes", "synaptic operations", "spikes sent",
    ]  # fmt: skip
    populations = {p["name"]: p for p in report["populations"]}
    rows: list[list[object]] = []
    for layer in report["layers"]:
        causes = [si(layer[f"{cause}_energy"]["typical"], "J") for cause in ("synapse", "update", "spike")]
        counts = [count(layer["synops"]), count(populations[layer["name"]]["spikes"])]
        rows.append([layer["name"], *_three(layer["energy"]), *causes, *counts])
    if report["host_synops"]:
        label = join(["graded input ", tag("small", "computed on the host")])
        rows.append([label, *["—"] * 3, *[""] * 3, f"({count(report['host_synops'])})", ""])
    if report["static"] is not None:
        statics = dict.fromkeys(s["static_source"] for s in report["scenarios"].values() if s["static_source"])
        rows.append([join(["static power", *(notes.mark(s) for s in statics)]), *_three(report["static"]), *[""] * 5])
    spikes = sum(p["spikes"] for p in report["populations"])
    foot = ["one inference", *_three(report["energy"]), *[""] * 3, count(report["synops"]), count(spikes)]
    per_step = band(report["energy_per_step"], "J")
    note = f"Synapses, updates and spikes (with their messages): typical energy by cause. Per time step: {per_step}."
    return join([table(headers, rows, foot=foot), tag("p", note, cls="note")])


def _three(value: Mapping[str, float]) -> list[str]:
    return [si(value[column], "J") for column in _COLUMNS]


def _counts(report: Mapping[str, Any]) -> Html:
    rows: list[list[object]] = []
    populations = {p["name"]: p for p in report["populations"]}
    for layer in report["layers"]:
        p = populations[layer["name"]]
        rows.append([layer["name"], *map(count, (layer["synops"], p["updates"], p["spikes"], p["messages"]))])
    if report["host_synops"]:
        rows.append(["graded input, on the host", f"({count(report['host_synops'])})", "", "", ""])
    return table(["layer", "synaptic operations", "neuron updates", "spikes", "messages"], rows)


def _figures(report: Mapping[str, Any]) -> Html:
    layers, ann = report["layers"], report["comparison"]
    parts = {
        title: [layer[f"{cause}_energy"]["typical"] for layer in layers]
        for title, cause in (("synapses", "synapse"), ("neuron updates", "update"), ("spikes and messages", "spike"))
    }
    totals = [(layer["energy"]["low"], layer["energy"]["high"]) for layer in layers]
    title = f"Energy by layer on {report['chip']}"
    apart = "; static power apart" if report["static"] is not None else ""
    energies = plots.energy_by_layer(title, [layer["name"] for layer in layers], parts, totals)
    operations = {
        "ANN, MAC": float(ann["total_macs"]),
        "spiking, dense": float(ann["dense"]),
        "spiking, AC": float(ann["effective_acs"]),
        "spiking, MAC": float(ann["effective_macs"]),
    }
    shown = {name: value for name, value in operations.items() if value}
    counted = plots.operations(f"Operations of one inference, {report['chip']}", shown)
    return tag(
        "div",
        figure(energies, join([title, tag("small", f" typical, whiskers low to high{apart}")])),
        figure(counted, join(["Operations of one inference", tag("small", " by NeuroBench's definitions")])),
        cls="figures",
    )


def _timing(report: Mapping[str, Any], notes: Footnotes) -> Html:
    timing = report["latency"]
    if timing is None:
        return Html("")
    rows = [
        [name, *(si(timing[key][column], "s") for column in _COLUMNS)]
        for name, key in (
            ("one time step", "step"),
            (f"first answer, {report['steps']} + {timing['depth']} steps", "inference"),
            (f"next answers, every {report['steps']} steps", "interval"),
        )
    ]
    rows.append(["answers per second", *(count(timing["throughput"][column]) for column in _COLUMNS)])
    headers = ["time", *(join([c, notes.mark(timing["scenarios"][c]["text"])]) for c in _COLUMNS)]
    slowest = tag("p", f"Slowest core: {timing['slowest']}.", cls="note")
    return join([tag("h3", "Time"), table(headers, rows), slowest])


def _ann(report: Mapping[str, Any]) -> Html:
    ann, sparse = report["comparison"], report["sparsity"]
    spiking = f"{count(ann['effective_acs'])} AC + {count(ann['effective_macs'])} MAC"
    rows = [
        ["conventional ANN, one pass", f"{count(ann['total_macs'])} MAC", si(ann["int8"], "J"), si(ann["fp32"], "J")],
        [f"spiking, {report['steps']} steps", spiking, si(ann["snn_int8"], "J"), ""],
    ]
    node = f"{ann['source']}. This is arithmetic at another node than the chip's: compare shapes, not joules."
    facts = {
        "activation sparsity": percent(sparse["activation"], 1),
        "connection sparsity": percent(sparse["connection"], 1),
        "dense operations": count(ann["dense"]),
        "footprint": f"{count(sparse['footprint_bits'] / 8)} B of stored integers; "
        f"{count(sparse['footprint_neurobench'])} B as NeuroBench counts float32 parameters",
    }
    listed = "; ".join(f"{name} {value}" for name, value in facts.items())
    return join(
        [
            tag("h3", "The same network as a conventional ANN"),
            table(["", "operations", "int8", "fp32"], rows),
            tag("p", node, cls="note"),
            tag("p", f"By NeuroBench's definitions (zero weights and padding left out): {listed}.", cls="note"),
        ]
    )
