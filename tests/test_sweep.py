"""Sweeps: the grid, shared float trainings, failures that stop nobody, resuming, and what is written."""

from __future__ import annotations

import csv
import json

import pytest
from click.testing import CliRunner

from lapilli import pipeline
from lapilli.cli import main
from lapilli.errors import DataError, RecipeError
from lapilli.export import load
from lapilli.recipe import load_recipe
from lapilli.scale.backends import Backend
from lapilli.sweep import running
from lapilli.sweep.grid import Axis, points_of
from lapilli.sweep.running import run_sweep
from lapilli.sweep.table import document, groups, to_csv
from lapilli.terminal import Narrator

TINY = (
    "network.steps=3",
    "train.epochs=1",
    "bit_true.epochs=1",
    'network.layers=[{type = "conv", channels = 3, kernel = 3, stride = 2}, {type = "linear"}]',
)
HERE = Backend("joblib", jobs=1)


def test_axes():
    assert Axis.parse("a.b=1, 2").values == (("1",), ("2",))
    layers = 'network.layers=[{type = "conv", channels = 3}, {type = "linear"}],[{type = "linear"}]'
    assert Axis.parse(layers).values[1] == ('[{type = "linear"}]',)
    together = Axis.parse("network.neuron:network.threshold=if:2.0,lif:0.3")
    assert together.keys == ("network.neuron", "network.threshold")
    assert together.values == (("if", "2.0"), ("lif", "0.3"))


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("steps", "give section.key"),
        ("network.steps=", "give section.key"),
        ("network.steps=4,,5", "does not have 1 value"),
        ("network.neuron:network.threshold=if:2.0,lif", "'lif' does not have 2 values, separated by colons"),
    ],
)
def test_axes_that_make_no_sense_are_refused(text, names):
    with pytest.raises(RecipeError, match=names):
        Axis.parse(text)


def test_points_are_every_combination_and_every_seed():
    points = points_of(
        "digits", ["network.steps=4", "quantize.weight_bits=4,8", "network.reset=subtract,zero"], seeds=2
    )
    assert len(points) == 8
    assert points[0].settings == {"quantize.weight_bits": "4", "network.reset": "subtract"}, "what varies only"
    assert [p.recipe.network.reset for p in points[:4]] == ["subtract", "subtract", "zero", "zero"]
    assert [p.seed for p in points[:2]] == [0, 1]
    assert [(p.recipe.train.seed, p.recipe.bit_true.seed) for p in points[:2]] == [(0, 0), (1, 1)]
    assert {p.recipe.network.steps for p in points} == {4}
    with pytest.raises(RecipeError, match="given twice"):
        points_of("digits", ["network.steps=4,5", "network.steps=6"])
    with pytest.raises(RecipeError, match=r"network\.stepz"):
        points_of("digits", ["network.stepz=4,5"])
    with pytest.raises(RecipeError, match="30000 points"):
        points_of("digits", ["network.steps=1,2,3"], seeds=10_000)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep in which one point's data are absent: results, folder, and how often a float network was trained."""
    folder = tmp_path_factory.mktemp("sweep")
    axes = [*TINY, "data.name:data.folder=digits:unused,arrays:/absent", "quantize.reset=subtract,zero"]
    trained = []
    with pytest.MonkeyPatch.context() as patch:
        real = pipeline.train_float
        patch.setattr(pipeline, "train_float", lambda *a, **k: (trained.append(a), real(*a, **k))[1])
        results = run_sweep(points_of("digits", axes), folder, backend=HERE)
    return results, folder, len(trained)


def test_a_point_that_fails_stops_no_other(swept):
    results, _, _ = swept
    assert [bool(r.error) for r in results] == [False, False, True, True]
    assert "/absent" in results[2].error
    assert "\n" not in results[2].error


def test_float_training_is_shared_by_what_differs_only_after_it(swept):
    results, _, trained = swept
    assert trained == 2, "one for each data set"
    soft, hard = results[0].measured, results[1].measured
    assert soft["accuracy"]["float"] == hard["accuracy"]["float"]
    assert soft["digest"] != hard["digest"]


