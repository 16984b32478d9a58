"""The whole pipeline, small: what a run leaves behind, and that every stage agrees."""

import json
import sys
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from click.testing import CliRunner

import lapilli
from lapilli.cli import main
from lapilli.conversion import convert_checkpoint
from lapilli.errors import RecipeError
from lapilli.pipeline import Narrator, run_recipe, train_recipe
from lapilli.recipe import load_recipe

FAST = ["train.epochs=2", "bit_true.epochs=1", "network.steps=4"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    executors = ("torch", "fast", "onnxruntime")
    done = run_recipe(load_recipe("digits", FAST), folder, resume=False, narrator=Narrator(), executors=executors)
    return folder, done


def test_it_leaves_everything(finished):
    folder, done = finished
    names = {
        "float.safetensors",
        "float.csv",
        "bit-true.csv",
        "checkpoint.safetensors",
        "network.onnx",
        "report.html",
        "report.json",
        "summary.json",
    }
    assert names == {path.name for path in folder.iterdir()}
    assert json.loads((folder / "summary.json").read_text()) == done.summary


def test_all_executors_agree_and_have_the_accuracy_of_training(finished):
    _, done = finished
    assert done.spikes_equal
    accuracy = done.summary["accuracy"]
    assert set(accuracy["executors"]) == {"reference", "torch", "fast", "onnxruntime"}
    assert set(accuracy["executors"].values()) == {accuracy["stages"]["bit-true"]}
    assert accuracy["stages"]["bit-true"] > 0.8


def test_the_file_is_the_network_and_carries_its_history(finished):
    folder, done = finished
    network = lapilli.load(folder / "network.onnx")
    assert network.digest() == done.summary["digest"]
    assert network.metadata["recipe"]["name"] == "digits"
    assert network.metadata["accuracy"]["bit-true"] == done.summary["accuracy"]["stages"]["bit-true"]


def test_a_bit_true_checkpoint_exports_exactly(finished):
    folder, done = finished
    network = convert_checkpoint(str(folder / "checkpoint.safetensors")).network
    assert network.metadata["recipe"]["name"] == "digits"  # so that a data folder can be read for it
    assert network.digest() == done.summary["digest"]
    with pytest.raises(RecipeError, match="bit-true"):
        convert_checkpoint(str(folder / "checkpoint.safetensors"), bits=4)


def test_a_float_checkpoint_exports_at_any_width(finished):
    folder, _ = finished
    for bits in (8, 4):
        network = convert_checkpoint(str(folder / "float.safetensors"), bits=bits).network
        assert {c.weight_bits for c in network.connections} == {bits}
        assert max(int(np.abs(c.synapse.weight).max()) for c in network.connections) <= 2 ** (bits - 1) - 1


def test_resuming_a_finished_run_changes_nothing(finished):
    folder, done = finished
    before = (folder / "checkpoint.safetensors").read_bytes()
    again = train_recipe(load_recipe("digits", FAST), folder, resume=True, narrator=Narrator())
    assert again.network.digest() == done.summary["digest"]
    assert (folder / "checkpoint.safetensors").read_bytes() == before


def test_the_page_can_be_written_again(finished):
    folder, _ = finished
    page = (folder / "report.html").read_text()
    (folder / "report.html").unlink()
    result = CliRunner().invoke(main, ["report", str(folder)])
    assert result.exit_code == 0
    assert (folder / "report.html").read_text() == page


def test_summary_has_energy_ranges_with_sources_and_times(finished):
    _, done = finished
    assert done.summary["seconds"]["total"] > 0
    energy = done.summary["energy"]["loihi1"]["energy"]
    assert 0 < energy["low"] <= energy["typical"] <= energy["high"]
    assert done.summary["energy"]["loihi2"]["energy"] is None
    assert {"lapilli", "torch", "onnxruntime", "python"} <= set(done.summary["versions"])


def test_absent_lava_stops_a_run_before_training(tmp_path, monkeypatch):
    for name in [m for m in sys.modules if m == "lava" or m.startswith("lava.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lava", None)
    result = CliRunner().invoke(main, ["run", "digits", "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "lava" in result.stderr
    assert not (tmp_path / "out").exists()


def test_export_converts_between_formats_and_searches_bits(finished, tmp_path):
    folder, _ = finished
    checkpoint, out = str(folder / "float.safetensors"), tmp_path / "searched.onnx"
    result = CliRunner().invoke(
        main,
        [
            "export",
            checkpoint,
            "--out",
            str(out),
            "--max-loss",
            "0.02",
            "--report",
            "--json",
            "--plots",
            str(tmp_path / "figures"),
        ],
    )
    assert result.exit_code == 0
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"report.svg", "search.svg"}
    for path in (tmp_path / "figures").iterdir():
        assert ET.parse(path).getroot().tag.endswith("svg")
    document = json.loads(result.stdout)
    assert document["digest"] == document["report"]["digest"] == lapilli.load(out).digest()
    assert document["search"]["memory_bits"] <= document["search"]["memory_bits_widest"]

    nir = tmp_path / "net.nir"
    assert CliRunner().invoke(main, ["export", str(out), "--out", str(nir), "--dt", "0.001"]).exit_code == 0
    assert lapilli.load(nir) == lapilli.load(out)
    nothing = CliRunner().invoke(main, ["export", checkpoint, "--plots", str(tmp_path)])
    assert nothing.exit_code == 2
    assert "nothing to draw; add --report or --max-loss" in nothing.stderr
    refused = CliRunner().invoke(main, ["export", str(out), "--out", str(tmp_path / "net.net")])
    assert refused.exit_code == 2
    assert "reset" in refused.stderr, "lava-dl cannot represent the soft reset, and it says so"
