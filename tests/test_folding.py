"""Folding is exact: the folded network emits every spike of the trained one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from lapilli.errors import DataError, UnsupportedError
from lapilli.export.folding import Affine, FoldedLayer, Pool, cropped, pool_then_conv
from lapilli.export.lowering import lower
from lapilli.train.config import NetworkConfig
from lapilli.train.model import SpikingSequential, build
from lapilli.train.neurons import Accumulator, IFNeuron, LIFNeuron

CONV = {"type": "conv", "channels": 6, "padding": 1}
PLAIN = [CONV, {"type": "pool"}, {"type": "conv", "channels": 4}, {"type": "dropout"}, {"type": "linear"}]
NETWORKS = {
    "plain": PLAIN,
    "pool before padded convolution": [
        CONV,
        {"type": "pool"},
        CONV | {"stride": 2},
        {"type": "linear", "features": 9},
        {"type": "linear"},
    ],
    "pool before linear": [CONV, {"type": "pool", "size": [2, 4]}, {"type": "linear"}],
    "odd map, pool before linear": [CONV | {"padding": 0, "kernel": 2}, {"type": "pool"}, {"type": "linear"}],
    "odd map, pool before padded convolution": [
        CONV | {"padding": 0, "kernel": [2, 4]},
        {"type": "pool"},
        CONV,
        {"type": "linear"},
    ],
    "odd map of a strided, dilated convolution": [
        CONV | {"stride": [1, 2], "dilation": [3, 2], "padding": [3, 5]},
        {"type": "pool", "size": 3},
        CONV | {"dilation": 2, "padding": 2},
        {"type": "linear"},
    ],
    "pools in a row": [CONV, {"type": "pool", "size": 3}, {"type": "pool"}, {"type": "linear"}],
    "groups": [CONV, CONV | {"groups": 3}, {"type": "pool"}, CONV | {"groups": 2}, {"type": "linear"}],
    "biases under batch norm": [CONV | {"bias": True}, {"type": "linear", "bias": True}],
    "no batch norm": [CONV | {"batch_norm": False}, {"type": "pool"}, {"type": "linear", "batch_norm": False}],
    "pool of the input": [{"type": "pool"}, CONV, {"type": "linear"}],
}


def images(n=1797):
    return torch.tensor(load_digits().images[:n, None] / 16.0)


def randomize(model, seed, spread=1.0):
    """Random statistics, gains, thresholds: real numbers, so that no membrane ever meets its threshold exactly."""
    torch.manual_seed(seed)
    model.double()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.05, 1.0)
                module.weight.uniform_(0.5, 2.0)
                module.bias.normal_(0.2, 0.5)
            elif isinstance(module, (IFNeuron, LIFNeuron)):
                module.threshold.mul_(torch.empty((), dtype=torch.float64).uniform_(0.2, 0.6) * spread)
            elif isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
                module.bias.normal_(0, 0.3)
    return model


def assert_same(model, x):
    folded = lower(model)
    run = folded.simulate(x.numpy())
    spikes = dict(zip(model.population_names, model.record(x), strict=False))
    assert spikes.keys() == run.spikes.keys()
    total = 0
    for name, want in spikes.items():
        got = run.spikes[name]
        want = want.numpy()[(..., *[slice(n) for n in got.shape[2:]])]  # without rows that pooling drops
        total += int(got.sum())
        assert np.count_nonzero(got != want) == 0, name
    assert total > 0
    model.eval()
    with torch.no_grad():
        np.testing.assert_allclose(run.scores, model(x).numpy(), rtol=1e-9, atol=1e-9)
    return folded


@pytest.mark.parametrize("neuron", ["if", "lif"])
@pytest.mark.parametrize("reset", ["subtract", "zero"])
@pytest.mark.parametrize("readout", ["rate", "membrane"])
def test_every_spike_on_all_digits(neuron, reset, readout):
    config = NetworkConfig(neuron=neuron, reset=reset, readout=readout, steps=8, layers=PLAIN)
    folded = assert_same(randomize(build(config, (1, 8, 8), 10), seed=1), images(360))
    assert folded.readout == readout
    assert [layer.name for layer in folded.layers] == ["conv1", "conv2", "fc1"]


@pytest.mark.parametrize("layers", NETWORKS.values(), ids=NETWORKS.keys())
@pytest.mark.parametrize("neuron", ["if", "lif"])
def test_every_geometry(layers, neuron):
    config = NetworkConfig(neuron=neuron, alpha=0.7, readout="rate", steps=6, layers=layers)
    assert_same(randomize(build(config, (1, 8, 8), 10), seed=2), images(50))


def test_frames():
    config = NetworkConfig(steps=5, layers=PLAIN)
    frames = torch.rand(5, 7, 1, 8, 8, dtype=torch.float64)
    assert_same(randomize(build(config, (1, 8, 8), 10), seed=3), frames)


def test_pool_between_neurons_is_a_depthwise_convolution():
    layers = nn.Sequential()
    for name, module in {
        "conv": nn.Conv2d(1, 3, 3),
        "conv_neuron": IFNeuron(6),
        "pool": nn.AvgPool2d(3, 2),
        "pool_neuron": LIFNeuron(6, threshold=0.05),
        "flatten": nn.Flatten(),
        "fc": nn.Linear(12, 4),
        "fc_neuron": Accumulator(6),
    }.items():
        layers.add_module(name, module)
    folded = assert_same(randomize(SpikingSequential(layers, (1, 8, 8), 6, "membrane"), seed=4), images(40))
    assert folded.layers[1].name == "pool"
    assert folded.layers[1].affine.groups == 3


def test_neurons_without_weights_between_are_joined_one_to_one():
    layers = nn.Sequential()
    for name, module in {
        "first_norm": nn.BatchNorm2d(2),
        "first_neuron": IFNeuron(6),
        "second_neuron": LIFNeuron(6, threshold=0.05),
        "flatten": nn.Flatten(),
        "third_neuron": IFNeuron(6),
        "fc": nn.Linear(50, 4),
        "fc_neuron": Accumulator(6),
    }.items():
        layers.add_module(name, module)
    model = randomize(SpikingSequential(layers, (2, 5, 5), 6, "membrane"), seed=7)
    folded = lower(model)
    assert [layer.affine.kind for layer in folded.layers] == ["scale", "scale", "scale", "dense"]
    x = torch.rand(40, 2, 5, 5, dtype=torch.float64)
    run = folded.simulate(x.numpy())
    for name, want in zip(model.population_names, model.record(x), strict=False):
        assert want.any()
        np.testing.assert_array_equal(run.spikes[name].reshape(want.shape), want.numpy())


def test_padded_and_overlapping_pooling():
    """It folds into dense weights and into a convolution without padding; before a padded one it is refused."""

    def pooled_before(**modules):
        first = {"a": nn.Conv2d(1, 3, 3), "a_neuron": IFNeuron(4), "pool": nn.AvgPool2d(3, 2, 1)}
        return randomize(network_of(**first, **modules), seed=8)

    conv, flatten, end = nn.Conv2d(3, 2, 2), nn.Flatten(), IFNeuron(4)
    assert_same(pooled_before(b=conv, b_neuron=end, flatten=flatten), images(40))
    assert_same(pooled_before(flatten=flatten, b=nn.Linear(27, 4), b_neuron=end), images(40))
    with pytest.raises(UnsupportedError, match="overlapping or padded"):
        lower(pooled_before(b=nn.Conv2d(3, 2, 2, padding=1), b_neuron=end))


def test_a_threshold_below_its_bound_is_raised_as_in_the_forward_pass():
    config = NetworkConfig(steps=4, layers=PLAIN)
    model = randomize(build(config, (1, 8, 8), 10), seed=5)
    with torch.no_grad():
        model.neurons["conv1"].threshold.fill_(1e-6)
    assert lower(model).layers[0].reset_amount == 0.01


@pytest.mark.parametrize(
    ("dropped", "stride", "dilation"), [((1, 2), (1, 1), (1, 1)), ((1, 0), (2, 3), (2, 1)), ((2, 1), (1, 2), (3, 2))]
)
def test_cropping_leaves_the_other_rows(dropped, stride, dilation):
    rng = np.random.default_rng(0)
    affine = Affine(
        "conv2d", rng.normal(size=(4, 1, 3, 2)), np.zeros(4), stride=stride, padding=(2, 1), dilation=dilation, groups=2
    )
    shape = affine.output_shape((2, 11, 12))
    smaller = (shape[0], shape[1] - dropped[0], shape[2] - dropped[1])
    layer = cropped(FoldedLayer(name="a", affine=affine, shape=shape, reset="zero"), smaller)
    x = rng.normal(size=(3, 2, 11, 12))
    np.testing.assert_allclose(layer.affine(x), affine(x)[:, :, : smaller[1], : smaller[2]])


def network_of(**modules):
    layers = nn.Sequential()
    for name, module in modules.items():
        layers.add_module(name, module)
    return SpikingSequential(layers, (1, 8, 8), 4, "rate")


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (network_of(a=nn.Conv2d(1, 1, 3), b=nn.ReLU(), c=IFNeuron(4)), "layer 'b' .ReLU.: cannot be folded"),
        (network_of(a=nn.Conv2d(1, 1, 3), b=nn.Conv2d(1, 1, 3), c=IFNeuron(4)), "layer 'b'.*weights follow weights"),
        (network_of(a=nn.BatchNorm2d(1), b=nn.Conv2d(1, 1, 3), c=IFNeuron(4)), "layer 'b'.*weights follow batch norm"),
        (network_of(a=nn.Conv2d(1, 1, 3), b=nn.AvgPool2d(2), c=IFNeuron(4)), "layer 'b'.*after the neurons"),
        (network_of(a=nn.Conv2d(1, 1, 3), c=IFNeuron(4), d=nn.Flatten()), None),
        (network_of(a=nn.Conv2d(1, 1, 3)), "does not end in neurons"),
        (network_of(a=nn.Flatten()), "does not end in neurons"),
        (network_of(a=nn.Conv2d(1, 1, 3), b=Accumulator(4), c=nn.Conv2d(1, 1, 3), d=IFNeuron(4)), "does not spike"),
        (network_of(a=nn.AvgPool2d(3), b=nn.Conv2d(1, 1, 3, padding=1), c=IFNeuron(4)), "crop the input to .1, 6, 6."),
        (network_of(a=nn.AvgPool2d(3, ceil_mode=True), c=IFNeuron(4)), "ceil_mode"),
        (network_of(a=nn.AvgPool2d(2, padding=1, count_include_pad=False), c=IFNeuron(4)), "padding .1, 1."),
        (network_of(a=nn.Conv2d(1, 1, 2, padding="same"), c=IFNeuron(4)), "padding 'same'"),
    ],
)
def test_what_cannot_be_folded_is_named(model, says):
    if says is None:
        assert len(lower(model).layers) == 1
        return
    with pytest.raises(UnsupportedError, match=says):
        lower(model)


def test_overlapping_pool_before_padding_is_refused():
    affine = Affine("conv2d", np.ones((1, 1, 3, 3)), np.zeros(1), padding=(1, 1))
    with pytest.raises(UnsupportedError, match="overlapping"):
        pool_then_conv(Pool((3, 3), (2, 2)), affine, (1, 9, 9))
    merged, needed = pool_then_conv(Pool((3, 3), (2, 2)), replace(affine, padding=(0, 0)), (1, 9, 9))
    assert needed == (1, 9, 9)
    assert merged.weight.shape[2:] == (7, 7)


def test_a_wrong_shape_is_refused():
    folded = lower(build(NetworkConfig(steps=4, layers=PLAIN), (1, 8, 8), 10))
    for shape in ((8, 8), (2, 1, 8, 9), (3, 2, 1, 8, 8)):
        with pytest.raises(DataError):
            folded.simulate(np.zeros(shape))
