"""The page's sections, but for energy: each a function of the summary, empty where there is nothing to show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..units import count, percent, si
from . import plots
from .energy_section import band
from .markup import Html, badge, figure, join, section, table, tag
from .summary import RunSummary


def subtitle(summary: RunSummary) -> Html:
    """Data set, steps and date below the title."""
    data, parts = summary.data, []
    if data.get("name"):
        parts.append(str(data["name"]))
    if data.get("train") and data.get("test"):
        parts.append(f"{data['train']:,} training and {data['test']:,} test samples")
    if summary.network:
        neurons = sum(p["neurons"] for p in summary.network["populations"])
        parts.append(f"{count(neurons)} neurons, {summary.network['steps']} time steps")
    if summary.created:
        parts.append(summary.created.replace("T", " ")[:16])
    return join([" · ".join(parts)])


def headline(summary: RunSummary) -> Html:
    """The proof and the numbers people share."""
    tiles = [tile for tile in (_accuracy(summary), *_energy(summary), _latency(summary), _size(summary)) if tile]
    return join([_verdict(summary), tag("div", *tiles, cls="tiles") if tiles else ""])


def _tile(label: str, value: object, detail: object) -> Html:
    parts = (tag("div", part, cls=cls) for part, cls in ((label, "label"), (value, "value"), (detail, "detail")))
    return tag("div", *parts, cls="tile")


def _accuracy(summary: RunSummary) -> Html:
    if summary.accuracy is None:
        return Html("")
    on = f"on {summary.test_samples:,} test samples" if summary.test_samples else "on the test samples"
    return _tile("Accuracy, bit-true", percent(summary.accuracy), f"{on}, in the chip's integers")


def _energy(summary: RunSummary) -> list[Html]:
    priced = next((report for report in summary.energy if report["energy"] is not None), None)
    if priced is None:
        return []
    sources = "; ".join(dict.fromkeys(s["model"] for s in priced["scenarios"].values()))
    parts = f" ({si(priced['dynamic']['typical'], 'J')} dynamic)" if priced["static"] else ""
    detail = f"{band(priced['energy'], 'J')} on {priced['chip']}{parts}; {sources}"
    return [_tile("Energy per inference", si(priced["energy"]["typical"], "J"), detail)]


def _latency(summary: RunSummary) -> Html:
    timed = next((report for report in summary.energy if report["latency"] is not None), None)
    if timed is None:
        return Html("")
    value = timed["latency"]["inference"]
    detail = f"{band(value, 's')} to the first answer on {timed['chip']}"
    return _tile("Latency", si(value["typical"], "s"), detail)


def _size(summary: RunSummary) -> Html:
    if not summary.energy:
        return Html("")
    report = summary.energy[0]
    sparse = report["sparsity"]["activation"]
    detail = f"per inference; {percent(sparse, 1)} of neuron steps are silent"
    return _tile("Synaptic operations", count(report["synops"]), detail)


def _verdict(summary: RunSummary) -> Html:
    proof = summary.equivalence
    if not proof or not proof["executors"]:
        return Html("")
    executors = proof["executors"]
    names = [proof["baseline"], *executors]
    listed = f"{', '.join(names[:-1])} and {names[-1]}"
    if proof["equal"]:
        compared = sum(p["compared"] for e in executors.values() for p in e["populations"].values())
        told = f"{listed}: {count(proof['samples'])} samples, {count(compared)} comparisons, not one differs."
        return _banner("good", "✓", f"All spikes equal across {len(names)} executors", tag("p", told))
    different = [name for name, e in executors.items() if e["status"] == "different"]
    failed = [
        tag("p", f"{name} did not finish: {e['message']}") for name, e in executors.items() if e["status"] == "failed"
    ]
    title = f"Spikes differ: {', '.join(different)} against {proof['baseline']}" if different else "Not proven equal"
    first = proof.get("first_divergence")
    return _banner("bad", "✗", title, join([_divergence(first, proof["baseline"]) if first else "", *failed]))


def _divergence(first: Mapping[str, Any], baseline: str) -> Html:
    """Where two executors part: the place, both sides' values, likely causes."""
    at = ", ".join(f"{axis} {index}" for axis, index in first["coordinates"].items())
    place = f"First divergence: sample {first['sample']}, population {first['population']}, neuron {first['neuron']}"
    sides = ((baseline, first["baseline"]), (first["executor"], first["other"]))
    values = ("spike", "current", "u", "v")
    rows = [[name, *("—" if side[v] is None else f"{side[v]:,}" for v in values)] for name, side in sides]
    causes = [tag("li", cause) for cause in first["causes"]]
    return join(
        [
            tag("p", f"{place} ({at}), step {first['step']}, threshold {first['theta']:,}."),
            table(["executor", *values], rows),
            tag("ul", *causes, cls="notes") if causes else "",
        ]
    )


