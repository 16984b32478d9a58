"""The promise, on the whole digits test set: every executor, both neurons, both resets, every spike."""

import pytest

from lapilli.pipeline import Narrator, run_recipe
from lapilli.recipe import load_recipe

pytest.importorskip("lava", reason="lava-nc is not installed")


@pytest.mark.lava
@pytest.mark.slow
@pytest.mark.parametrize("reset", ["subtract", "zero"])
@pytest.mark.parametrize("neuron", ["if", "lif"])
def test_what_is_trained_is_what_every_executor_runs(neuron, reset, tmp_path):
    short = ["train.epochs=3", "bit_true.epochs=1", f"network.neuron={neuron}", f"network.reset={reset}"]
    assert_equal_everywhere(load_recipe("digits", short), tmp_path, at_least=0.9)


@pytest.mark.lava
@pytest.mark.slow
def test_tssl_too(tmp_path):
    assert_equal_everywhere(load_recipe("digits-tssl", ["train.epochs=6", "bit_true.epochs=1"]), tmp_path, at_least=0.7)


def assert_equal_everywhere(recipe, folder, at_least):
    done = run_recipe(recipe, folder, resume=False, narrator=Narrator())
    summary = done.summary
    assert done.spikes_equal
    assert set(summary["accuracy"]["executors"]) == {"reference", "torch", "fast", "onnxruntime", "lava"}
    assert set(summary["accuracy"]["executors"].values()) == {summary["accuracy"]["stages"]["bit-true"]}
    assert summary["accuracy"]["stages"]["bit-true"] > at_least
    assert summary["test_samples"] == 360
