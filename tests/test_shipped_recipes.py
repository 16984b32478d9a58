"""The promise for every recipe that comes along: what training measured is what the exported file does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import lapilli
from lapilli.pipeline import NETWORK, Narrator, train_recipe
from lapilli.recipe import load_recipe, shipped
from lapilli.recording import decide, scores
from lapilli.sim.executors import find
from lapilli.sim.reference import reference
from lapilli.train import data
from lapilli.train.data import DataSet, Split

SHAPES = {
    "digits": (1, 8, 8),
    "idx": (1, 28, 28),
    "imagefolder": (3, 32, 32),
    "torchvision:CIFAR10": (3, 32, 32),
    "torchvision:CIFAR100": (3, 32, 32),
    "tonic:CIFAR10DVS": (2, 48, 48),
    "events": (2, 34, 34),
    "wav": (1, 32, 32),
}
SMALL = {  # networks as they are, but narrow
    "cifar10": ["network.layers=[{type='conv',channels=4,kernel=4,stride=2},{type='pool',size='all'},{type='linear'}]"],
    "cifar10-dsr": ["network.width=2", "network.steps=4"],
    "cifar10-dsr-n5": ["network.width=2"],
    "cifar100-dsr": ["network.width=2", "network.steps=4"],
    "cifar100-dsr-n5": ["network.width=2"],
    "dvs-cifar10-dsr": ["network.width=2", "network.steps=3"],
    "imagenet-dsr": ["network.width=2", "network.steps=4", "relu.epochs=1", "relu.batch_size=10"],
    "nmnist": ["network.steps=3"],
    "cifar10-tssl": ["network.width=3"],
    "fashion-tssl": ["network.width=4"],
    "nmnist-tssl": ["network.width=4", "network.steps=3"],
}


def noise(recipe):
    """Blobs at random places, another for each class: something to learn from and to spike at."""
    rng = np.random.default_rng(0)
    shape, framed = SHAPES[recipe.data.name], recipe.data.name in ("events", "tonic:CIFAR10DVS")

    def split(n):
        y = np.arange(n) % 10
        bright = np.random.default_rng(1).random((10, *shape)) < 0.3
        x = (bright[y] & (rng.random((*([recipe.network.steps] if framed else []), n, *shape)) < 0.8)).astype(
            np.float32
        )
        return Split(x if framed else 2 * x - 0.4 * (recipe.data.mean is not None), y, framed)

    return DataSet("noise", split(20), split(12), tuple("0123456789"))


@pytest.mark.parametrize(("name", "bits"), [*((name, 8) for name in shipped()), ("digits", 3), ("digits-tssl", 3)])
def test_accuracy_after_export_is_that_of_training(name, bits, tmp_path, monkeypatch):
    epochs = ["train.epochs=1", "train.rate_epochs=0", "train.freeze_norm=false", "bit_true.epochs=1"]
    batches = ["train.batch_size=10", "bit_true.batch_size=10", f"quantize.weight_bits={bits}", "train.threads=1"]
    recipe = load_recipe(name, [*epochs, *batches, *SMALL.get(name, [])])
    monkeypatch.setattr(data, "load", lambda *_args, **_options: noise(recipe))
    trained = train_recipe(recipe, tmp_path, resume=False, narrator=Narrator())
    lapilli.save(trained.network, tmp_path / NETWORK)
    network = lapilli.load(tmp_path / NETWORK)
    assert {c.weight_bits for c in network.connections} == {bits}

    test = trained.data.test
    x = network.input.encode(test.values())
    with torch.no_grad():
        predicted = trained.bit_true(torch.from_numpy(test.values())).argmax(1).numpy()
    for execute in (reference, find("fast")):
        recording = execute(network, x)
        assert sum(int(s.sum()) for s in recording.spikes.values()) > 0
        decided = decide(scores(network, recording))
        np.testing.assert_array_equal(decided, predicted)
        accuracy = float((decided == test.y).mean())
        assert accuracy == trained.accuracy["bit-true"] == network.metadata["accuracy"]["bit-true"]