def _banner(kind: str, mark: str, title: str, body: object) -> Html:
    sign = tag("div", tag("span", mark), cls="mark", aria_hidden="true")
    return tag("div", sign, tag("div", tag("b", title), body), cls=f"verdict {kind}", role="status")


def pipeline(summary: RunSummary) -> Html:
    """Stages with accuracy and time, and the learning curve."""
    stages = [
        tag(
            "li",
            tag("div", stage.name, cls="name"),
            tag("div", percent(stage.accuracy), cls="accuracy") if stage.accuracy is not None else "",
            tag("div", join(_stage_details(stage.note, stage.seconds)), cls="detail"),
        )
        for stage in summary.stages
    ]
    measured = {s.name: s.accuracy for s in summary.stages if s.accuracy is not None}
    figures = []
    if any(e.get("loss") is not None or e.get("accuracy") is not None for e in summary.history):
        figures.append(figure(plots.learning_curve("Learning curve", summary.history), "Learning curve"))
    if len(measured) > 1:
        figures.append(figure(plots.accuracies("Accuracy by stage", measured), "Accuracy by stage"))
    return section(
        "pipeline",
        "Pipeline",
        tag("ol", *stages, cls="stages") if stages else "",
        tag("div", *figures, cls="figures") if figures else "",
        lead="From floating point to the integers that the chip computes with; test accuracy after each stage.",
    )


def _stage_details(note: str, seconds: float | None) -> list[Html]:
    lines = [note] if note else []
    if seconds is not None:
        lines.append(f"{seconds / 60:.1f} min" if seconds >= 90 else f"{seconds:.1f} s")
    return [tag("div", line) for line in lines]


def equivalence(summary: RunSummary) -> Html:
    """Executors by populations: what was compared, and what differs."""
    proof = summary.equivalence
    if not proof or not proof["executors"]:
        return Html("")
    executors = proof["executors"]
    populations = list(dict.fromkeys(name for e in executors.values() for name in e["populations"]))
    rows = [[name, *(_cell(e["populations"].get(name)) for e in executors.values())] for name in populations]
    if any(e["predictions_compared"] for e in executors.values()):
        rows.append(["class decisions", *(_decisions(e) for e in executors.values())])
    if any(e["accuracy"] is not None for e in executors.values()):
        rows.append(["test accuracy", *(percent(e["accuracy"]) for e in executors.values())])
    rows.append(["seconds", *(f"{e['seconds']:.2f}" for e in executors.values())])
    kinds = {"equal": "good", "different": "bad", "failed": "bad"}
    foot = ["verdict", *(badge(e["status"], kinds.get(e["status"], "bad")) for e in executors.values())]
    return section(
        "equivalence",
        "Equivalence",
        table(["population", *executors], rows, foot=foot),
        lead=f"Every spike of every population, and every final membrane of a readout, against {proof['baseline']} on "
        f"{count(proof['samples'])} samples: values that differ, of all compared.",
    )


def _decisions(executor: Mapping[str, Any]) -> Html:
    compared, differing = executor["predictions_compared"], executor["predictions_differing"]
    return _cell({"compared": compared, "differing": differing} if compared else None)


def _cell(found: Mapping[str, Any] | None) -> Html:
    if found is None or not found["compared"]:
        return tag("small", "not compared")
    differing = found["differing"]
    return join([tag("b", count(differing)) if differing else "0", tag("small", f" of {count(found['compared'])}")])


