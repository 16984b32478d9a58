"""The DSR paper's settings as recipes: what they say, and that such a network trains and folds exactly."""

import numpy as np
import pytest
import torch
from test_folding import assert_same, randomize

from lapilli.recipe import load_recipe
from lapilli.train import Split, build, fit

CIFAR = ["cifar10-dsr", "cifar100-dsr", "cifar10-dsr-n5", "cifar100-dsr-n5"]
LIF_N5 = [
    "network.neuron=lif", "network.threshold=0.6", "network.alpha=0.5", "network.threshold_bound=0.001",
    "network.dt=0.1",
]  # fmt: skip


@pytest.mark.parametrize("name", [*CIFAR, "dvs-cifar10-dsr"])
def test_settings_are_those_of_the_papers_code(name):
    """qymeng94/DSR: README, argparse defaults of cifar/main_single_gpu.py."""
    recipe, lif = load_recipe(name), load_recipe(name, ["network.neuron=lif"])
    n, t = recipe.network, recipe.train
    assert (n.threshold, n.alpha, n.threshold_bound, n.threshold_gradient_scale) == (6.0, 0.5, 0.01, 1.0)
    m = lif.network
    assert (m.threshold, m.alpha, m.threshold_bound, m.tau, m.dt) == (0.3, 0.3, 0.0005, 1.0, 0.05)
    assert (n.steps, t.learning_rate) == {"-n5": (5, 0.05), "dsr": (20, 0.05 if "dvs" in name else 0.1)}[name[-3:]]
    assert (t.optimizer, t.momentum, t.weight_decay, t.decay) == ("sgd", 0.9, 5e-4, "all")
    assert (t.epochs, t.batch_size, t.warmup_iterations) == (300 if "dvs" in name else 200, 128, 400)
    assert (n.readout, n.reset, n.width, t.rate_epochs) == ("rate", "subtract", None, 0)


CASES = [
    ("cifar10-dsr", ["network.steps=15"], (3, 8, 8)),
    ("cifar100-dsr", ["network.neuron=lif"], (3, 8, 8)),
    ("cifar10-dsr-n5", LIF_N5, (3, 8, 8)),
    ("dvs-cifar10-dsr", ["network.neuron=lif", "network.steps=4"], (2, 32, 32)),
    *(
        ("cifar10-dsr", [f"network.architecture=preact-resnet{depth}", "network.steps=3"], (3, 4, 4))
        for depth in (32, 44, 110)
    ),
]


@pytest.mark.parametrize(("name", "overrides", "shape"), CASES, ids=lambda value: str(value))
def test_a_narrow_one_trains_a_step_and_folds_exactly(name, overrides, shape):
    narrow = ["network.width=2", "train.epochs=1", "train.batch_size=4", "train.warmup_iterations=0", "train.threads=1"]
    recipe = load_recipe(name, [*overrides, *narrow, "train.learning_rate=0.01"])
    steps, framed = recipe.network.steps, "dvs" in name
    rng = np.random.default_rng(0)
    x = rng.poisson(2, (steps, 4, *shape)) if framed else rng.normal(0, 1, (4, *shape))
    data = Split(x.astype(np.float32), np.arange(4) % 2, framed)
    model = build(recipe.network, shape, 2)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    history = fit(model, data, recipe.train)
    assert np.isfinite(history.epochs[-1].loss)
    assert any(not torch.equal(value, before[key]) for key, value in model.state_dict().items() if "weight" in key)

    assert_same(randomize(model, seed=1), torch.from_numpy(data.values()).double())
