"""The backward pass without a time axis gives the gradients of autograd over all steps."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from lapilli.errors import UnsupportedError
from lapilli.train import frames
from lapilli.train.config import NetworkConfig, TrainConfig
from lapilli.train.data import Split
from lapilli.train.loop import fit
from lapilli.train.model import SpikingSequential, build
from lapilli.train.neurons import IFNeuron, LIFNeuron
from lapilli.train.representation import obstacle, scores
from lapilli.train.spike_bits import SpikeBits

CONV = {"type": "conv", "channels": 4, "kernel": 3, "padding": 1}
NETWORKS = {
    "conv": [CONV, {**CONV, "groups": 2, "stride": 2, "dilation": 1}, {"type": "pool"}, {"type": "linear"}],
    "bias": [{**CONV, "bias": True}, {**CONV, "bias": True}, {"type": "linear", "features": 6}, {"type": "linear"}],
    "no norm": [
        {**CONV, "batch_norm": False},
        {"type": "linear", "features": 6, "batch_norm": False},
        {"type": "linear", "batch_norm": False},
    ],
    "pool neurons": [CONV, {"type": "pool", "neurons": True}, {"type": "linear", "features": 6}, {"type": "linear"}],
    "dropout": [CONV, {"type": "dropout", "p": 0.5}, {"type": "linear", "batch_norm": False}],
    "blocks": [
        {**CONV, "neurons": False, "batch_norm": False, "bias": True},
        {"type": "block", "channels": 4},
        {"type": "block", "channels": 6, "stride": 2},
        {"type": "neurons"},
        {"type": "pool", "size": "all"},
        {"type": "linear", "batch_norm": False},
    ],
    "shortcut norm": [
        CONV,
        {"type": "pool", "size": 3, "stride": 2, "padding": 1},
        {"type": "block", "channels": 4, "bias": False, "shortcut_norm": True},
        {"type": "block", "channels": 6, "stride": 2, "bias": False, "shortcut_norm": True},
        {"type": "block", "channels": 6, "bias": False, "shortcut_norm": True},
        {"type": "block", "channels": 5, "bias": True, "shortcut_norm": True},
        {"type": "neurons"},
        {"type": "linear", "batch_norm": False},
    ],
    "norms in a row": [CONV, {**CONV, "neurons": False, "bias": True}, {"type": "neurons"}, {"type": "linear"}],
}


def _model(layers, seed, **settings):
    given = {"steps": 5, "threshold": 1.0 if settings["neuron"] == "if" else 0.1} | settings
    config = NetworkConfig.model_validate({"layers": layers, **given})
    model = build(config, (2, 6, 6), 3, seed=seed).double()
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            parameter.data += 0.3 * torch.randn_like(parameter)
    return model


def _gradients(model, x, forward):
    torch.manual_seed(7)  # dropout
    model.zero_grad()
    out = forward(model, x)
    (out * torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
    return out.detach(), {name: p.grad for name, p in model.named_parameters()}, dict(model.named_buffers())


def _assert_equal(model, x):
    plain, other = copy.deepcopy(model), copy.deepcopy(model)
    out, gradients, buffers = _gradients(plain, x, lambda m, x: m(x))
    out2, gradients2, buffers2 = _gradients(other, x, scores)
    assert torch.equal(out, out2)
    assume(any(g.any() for g in gradients.values()))  # clamped everywhere
    assert gradients.keys() == gradients2.keys()
    for name, gradient in gradients.items():
        scale = max(1.0, gradient.abs().max().item())
        assert torch.allclose(gradient, gradients2[name], rtol=0, atol=1e-10 * scale), name
    for name, buffer in buffers.items():
        assert torch.equal(buffer, buffers2[name]), name


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("readout", ["membrane", "rate"])
@pytest.mark.parametrize("neuron", ["if", "lif"])
@pytest.mark.parametrize("layers", NETWORKS)
@settings(max_examples=2, deadline=None)
@given(seed=st.integers(0, 2**16), reset=st.sampled_from(["subtract", "zero"]), constant=st.booleans())
def test_gradients_are_those_of_all_steps(layers, neuron, readout, frozen, seed, reset, constant):
    model = _model(NETWORKS[layers], seed, neuron=neuron, readout=readout, reset=reset)
    for module in model.modules():
        if frozen and isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    frames = () if constant else (5,)
    x = torch.randn(*frames, 3, 2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    _assert_equal(model, x)


@pytest.mark.parametrize("beta", [1.0, 0.7])
@pytest.mark.parametrize("norms", ["after", "both", "three"])
@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 2**16))
def test_gradients_through_pooled_sums_and_normalizations_in_a_row(norms, beta, seed):
    """Of modules put together by hand: no recipe has pooling without neurons before it."""
    torch.manual_seed(seed)

    def neuron():
        return IFNeuron(5, 1.0) if beta == 1.0 else LIFNeuron(5, 0.1, tau=-0.05 / math.log(beta))

    layers = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        neuron(),
        nn.Conv2d(4, 6, 3, padding=1),
        nn.Identity() if norms == "after" else nn.BatchNorm2d(6),
        nn.AvgPool2d(3, 2, 1, count_include_pad=False),
        nn.BatchNorm2d(6),
        nn.BatchNorm2d(6, affine=False) if norms == "three" else nn.Identity(),
        neuron(),
        nn.Flatten(),
        nn.Linear(54, 3),
        neuron(),
    )
    for norm in layers:
        if isinstance(norm, nn.BatchNorm2d) and norm.affine:
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
    model = SpikingSequential(layers, (2, 6, 6), 5, "rate").double()
    _assert_equal(model, torch.randn(5, 3, 2, 6, 6, dtype=torch.float64))


def test_without_the_covariance_only_weights_before_a_normalization_differ():
    model = _model(NETWORKS["conv"], 3, neuron="if")
    x = torch.randn(5, 4, 2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    _, exact, _ = _gradients(copy.deepcopy(model), x, scores)
    _, rough, _ = _gradients(copy.deepcopy(model), x, lambda m, x: scores(m, x, covariance=False))
    # Every gradient below such weights is exact: what they send back needs sums over steps only.
    different = {name for name in exact if not torch.allclose(exact[name], rough[name], rtol=0, atol=1e-10)}
    assert different
    assert different <= {"layers.conv1.weight", "layers.conv2.weight", "layers.fc1.weight"}


def test_what_cannot_be_carried_by_means_is_refused_by_name():
    model = _model([CONV, {"type": "dropout", "p": 0.5}, CONV, {"type": "linear"}], 0, neuron="if")
    with pytest.raises(UnsupportedError, match="layer conv2_norm: batch normalization in training mode after dropout"):
        scores(model, torch.zeros(2, 2, 6, 6, dtype=torch.float64))


def test_an_obstacle_is_found_without_touching_the_network():
    before = _model([CONV, {"type": "dropout", "p": 0.5}, CONV, {"type": "linear"}], 0, neuron="if")
    model = copy.deepcopy(before)
    state = torch.random.get_rng_state()
    assert "conv2_norm" in obstacle(model)
    assert all(
        torch.equal(a, b) for a, b in zip(before.state_dict().values(), model.state_dict().values(), strict=True)
    )
    assert torch.equal(state, torch.random.get_rng_state())
    assert obstacle(_model(NETWORKS["blocks"], 0, neuron="lif")) is None


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_the_residual_networks_of_the_paper_have_no_obstacle(stem):
    config = NetworkConfig(architecture="preact-resnet18", stem=stem, width=2, steps=2)
    assert obstacle(build(config, (3, 32, 32), 10)) is None


def test_the_loop_trains_the_same_network_either_way():
    rng = np.random.default_rng(0)
    data = Split(rng.random((12, 2, 6, 6), np.float32), rng.integers(0, 3, 12))
    trained = []
    for backward in ("steps", "representation", "auto", "approximate"):
        model = _model(NETWORKS["blocks"], 1, neuron="if")
        fit(
            model, data, TrainConfig(epochs=2, batch_size=6, warmup_iterations=0, learning_rate=0.01, backward=backward)
        )
        trained.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.allclose(trained[0], trained[1], rtol=0, atol=1e-9)
    assert torch.equal(trained[1], trained[2])
    assert not torch.allclose(trained[0], trained[3], rtol=0, atol=1e-9)
    assert not torch.allclose(
        trained[0], torch.cat([p.flatten() for p in _model(NETWORKS["blocks"], 1, neuron="if").parameters()])
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("neuron", ["if", "lif"])
def test_how_values_are_cut_changes_no_spike(neuron, dtype, monkeypatch):
    layers = [{**layer, "channels": 20} if "channels" in layer else layer for layer in NETWORKS["blocks"]]
    model = _model(layers, 1, neuron=neuron).to(dtype)
    x = torch.randn(5, 3, 2, 6, 6, dtype=dtype, generator=torch.Generator().manual_seed(1))
    expected, gradients, buffers = _gradients(copy.deepcopy(model), x, lambda m, x: m(x))
    pieces: list[torch.Size] = []
    correlate = frames.Weighted._correlate

    def watch(self, part, deviation, norm):
        pieces.append(deviation.shape)
        correlate(self, part, deviation, norm)

    monkeypatch.setattr(frames.Weighted, "_correlate", watch)
    monkeypatch.setattr(frames, "PIECE_BYTES", 1)  # samples one by one,
    monkeypatch.setattr(frames, "BLOCK_BYTES", 1)  # 16 channels at a time, then 4
    out, gradients2, buffers2 = _gradients(copy.deepcopy(model), x, scores)
    assert {shape[:2] for shape in pieces} == {(5, 16), (5, 4)}
    assert torch.equal(out, expected)
    assert all(torch.equal(buffers[name], buffers2[name]) for name in buffers)
    for name, gradient in gradients.items():
        near = 1e-10 if dtype == torch.float64 else 1e-4
        assert torch.allclose(gradient, gradients2[name], rtol=0, atol=near * max(1.0, gradient.abs().max().item())), (
            name
        )


def test_networks_in_channels_last_format_keep_their_spikes(monkeypatch):
    model = _model(NETWORKS["blocks"], 2, neuron="if").float().to(memory_format=torch.channels_last)
    x = torch.randn(5, 3, 2, 6, 6, generator=torch.Generator().manual_seed(1))
    expected = copy.deepcopy(model)(x)
    monkeypatch.setattr(frames, "PIECE_BYTES", 1)
    weighed: list[tuple[int, bool]] = []
    weigh = frames._weigh

    def watch(weights, x, *channels):
        if x.ndim == 4:
            weighed.append((x.shape[1], x.is_contiguous(memory_format=torch.channels_last)))
        return weigh(weights, x, *channels)

    monkeypatch.setattr(frames, "_weigh", watch)
    assert torch.equal(scores(model, x), expected)
    assert weighed
    assert all(last for channels, last in weighed if channels > 2)  # the input's 2 channels come as they are


@pytest.mark.parametrize("neuron", ["if", "lif"])
@pytest.mark.parametrize("layers", ["conv", "blocks", "no norm"])
def test_products_in_bfloat16_change_gradients_a_little_and_no_spike(layers, neuron):
    model = _model(NETWORKS[layers], 3, neuron=neuron).float()
    x = torch.randn(5, 4, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    out, exact, buffers = _gradients(copy.deepcopy(model), x, scores)
    rough_out, rough, rough_buffers = _gradients(
        copy.deepcopy(model), x, lambda m, x: scores(m, x, products=torch.bfloat16)
    )
    assert torch.equal(out, rough_out)
    assert all(torch.equal(buffers[name], rough_buffers[name]) for name in buffers)
    assert any(not torch.equal(exact[name], rough[name]) for name in exact)
    for name, gradient in exact.items():
        assert rough[name].dtype == torch.float32
        assert (gradient - rough[name]).norm() <= 0.03 * gradient.norm() + 1e-4, name


def test_the_loop_takes_the_products_of_the_backward_pass_in_bfloat16():
    rng = np.random.default_rng(0)
    data = Split(rng.random((12, 2, 6, 6), np.float32), rng.integers(0, 3, 12))
    weights, losses = [], []
    for mixed_precision in (False, True):
        model = _model(NETWORKS["blocks"], 1, neuron="if").float()
        settings = {"epochs": 1, "batch_size": 12, "warmup_iterations": 0, "learning_rate": 0.01}
        history = fit(model, data, TrainConfig.model_validate(settings | {"mixed_precision": mixed_precision}))
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        losses.append(history.epochs[0].loss)
    assert losses[0] == losses[1]
    assert not torch.equal(*weights)
    assert torch.allclose(*weights, rtol=0, atol=1e-3)


@settings(max_examples=20, deadline=None)
@given(
    steps=st.integers(1, 20), shape=st.tuples(*[st.integers(1, 4)] * 3), seed=st.integers(0, 2**16), last=st.booleans()
)
def test_spikes_kept_as_bits_come_back(steps, shape, seed, last):
    fired = torch.rand(steps, *shape, 2, generator=torch.Generator().manual_seed(seed)) < 0.4
    like = torch.empty(1, 3, 2, 2).to(memory_format=torch.channels_last if last else torch.contiguous_format)
    bits = SpikeBits(steps, (*shape, 2), like)
    for n, frame in enumerate(fired):
        bits.write(n, (slice(0, 1), slice(None)), frame[:1])
        bits.write(n, (slice(1, None), slice(None)), frame[1:])
    amplitude = torch.tensor(0.7, dtype=torch.float64)
    assert torch.equal(bits.read(amplitude), (fired * amplitude).flatten(0, 1))
    assert torch.equal(bits.read(amplitude, (slice(1), slice(1, 3))), (fired * amplitude)[:, :1, 1:3].flatten(0, 1))
    assert torch.equal(bits.counts, fired.sum(0, dtype=torch.uint8))