def activity(summary: RunSummary) -> Html:
    """Spike rates, a raster, membranes, and overflow."""
    figures = []
    if summary.raster:
        rows = [(r.population, r.neurons, r.spikes) for r in summary.raster]
        caption = join(["Spikes of one sample", tag("small", " every population; rows are neurons")])
        figures.append(figure(plots.raster("Spike raster", rows), caption, wide=True))
    if summary.spike_rates:
        figures.append(figure(plots.spike_rates("Spike rate by population", summary.spike_rates), "Spike rates"))
    if summary.membrane:
        m = summary.membrane
        svg = plots.membrane("Membrane traces", m.traces, m.threshold, m.spikes)
        figures.append(
            figure(svg, join([f"Membrane of {m.population}", tag("small", " same sample, after the reset")]))
        )
    return section(
        "activity", "Activity", tag("div", *figures, cls="figures") if figures else "", _overflows(summary.overflows)
    )


_OVERFLOWS = (("wraps", "can_wrap"), ("saturations", "can_saturate"))


def _overflows(overflows: Mapping[str, Mapping[str, Any]]) -> Html:
    if not overflows:
        return Html("")
    seen = sum(o.get("wraps", 0) + o.get("saturations", 0) for o in overflows.values())
    title = tag("h3", "Overflow ", badge("none seen", "good") if not seen else badge(f"{count(seen)} events", "warn"))
    rows = [
        [name, *(cell for seen, can in _OVERFLOWS for cell in (count(o.get(seen, 0)), _possible(o.get(can))))]
        for name, o in overflows.items()
    ]
    headers = ["population", "current wrapped", "possible", "membrane saturated", "possible"]
    note = tag("p", "Events are (neuron, step, sample) triples; possible: the worst case over all inputs.", cls="note")
    return join([title, table(headers, rows), note])


def _possible(verdict: bool | None) -> str:
    return {None: "—", True: "yes", False: "never"}[verdict]


def answers(summary: RunSummary) -> Html:
    """Sample images with predictions, and the confusion matrix."""
    figures = []
    if summary.confusion:
        labels = list(summary.labels) or [str(i) for i in range(len(summary.confusion))]
        figures.append(figure(plots.confusion("Confusion matrix", summary.confusion, labels), "Confusion matrix"))
    if summary.samples:
        svg = plots.samples(
            "Samples and predictions",
            [s.image for s in summary.samples],
            [s.truth for s in summary.samples],
            [s.prediction for s in summary.samples],
        )
        caption = join(["Samples", tag("small", " ✗ wrong answers, with the true class in brackets")])
        figures.append(figure(svg, caption))
    return section("answers", "Answers", tag("div", *figures, cls="figures") if figures else "")


def network(summary: RunSummary) -> Html:
    """Populations and connections of the description."""
    described = summary.network
    if not described:
        return Html("")
    populations = [
        [p["name"], "×".join(map(str, p["shape"])), p["reset"], count(p["neurons"]), *_number(p["threshold"]),
         *_number(p["reset_amount"]), str(p["du"]), str(p["dv"]), str(p["state_bits"])]
        for p in described["populations"]
    ]  # fmt: skip
    connections = [
        [c["name"], c["kind"], "×".join(map(str, c["weight_shape"])), count(c["weights"]),
         percent(c["zeros"] / c["weights"], 1), str(c["weight_bits"]), str(c["weight_exponent"]), str(c["delay"])]
        for c in described["connections"]
    ]  # fmt: skip
    fed = described["input"]
    shape = "×".join(map(str, fed["shape"]))
    facts = [f"Input {shape}, integers {fed['low']} to {fed['high']}", f"{described['steps']} steps"]
    facts += [f"readout: {described['readout']}"] if described["readout"] else []
    return section(
        "network",
        "Network",
        tag("h3", "Populations"),
        table(["population", "shape", "reset", "neurons", "threshold", "reset by", "du", "dv", "state bits"],
              populations, left=3),
        tag("h3", "Connections"),
        table(["connection", "kind", "weight", "weights", "zeros", "bits", "exponent", "delay"], connections, left=3),
        tag("p", "SHA-256 of structure and tensors: ", tag("code", described["digest"]), cls="note"),
        lead=f"{'; '.join(facts)}. Thresholds and resets in state units, decays in 1/4096 per step.",
    )  # fmt: skip