def test_a_hard_reset_is_swapped_in_after_training(swept):
    results, _, _ = swept
    soft, hard = (load(r.folder / "network.onnx") for r in results[:2])
    assert [p.reset for p in soft.populations] == ["subtract", "none"]
    assert [p.reset for p in hard.populations] == ["zero", "none"]
    assert hard.metadata["recipe"]["network"]["reset"] == "subtract", "as trained"
    assert results[1].measured["digest"] == hard.digest()


def test_a_point_is_the_network_that_the_recipe_alone_gives(swept, tmp_path):
    results, _, _ = swept
    recipe = load_recipe("digits", [*TINY, "data.folder=unused"])
    alone = pipeline.train_recipe(recipe, tmp_path, resume=False, narrator=Narrator())
    measured = results[0].measured
    assert measured["digest"] == alone.network.digest()
    assert measured["accuracy"]["deployed"] == alone.accuracy["bit-true"]
    assert measured["accuracy"]["quantized"] == alone.accuracy["quantized"]


def test_a_second_run_resumes(swept, monkeypatch):
    results, folder, _ = swept
    points = [r.point for r in results]
    with pytest.raises(DataError, match="--resume"):
        run_sweep(points, folder, backend=HERE)
    monkeypatch.setattr(running, "_measure", lambda *_: pytest.fail("was there"))
    progress = []
    again = run_sweep(points, folder, backend=HERE, resume=True, progress=lambda *n: progress.append(n))
    assert [r.measured for r in again] == [r.measured for r in results]
    assert again[2].error == results[2].error, "what failed was tried again"
    assert progress[-1] == (5, 5)


def test_interrupted_trainings_are_finished(swept, tmp_path):
    results, _, _ = swept
    points = [r.point for r in results[:2]]

    def stop(*_done):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_sweep(points, tmp_path, backend=HERE, progress=stop)
    again = run_sweep(points, tmp_path, backend=HERE, resume=True)
    assert [r.measured["digest"] for r in again] == [r.measured["digest"] for r in results[:2]]


def test_tables(swept):
    results, _, _ = swept
    rows = list(csv.DictReader(to_csv(results).splitlines()))
    assert len(rows) == 4
    assert float(rows[1]["accuracy_deployed"]) == results[1].measured["accuracy"]["deployed"]
    assert rows[0]["quantize.reset"] == "subtract"
    assert rows[2]["error"] == results[2].error
    found = groups(results)
    assert [len(g.results) for g in found] == [1, 1, 1, 1]
    assert found[1].values(lambda m: m["accuracy"]["deployed"]) == [results[1].measured["accuracy"]["deployed"]]
    assert json.loads(json.dumps(document(results), allow_nan=False))["points"][3]["error"]


def test_the_command_over_processes(tmp_path):
    sets = [part for text in (*TINY, "quantize.weight_bits=3,8") for part in ("--set", text)]
    out = tmp_path / "sweep"
    done = CliRunner().invoke(main, ["sweep", "digits", *sets, "--jobs", "2", "--out", str(out), "--json"])
    assert done.exit_code == 0, done.stderr
    table = json.loads(done.stdout)
    assert [p["settings"] for p in table["points"]] == [{"quantize.weight_bits": "3"}, {"quantize.weight_bits": "8"}]
    assert {p.name for p in out.iterdir()} >= {"sweep.csv", "sweep.json", "sweep.svg", "points", "float"}
    assert (out / "sweep.svg").read_text().startswith("<?xml")
    again = CliRunner().invoke(main, ["sweep", "digits", *sets, "--jobs", "1", "--out", str(out), "--resume"])
    assert again.exit_code == 0, again.stderr
    assert "weight_bits" in again.stdout
    refused = CliRunner().invoke(main, ["sweep", "digits", *sets, "--jobs", "1", "--out", str(out)])
    assert refused.exit_code == 2
    assert refused.stderr.count("\n") == 1
