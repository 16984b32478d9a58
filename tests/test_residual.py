"""Residual networks, from the recipe to the chip: built as published, folded exactly, quantized branch by branch."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from test_folding import assert_same, randomize
from torch import nn

from lapilli.deploy.lava import available
from lapilli.errors import RecipeError, UnsupportedError
from lapilli.export.folding import AdaptivePool, Affine, Branch, Folded, FoldedLayer
from lapilli.export.lowering import lower
from lapilli.export.quantization import QuantizeConfig, quantize_with_latent
from lapilli.network import INPUT, Conv2d, Scale
from lapilli.sim import verify
from lapilli.train.architectures import ARCHITECTURES
from lapilli.train.bit_true import BitTrueNetwork
from lapilli.train.config import BitTrueConfig, DataConfig, NetworkConfig, TrainConfig
from lapilli.train.data import load
from lapilli.train.loop import evaluate, fit
from lapilli.train.model import SpikingSequential, build
from lapilli.train.neurons import IFNeuron, LIFNeuron

STEM = {"type": "conv", "channels": 4, "padding": 1, "batch_norm": False, "neurons": False}
TINY = [
    STEM,
    {"type": "block", "channels": 4},
    {"type": "block", "channels": 6, "stride": 2},
    {"type": "neurons"},
    {"type": "pool", "size": "all", "neurons": True},
    {"type": "linear", "bias": True},
]


def tiny(seed=1, **options):
    config = NetworkConfig(**{"layers": TINY, "steps": 5, "readout": "rate"} | options)
    return randomize(build(config, (2, 8, 8), 5), seed)


def images(*shape, seed=0):
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# Architectures


@pytest.mark.parametrize(
    ("architecture", "stem", "shape", "spiking", "parameters"),
    [
        # Convolutions with biases, two numbers a channel of batch norm, one threshold for every spiking layer.
        ("preact-resnet18", "cifar", (3, 32, 32), 19, 11_176_945),
        ("preact-resnet18", "imagenet", (3, 224, 224), 20, 11_181_810),
        ("preact-resnet20", "cifar", (3, 32, 32), 21, None),
        ("preact-resnet110", "cifar", (3, 32, 32), 111, None),
        ("preact-resnet34", "cifar", (3, 32, 32), 35, None),
        ("vgg11", "cifar", (2, 48, 48), 9, None),
    ],
)
def test_architectures_as_published(architecture, stem, shape, spiking, parameters):
    config = NetworkConfig(architecture=architecture, stem=stem, readout="rate")
    model = build(config, shape, 10)
    assert len(model.population_names) == spiking
    if parameters is not None:
        assert sum(p.numel() for p in model.parameters()) == parameters
    if architecture == "vgg11":
        assert model.layers.fc1.in_features == 25088


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_runs_at_tiny_width(architecture):
    shape = (2, 8, 8) if "resnet" in architecture else (2, 32, 32)
    model = build(NetworkConfig(architecture=architecture, width=2, steps=2), shape, 3)
    assert model(torch.rand(2, *shape)).shape == (2, 3)


def test_block_is_the_formula_of_the_official_code():
    block = tiny().eval().layers.block2
    x = images(10, 4, 8, 8) * 4 - 1
    with torch.no_grad():
        first = block.in_neuron(block.in_norm(x))
        main = block.conv2(block.mid_neuron(block.mid_norm(block.conv1(first))))
        torch.testing.assert_close(block(x), main + block.shortcut(first))
        assert main.any()
    assert isinstance(block.shortcut, nn.Conv2d)
    assert isinstance(tiny().layers.block1.shortcut, nn.Identity)


@pytest.mark.parametrize("training", [True, False])
def test_an_image_is_the_same_image_at_every_step(training):
    model = tiny().train(training)
    x = images(3, 2, 8, 8)
    torch.testing.assert_close(model(x), model(x.expand(5, *x.shape)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, "there is none"),
        ({"architecture": "resnet"}, "architecture"),
        ({"architecture": "vgg11", "layers": TINY}, "give one of the two"),
        ({"architecture": "preact-resnet20", "stem": "imagenet"}, "one stem only"),
        ({"layers": TINY, "width": 8}, "belong to an architecture"),
        ({"layers": [STEM, {"type": "linear"}]}, r"layers\.1 \(linear\): follows layers\.0 \(conv\)"),
        ({"layers": [*TINY[:3], {"type": "pool"}, TINY[-1]]}, r"layers\.3 \(pool\): follows layers\.2 \(block\)"),
        ({"layers": [{"type": "linear", "features": 3}, TINY[1], TINY[-1]]}, r"layers\.1 \(block\).*linear"),
    ],
)
def test_mistakes_name_their_place(change, words):
    with pytest.raises(ValidationError, match=words):
        NetworkConfig(**change)


def test_sizes_that_do_not_fit_are_named():
    with pytest.raises(RecipeError, match=r"vgg11, layer \d+ \(pool\): size \[2, 2\] does not fit the 1x1"):
        build(NetworkConfig(architecture="vgg11", width=2), (2, 16, 16), 10)
    with pytest.raises(RecipeError, match=r"block.*needs an image"):
        build(NetworkConfig(layers=TINY[1:]), (64,), 10)
    pool = {"type": "pool", "size": 2, "padding": 2}
    with pytest.raises(RecipeError, match="more than half"):
        build(NetworkConfig(layers=[pool, TINY[-1]]), (1, 8, 8), 10)


# Folding


@pytest.mark.parametrize("neuron", ["if", "lif"])
@pytest.mark.parametrize("reset", ["subtract", "zero"])
@pytest.mark.parametrize("readout", ["rate", "membrane"])
def test_every_spike_of_a_small_network(neuron, reset, readout):
    model = tiny(neuron=neuron, reset=reset, readout=readout)
    folded = assert_same(model, images(60, 2, 8, 8))
    names = ("block1_in", "block1_mid", "block2_in", "block2_mid", "neurons1", "pool1", "fc1")
    assert tuple(layer.name for layer in folded.layers) == model.population_names == names
    sources = {layer.name: [b.source for b in folded.branches(layer)] for layer in folded.layers}
    assert sources["block2_in"] == ["block1_mid", "block1_in"]
    assert sources["neurons1"] == ["block2_mid", "block2_in"]


@pytest.mark.parametrize(
    ("architecture", "stem", "shape", "neuron", "reset"),
    [
        ("preact-resnet18", "cifar", (3, 16, 16), "if", "subtract"),
        ("preact-resnet18", "cifar", (3, 8, 8), "lif", "zero"),
        ("preact-resnet18", "imagenet", (3, 32, 32), "if", "zero"),
        ("preact-resnet18", "imagenet", (3, 37, 32), "lif", "subtract"),
        ("preact-resnet34", "cifar", (1, 8, 8), "lif", "subtract"),
        ("preact-resnet20", "cifar", (3, 9, 8), "if", "zero"),
        ("preact-resnet32", "cifar", (1, 8, 8), "lif", "subtract"),
        ("preact-resnet44", "cifar", (1, 8, 8), "lif", "zero"),
        ("preact-resnet56", "cifar", (1, 8, 8), "if", "subtract"),
        ("preact-resnet110", "cifar", (1, 4, 4), "if", "zero"),
        ("vgg11", "cifar", (2, 32, 32), "lif", "subtract"),
        ("vgg11", "cifar", (2, 50, 48), "if", "zero"),
    ],
)
def test_every_spike_of_every_architecture(architecture, stem, shape, neuron, reset):
    config = NetworkConfig(
        architecture=architecture, stem=stem, width=4, neuron=neuron, reset=reset, steps=4, readout="rate"
    )
    x = images(3, *shape) if architecture != "vgg11" else images(4, 3, *shape).round()  # frames of events
    assert_same(randomize(build(config, shape, 10), seed=1), x)


@pytest.mark.parametrize(("neuron", "k"), [("if", 1.0), ("lif", 1 - np.exp(-0.05))])
def test_shortcuts_have_the_gain_that_follows_and_the_amplitude_before(neuron, k):
    model = tiny(neuron=neuron)
    folded = lower(model)
    layers = {layer.name: layer for layer in folded.layers}
    norm = model.layers.block2.in_norm
    gain = (norm.weight / torch.sqrt(norm.running_var + norm.eps)).detach().numpy()
    amplitude = {name: model.neurons[name].amplitude.item() for name in ("block1_in", "block1_mid")}

    layer = layers["block2_in"]
    (shortcut,) = layer.shortcuts
    assert (shortcut.source, shortcut.affine.kind) == ("block1_in", "scale")
    np.testing.assert_allclose(shortcut.affine.weight, k * amplitude["block1_in"] * gain)
    conv = model.layers.block1.conv2
    weight = conv.weight.detach().numpy() * gain[:, None, None, None]
    np.testing.assert_allclose(layer.affine.weight, k * amplitude["block1_mid"] * weight)
    offset = norm.bias.detach().numpy() - gain * norm.running_mean.numpy()
    np.testing.assert_allclose(layer.affine.bias, k * (gain * conv.bias.detach().numpy() + offset))


class ByHand(nn.Module):
    """Everything a user may write: sums of spikes before weights, a pooled shortcut, a sum used twice."""

    def __init__(self, neuron):
        super().__init__()
        self.stem, self.stem_neuron = nn.Conv2d(2, 4, 3, padding=1), neuron()
        self.a, self.a_norm, self.a_neuron = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), neuron()
        self.b, self.pool, self.b_norm, self.b_neuron = (
            nn.Conv2d(4, 4, 2, 2),
            nn.AvgPool2d(2),
            nn.BatchNorm2d(4),
            neuron(),
        )
        self.squeeze, self.drop, self.fc, self.fc_neuron = (
            nn.AdaptiveAvgPool2d((3, 2)),
            nn.Dropout2d(),
            nn.Linear(24, 5),
            neuron(),
        )

    def forward(self, x):
        first = self.stem_neuron(self.stem(x))
        second = self.a_neuron(self.a_norm(self.a(first)))
        both = torch.add(first, second)
        third = self.b_neuron(self.b_norm(self.b(both) + self.pool(first)))
        third = third + third
        return self.fc_neuron(self.fc(self.drop(self.squeeze(third)).flatten(1)))


@pytest.mark.parametrize("neuron", [lambda: IFNeuron(6, alpha=0.7), lambda: LIFNeuron(6)])
def test_a_module_written_by_hand(neuron):
    torch.manual_seed(0)
    model = randomize(SpikingSequential(ByHand(neuron), (2, 8, 8), 6, "rate"), seed=3)
    folded = assert_same(model, images(40, 2, 8, 8))
    third = folded.layers[2]
    assert [b.source for b in folded.branches(third)] == ["stem", "a", "stem"]
    result = quantize_with_latent(folded, QuantizeConfig(input_range=(0, 1)))
    names = [c.name for c in result.network.incoming("b")]
    assert names == ["stem->b", "a->b", "stem->b#2"]
    x = images(5, 2, 8, 8).numpy()
    assert verify(result.network, x, against=("torch", "fast", "onnxruntime")).equal


@pytest.mark.parametrize("size", [(4, 4), (2, 2), (3, 5), (7, 7), (1, 1)])
def test_adaptive_pooling_is_torchs(size):
    x = images(2, 3, 4, 5)
    pool = AdaptivePool(size)
    got = np.einsum("bcvh,yv,xh->bcyx", x.numpy(), pool.means(0, 4), pool.means(1, 5))
    np.testing.assert_allclose(got, nn.AdaptiveAvgPool2d(size)(x).numpy())
    plain = pool.plain((3, 4, 5))
    assert (plain is not None) == (size == (1, 1))


def test_rows_that_pooling_drops_after_a_sum_are_cropped():
    """Neurons after a residual sum on a 7x7 map, pooled by 2, then a padded convolution."""
    conv = {"type": "conv", "channels": 4, "padding": 1}
    model = tiny(layers=[STEM | {"kernel": 4}, TINY[1], {"type": "neurons"}, {"type": "pool"}, conv, TINY[-1]])
    folded = assert_same(model, images(40, 2, 8, 8))
    layer = folded.layers[2]
    assert layer.shape == (4, 6, 6)
    assert layer.shortcuts[0].affine.groups == 4
    x = images(6, 2, 8, 8).numpy()
    made = quantize_with_latent(folded, QuantizeConfig(input_range=(0, 1)))
    assert verify(made.network, x, against=("torch", "fast", "onnxruntime")).equal


class Net(nn.Module):
    def __init__(self, forward, **modules):
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self.run = forward

    def forward(self, x):
        return self.run(self, x)


def _pooled_on_one_branch(m, x):
    first = m.first_neuron(m.first(x))
    return m.last_neuron(m.conv(m.pool(first)) + m.crop(first))


@pytest.mark.parametrize(
    ("forward", "says"),
    [
        (lambda m, x: m.n(m.conv(x) + 1.0), "works on 1.0"),
        (lambda m, x: m.n(torch.relu(m.conv(x))), "operation 'relu': cannot be folded"),
        (lambda m, x: m.n(m.conv(m.norm(x))), "layer 'conv'.*weights follow batch normalization"),
        (lambda m, x: m.n(m.conv(x) if x.sum() > 0 else x), "cannot be followed"),
        (lambda m, x: m.n(m.conv(m.n(m.conv(x)))), "is used twice"),
        (lambda m, x: m.n(m.conv(x) + m.pool(x)), "adds values of shapes"),
        (lambda m, x: m.n(m.norm(m.pool(x).flatten(1))), "batch normalization of flattened maps"),
        (lambda m, x: m.n(m.fc(x)), "linear layer on a map"),
        (lambda m, x: m.n(m.conv(x)).flatten(0), "flattens axes"),
        (lambda m, x: m.n(m.conv(x)) + x, "does not end in neurons"),
        (lambda m, x: m.n(m.pool(m.odd(x))), "such a chain"),
    ],
)
def test_what_cannot_be_folded_is_named(forward, says):
    modules = {
        "conv": nn.Conv2d(2, 2, 3, padding=1),
        "norm": nn.BatchNorm2d(2),
        "pool": nn.AvgPool2d(2),
        "odd": nn.AdaptiveAvgPool2d(5),
        "fc": nn.Linear(8, 8),
        "n": IFNeuron(4),
    }
    with pytest.raises(UnsupportedError, match=says):
        lower(SpikingSequential(Net(forward, **modules), (2, 8, 8), 4, "rate"))


def test_cropping_what_another_branch_needs_is_refused():
    net = Net(
        _pooled_on_one_branch,
        first=nn.Conv2d(1, 2, 2),
        first_neuron=IFNeuron(4),
        pool=nn.AvgPool2d(2),
        conv=nn.Conv2d(2, 2, 3, padding=1),
        crop=nn.Conv2d(2, 2, 2, stride=2),
        last_neuron=IFNeuron(4),
    )
    with pytest.raises(UnsupportedError, match=r"'first'.*drops its last rows or columns on one of 2 branches"):
        lower(SpikingSequential(net, (1, 8, 8), 4, "rate"))


# Quantization


def with_shortcut(ratio, *, beta=1.0, seed=0):
    """A convolution beside an identity whose weights are ``ratio`` times larger."""
    rng = np.random.default_rng(seed)
    conv = [Affine("conv2d", rng.normal(0, 1, (4, 4, 3, 3)), rng.normal(0, 0.1, 4), padding=(1, 1)) for _ in range(2)]
    largest = np.abs(conv[1].weight).max()
    scale = Affine("scale", rng.choice([-1, 1], 4) * rng.uniform(0.5, 1, 4) * ratio * largest, np.zeros(4))
    scale.weight[0] = ratio * largest
    neuron = {"shape": (4, 5, 5), "reset": "subtract", "threshold": 2.0, "reset_amount": 4.0, "beta": beta}
    layers = (
        FoldedLayer(name="first", affine=conv[0], **neuron),
        FoldedLayer(name="second", affine=conv[1], shortcuts=(Branch("first", scale), Branch(INPUT, scale)), **neuron),
    )
    return Folded(layers=layers, steps=6, input_shape=(4, 5, 5))


@pytest.mark.parametrize("bits", [8, 5, 3])
@pytest.mark.parametrize("ratio", [0.03, 0.7, 1.0, 6.5, 11.0])
@pytest.mark.parametrize("beta", [1.0, 0.9])
def test_branches_share_one_scale_and_each_fills_its_range(bits, ratio, beta):
    folded = with_shortcut(ratio, beta=beta)
    result = quantize_with_latent(folded, QuantizeConfig(weight_bits=bits, input_levels=4, input_range=(0, 1)))
    population = result.network.population("second")
    connections = list(result.network.incoming("second"))
    assert [(c.source, type(c.synapse)) for c in connections] == [("first", Conv2d), ("first", Scale), (INPUT, Scale)]
    limit = 2 ** (bits - 1) - 1
    most = max(c.weight_exponent for c in connections)
    for c, branch in zip(connections, folded.branches(folded.layers[1]), strict=True):
        real = branch.affine.weight / (4 if c.source == INPUT else 1)
        step = 64 * 2.0**c.weight_exponent / population.scale  # real units of one weight step
        assert np.abs(c.synapse.weight * step - real).max() <= step / 2 * (1 + 1e-9)
        np.testing.assert_allclose(result.latent[f"{c.name}/weight"], real / step)
        assert 0 <= c.weight_exponent <= 7
        if most < 7:
            assert np.abs(c.synapse.weight).max() >= limit // 2
    assert any(np.abs(c.synapse.weight).max() == limit for c in connections)
    assert most >= 6 or min(c.weight_exponent for c in connections) == 8 - bits
    assert len({c.name for c in connections}) == 3
    assert result.report[1].weight_error_rms > 0


def test_a_branch_of_zeros_stays_beside_one_that_is_not():
    folded = with_shortcut(1.0)
    folded.layers[1].shortcuts[0].affine.weight[:] = 0.0
    result = quantize_with_latent(folded, QuantizeConfig(input_range=(0, 1)))
    convolution, shortcut, _ = result.network.incoming("second")
    assert not shortcut.synapse.weight.any()
    assert np.abs(convolution.synapse.weight).max() >= 63


def test_a_branch_that_would_vanish_is_named():
    with pytest.raises(UnsupportedError, match=r"'second': all weights from 'first' round to zero"):
        quantize_with_latent(with_shortcut(1e6), QuantizeConfig(input_range=(0, 1)))


# All the way


@pytest.fixture(scope="module")
def digits():
    return load(DataConfig())


@pytest.fixture(scope="module")
def trained(digits):
    """A tiny network after three epochs on the digits, folded, quantized, and fine-tuned for one epoch."""
    layers = [STEM | {"channels": 8}, {"type": "block", "channels": 8}, {"type": "block", "channels": 16, "stride": 2}]
    config = NetworkConfig(steps=6, threshold=2.0, layers=[*layers, *TINY[3:]])
    model = build(config, digits.shape, digits.n_classes)
    fit(model, digits.train, TrainConfig(epochs=3, batch_size=32, warmup_iterations=20, threads=1))
    accuracy = {"float": evaluate(model, digits.test)}
    made = quantize_with_latent(lower(model.double()), QuantizeConfig(input_levels=16), digits.train.x)
    bit_true = BitTrueNetwork(made.network, made.latent)
    accuracy["quantized"] = evaluate(bit_true, digits.test)
    fit(bit_true, digits.train, BitTrueConfig(epochs=1, batch_size=32, threads=1))
    accuracy["bit-true"] = evaluate(bit_true, digits.test)
    return bit_true, accuracy


def test_training_quantizing_and_fine_tuning_keep_the_accuracy(trained):
    _, accuracy = trained
    assert accuracy["float"] > 0.85
    assert accuracy["quantized"] > accuracy["float"] - 0.05
    assert accuracy["bit-true"] > 0.85


def test_every_executor_gives_the_trained_spikes(trained, digits):
    bit_true, accuracy = trained
    network = bit_true.to_network()
    kinds = Counter(c.synapse.kind for c in network.connections)
    assert kinds == {"conv2d": 7, "scale": 1, "dense": 1}
    proof = verify(network, digits.test.x, against=("fast",), y=digits.test.y)
    assert proof.equal
    assert proof.accuracy == accuracy["bit-true"]
    assert verify(network, digits.test.x[:20], against=("torch", "onnxruntime", "onnx-reference")).equal


@pytest.mark.lava
@pytest.mark.skipif(not available(), reason="lava-nc is not installed")
def test_lava_gives_the_trained_spikes(trained, digits):
    bit_true, _ = trained
    assert verify(bit_true.to_network(), digits.test.x[:8], against=("lava",)).equal


@pytest.mark.lava
@pytest.mark.skipif(not available(), reason="lava-nc is not installed")
@pytest.mark.parametrize(("neuron", "reset"), [("lif", "zero"), ("lif", "subtract"), ("if", "zero")])
def test_lava_gives_the_spikes_of_random_networks(neuron, reset):
    folded = lower(tiny(neuron=neuron, reset=reset))
    network = quantize_with_latent(folded, QuantizeConfig(weight_bits=5, input_range=(0, 1))).network
    proof = verify(network, images(3, 2, 8, 8).numpy(), against=("torch", "fast", "onnxruntime", "lava"))
    assert proof.equal