def _number(value: int | None) -> list[str]:
    return ["—" if value is None else f"{value:,}"]


def chips(summary: RunSummary) -> Html:
    """Design rules and placement, chip by chip."""
    names = list(dict.fromkeys([*summary.checks, *summary.plans]))
    parts: list[Html] = []
    for name in names:
        found = summary.checks.get(name)
        parts.append(tag("h3", name, " ", _check_badge(found)))
        if found:
            parts.append(_violations(found))
        if name in summary.plans:
            parts.append(_plan(summary.plans[name]))
    return section("chips", "Chips", *parts, lead="Design rules, and the cores that the network takes.")


def _check_badge(found: Any) -> Html:
    if found is None:
        return Html("")
    errors = sum(v["severity"] == "error" for v in found)
    if errors:
        return badge(f"{errors} violation{'s' if errors > 1 else ''}", "bad")
    return badge("all rules hold, with notes" if found else "all rules hold", "good")


def _violations(found: Any) -> Html:
    """What was found, one row for all places where it is the same."""
    places: dict[tuple[str, ...], list[str]] = {}
    for v in found:
        kind = tuple(v[key] for key in ("severity", "found", "rule", "limit", "source", "remedy"))
        places.setdefault(kind, []).append(v["where"])
    rows = [
        [
            badge(severity, "bad" if severity == "error" else "plain"),
            join([", ".join(where), tag("br"), tag("small", rule.replace("_", " "))]),
            found_there,
            join([limit, tag("br"), tag("small", source)]),
            remedy,
        ]
        for (severity, found_there, rule, limit, source, remedy), where in places.items()
    ]
    return table(["", "where", "found", "limit", "what helps"], rows, left=5)


def _plan(plan: Mapping[str, Any]) -> Html:
    """Cores by population, and how full the fullest of them is."""
    kinds = ("neurons", "memory", "axons_in", "axons_out")
    rows = []
    for name in dict.fromkeys(s["population"] for s in plan["shards"]):
        shards = [s for s in plan["shards"] if s["population"] == name]
        full = [
            max((s["utilization"][kind] for s in shards if s["utilization"][kind] is not None), default=None)
            for kind in kinds
        ]
        sums = [count(sum(s[key] for s in shards)) for key in ("compartments", "synapses")]
        rows.append([name, count(len({s["core"] for s in shards})), *sums, *(percent(f, 0) for f in full)])
    headers = ["population", "cores", "compartments", "synapses", "neurons", "memory", "axons in", "axons out"]
    foot = ["in all", count(plan["cores"]), count(plan["compartments"]), count(plan["synapses"]), *[""] * 4]
    taken = f"{count(plan['chips'])} chip{'s' if plan['chips'] > 1 else ''}"
    taken += f", {count(plan['tiles'])} tiles" if plan["tiles"] is not None else ""
    note = tag("p", f"{taken}; the last four columns are shares of the fullest core.", cls="note")
    notes = tag("ul", *(tag("li", line) for line in plan["notes"]), cls="notes") if plan["notes"] else ""
    return join([table(headers, rows, foot=foot), note, notes])


def facts(values: Mapping[str, object]) -> Html:
    """A list of names and values."""
    pairs = []
    for name, value in values.items():
        shown = f"{value:.3g}" if isinstance(value, float) else f"{value:,}" if type(value) is int else value
        pairs += [tag("dt", name), tag("dd", shown)]
    return tag("dl", *pairs, cls="facts") if pairs else Html("")


def environment(summary: RunSummary) -> Html:
    """Versions and the recipe: what it takes to do it again."""
    recipe = tag("details", tag("summary", "Recipe"), tag("pre", summary.recipe)) if summary.recipe else ""
    return section("environment", "Environment", facts(summary.environment), recipe)
