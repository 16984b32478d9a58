"""The page: one well-formed file that asks for nothing, hides nothing, and escapes everything."""

import json
import re
from dataclasses import fields, replace
from html.parser import HTMLParser

import numpy as np
import pytest

from lapilli.deploy import check, plan
from lapilli.errors import FileFormatError
from lapilli.network import INPUT, Connection, Conv2d, Dense, Input, Network, Population, Readout
from lapilli.sim import energy, simulate, verify, write_report
from lapilli.sim.engine.batched import fast
from lapilli.sim.page import plots
from lapilli.sim.page import summary as summaries
from lapilli.sim.page.report import SECTIONS, page
from lapilli.sim.page.summary import RunSummary, Stage

EVIL = "<script>alert('x')</script> & \"$y$\" ${name}"
VOID = {"meta", "br", "link", "img", "hr", "input"}


class Checker(HTMLParser):
    """Collects what is wrong: unbalanced elements, repeated ids, anything fetched from elsewhere, scripts."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.ids, self.links, self.problems, self.text = [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        for key, value in attrs:
            if key == "id":
                self.ids.append(value)
            if key in ("src", "href", "srcset", "action", "data", "poster"):
                self.links.append(value)
            if key.startswith("on"):
                self.problems.append(f"handler {key}")
        if tag in ("script", "iframe", "object", "embed", "link", "form"):
            self.problems.append(f"<{tag}>")

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.problems.append(f"unbalanced </{tag}>")

    def handle_data(self, data):
        self.text.append(data)


def checked(html):
    checker = Checker()
    checker.feed(html)
    checker.close()
    assert checker.open == []
    assert checker.problems == []
    assert len(checker.ids) == len(set(checker.ids))
    for link in checker.links:
        assert link.startswith(("#", "data:image/png;base64,"))
        assert not link.startswith("#") or link[1:] in checker.ids
    assert not re.search(r"@import|url\(\s*['\"]?(?!#)", html)
    return checker


@pytest.fixture(scope="module")
def network():
    rng = np.random.default_rng(1)
    weight = rng.integers(-20, 40, (2, 1, 3, 3))
    return Network(
        name="small",
        steps=6,
        input=Input(shape=(1, 4, 4), low=0, high=16, scale=np.array([1 / 16])),
        populations=[
            Population(name="conv1", shape=(2, 4, 4), threshold=64 * 200, reset_amount=64 * 200),
            Population(name="out", shape=(3,), reset="none"),
        ],
        connections=[
            Connection(source=INPUT, target="conv1", synapse=Conv2d(weight, padding=1)),
            Connection(source="conv1", target="out", synapse=Dense(rng.integers(-30, 30, (3, 32)))),
        ],
        readout=Readout(population="out", kind="membrane"),
        labels=("a", EVIL, "c"),
    )


@pytest.fixture(scope="module")
def full(network):
    """A summary with every field, through JSON and back."""
    x = np.random.default_rng(2).random((7, 1, 4, 4))
    truth = np.arange(7) % 3
    run = simulate(network, x, record={"conv1": "spikes", "out": "v"})
    assert run.predictions is not None
    made = RunSummary(
        name="small run",
        created="2026-01-02T03:04:05",
        data={"name": "noise", "train": 1000, "test": 7, "shape": [1, 4, 4], "classes": 3},
        accuracy=0.9806,
        test_samples=7,
        stages=[Stage("Float training", 0.98, 12.3, "3 epochs"), Stage("Folding", 0.97, 100.0), Stage("Export")],
        network=summaries.describe(network),
        spike_rates=run.rates,
        equivalence=json.loads(json.dumps(verify(network, x, against=("fast",), y=truth).to_json())),
        energy=[energy(network, run, chip).to_json() for chip in ("loihi1", "loihi2")],
        checks={chip: [v.to_json() for v in check(network, chip)] for chip in ("loihi1", "loihi2")},
        plans={"loihi1": plan(network, "loihi1").to_json()},
        overflows={"conv1": {"wraps": 0, "saturations": 3, "can_wrap": False, "can_saturate": True}},
        environment={"lapilli": "0.1.0", "Python": "3.12"},
        recipe="[data]\nname = 'noise'",
        history=[
            {"stage": "float", "loss": 2.0, "accuracy": 0.5},
            {"stage": "bit-true", "loss": 1.0, "accuracy": None},
        ],
        confusion=summaries.confusion(truth, run.predictions, 3),
        labels=list(network.labels),
        raster=summaries.raster(run.spikes),
        membrane=summaries.membrane(network, "out", run.v["out"]),
        samples=summaries.samples(x, truth.tolist(), run.predictions.tolist(), network.labels),
    )
    assert all(getattr(made, f.name) for f in fields(made))
    return RunSummary.from_json(json.loads(json.dumps(made.to_json(), allow_nan=False)))


@pytest.fixture(scope="module")
def html(full):
    return page(full)


def test_the_page_is_well_formed_and_asks_for_nothing(html):
    shown = checked(html)
    for anchor, name, _ in SECTIONS:
        assert anchor in shown.ids
        assert name in "".join(shown.text)


def test_the_headline_has_the_proof_the_accuracy_and_the_cost(html, full):
    assert "All spikes equal across 2 executors" in html
    assert "98.06 %" in html
    assert "on loihi1" in html
    assert all(cost["scenarios"]["typical"]["source"] in html for cost in full.energy[:1])


def test_a_chip_without_published_energies_says_so_in_words(html):
    assert "published no energy or time per operation for Loihi 2" in html


def test_the_same_summary_gives_the_same_bytes(html, full):
    assert page(full) == html


def test_texts_from_files_are_escaped_everywhere(full):
    structure = json.loads(json.dumps(full.to_json()))

    def spoil(value):
        if isinstance(value, dict):
            return {key: spoil(v) for key, v in value.items()}
        if isinstance(value, list):
            return [spoil(v) for v in value]
        return f"{value}{EVIL}" if isinstance(value, str) else value

    for name in (
        "name",
        "data",
        "stages",
        "network",
        "environment",
        "recipe",
        "checks",
        "labels",
        "history",
        "samples",
    ):
        structure[name] = spoil(structure[name])
    structure["raster"] = [item | {"population": EVIL} for item in structure["raster"]]
    structure["spike_rates"] = {EVIL: 0.5}
    structure["membrane"] |= {"population": EVIL, "traces": {EVIL: [1, 2], "b": [0, 3]}, "spikes": {}}
    structure["equivalence"]["executors"] = {EVIL: structure["equivalence"]["executors"]["fast"]}
    for cost in structure["energy"]:
        cost |= {"chip": EVIL, "notes": [EVIL], "reason": EVIL}
        for layer, population in zip(cost["layers"], cost["populations"], strict=True):
            layer["name"] = population["name"] = layer["name"] + EVIL
    spoiled = page(RunSummary.from_json(structure))
    checked(spoiled)
    assert "<script" not in spoiled.lower()
    assert "&lt;script&gt;" in spoiled


@pytest.mark.parametrize("missing", [f.name for f in fields(RunSummary) if f.name != "name"])
def test_any_part_may_be_absent(full, missing, monkeypatch):
    monkeypatch.setattr(plots, "_svg", lambda title, *_: f"<svg aria-label='{len(title)}'></svg>")  # tested elsewhere
    default = next(f for f in fields(RunSummary) if f.name == missing)
    checked(page(replace(full, **{missing: getattr(RunSummary(name="x"), default.name)})))


def test_an_empty_summary_is_a_page_without_sections():
    html = page(RunSummary(name="nothing yet"))
    shown = checked(html)
    assert "<section" not in html
    assert "nothing yet" in "".join(shown.text)


def test_a_divergence_is_shown_with_place_values_and_cause(network, full):
    def flipped(net, x, trace=()):
        recording = fast(net, x, trace)
        recording.spikes["conv1"][2, :, 1, 0, 3] ^= 1
        return recording

    proof = verify(network, np.full((2, 1, 4, 4), 0.5), against=("fast", ("broken", flipped)))
    html = page(replace(full, equivalence=json.loads(json.dumps(proof.to_json()))))
    checked(html)
    assert "All spikes equal" not in html
    assert "Spikes differ: broken against reference" in html
    assert "sample 0, population conv1, neuron 19 (channel 1, row 0, column 3), step 2" in html
    assert proof.first_divergence is not None
    assert len(proof.first_divergence.causes) >= 1


def test_an_executor_that_failed_is_not_called_equal(full):
    proof = json.loads(json.dumps(full.equivalence))
    proof["equal"] = False
    proof["executors"]["fast"] |= {"status": "failed", "equal": False, "message": "ran past its time limit"}
    html = page(replace(full, equivalence=proof))
    assert "All spikes equal" not in html
    assert "Not proven equal" in html
    assert "fast did not finish: ran past its time limit" in html


def test_the_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    target = tmp_path / "deep" / "report.html"
    small = RunSummary(name="grüße")
    assert write_report(target, small) == target
    assert target.read_text(encoding="utf-8") == page(small)
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_report(target, RunSummary(name="other"))
    assert target.read_text(encoding="utf-8") == page(small)
    assert [f.name for f in target.parent.iterdir()] == ["report.html"]


@pytest.mark.parametrize("broken", [{"name": "x", "surprise": 1}, {"name": "x", "stages": [{"title": "y"}]}, {}])
def test_a_malformed_summary_is_refused_by_name(broken):
    with pytest.raises(FileFormatError, match="run summary"):
        RunSummary.from_json(broken)


def test_rasters_confusions_and_samples_hold_what_was_recorded():
    spikes = np.zeros((3, 2, 2, 2), np.uint8)
    spikes[0, 1, 1, 0] = spikes[2, 1, 0, 1] = 1
    (row,) = summaries.raster({"a": spikes}, sample=1)
    assert (row.population, row.neurons, row.spikes) == ("a", 4, [[2], [], [1]])
    assert summaries.confusion([0, 1, 1], [0, 0, 1], 2) == [[1, 0], [1, 1]]
    shown = summaries.samples(np.zeros((6, 1, 1)), [0, 1, 0, 1, 0, 1], [0, 1, 1, 1, 0, 1], ("no", "yes"), limit=3)
    assert [(s.truth, s.prediction) for s in shown] == [("no", "no"), ("yes", "yes"), ("no", "yes")]


@pytest.mark.parametrize("image", [np.zeros((1, 1)), np.zeros((2, 3, 4)), np.zeros((3, 4, 2)), np.arange(5.0)])
def test_images_of_any_shape_can_be_shown(image):
    assert plots.samples("any", [image], ["a"], ["b"]).startswith("<svg")


def test_figures_follow_the_page_and_carry_no_date(html):
    svg = plots.spike_rates("Rates of 日本 & $x", {"$a": 0.5, "b_{": 0.0})
    assert "currentColor" in svg
    assert "<metadata" not in svg
    assert "xmlns" not in svg
    assert plots.spike_rates("Rates of 日本 & $x", {"$a": 0.5, "b_{": 0.0}) == svg
    assert html.count("<svg") >= 10
