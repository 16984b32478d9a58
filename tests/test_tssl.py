"""TSSL-BP against its formulas written out neuron by neuron, in float64: spikes, gradients, losses, folding."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from lapilli.errors import RecipeError, UnsupportedError
from lapilli.export.lowering import lower
from lapilli.export.quantization import QuantizeConfig, quantize
from lapilli.recipe import load_recipe
from lapilli.train import tssl
from lapilli.train.config import NetworkConfig, TrainConfig
from lapilli.train.model import SpikingSequential, build
from lapilli.train.neurons import Accumulator
from lapilli.train.rates import rate_scores
from lapilli.train.spike_losses import spike_loss
from lapilli.train.tssl import SharedDropout, TSSLNeuron

STEPS, BATCH = 6, 4
LAYERS = [
    {"type": "conv", "channels": 5, "padding": 1},
    {"type": "pool"},
    {"type": "dropout", "p": 0.3},
    {"type": "conv", "channels": 4},
    {"type": "pool", "size": [2, 1]},
    {"type": "linear", "features": 9},
    {"type": "linear"},
]


def synapse(s, tau_s):
    """``a`` of spikes ``[T, ...]``, at their source."""
    a, out = np.zeros(s.shape[1:]), []
    for now in s:
        a = (1 - 1 / tau_s) * a + now / tau_s
        out.append(a)
    return np.array(out)


class OfficialLayer:
    """One layer as the official code has it: filtered spikes in, filtered spikes out, one neuron at a time."""

    def __init__(self, weight, a_in, tau_m, tau_s, version, th=1.0):
        self.weight, self.a_in, self.tau_m, self.tau_s, self.version, self.th = weight, a_in, tau_m, tau_s, version, th
        current = np.einsum("oi,tbi->tbo", weight, a_in)
        self.u, self.s, self.rise = (np.zeros_like(current) for _ in range(3))
        for b, o in np.ndindex(current.shape[1:]):
            before = 0.0
            for t in range(len(current)):
                self.rise[t, b, o] = -before / tau_m + current[t, b, o]
                self.u[t, b, o] = before + self.rise[t, b, o]
                self.s[t, b, o] = self.u[t, b, o] > th
                before = self.u[t, b, o] * (1 - self.s[t, b, o])
        self.a = synapse(self.s, tau_s)

    def backward(self, g):
        """Gradients to the weights and to ``a_in`` from ``dL/da``."""
        of_neuron = self._element if self.version == "element" else self._layer
        to_current = np.zeros_like(g)
        for where in np.ndindex(g.shape[1:]):
            to_current[(slice(None), *where)] = of_neuron(where, g[(slice(None), *where)])
        return (
            np.einsum("tbo,tbi->oi", to_current, self.a_in),
            np.einsum("tbo,oi->tbi", to_current, self.weight),
        )

    def _eps(self, k):
        return (1 - 1 / self.tau_s) ** k / self.tau_s

    def _surrogate(self, u):
        z = np.exp(np.clip((self.th - u) / 0.2, -8, 8))
        return z / ((1 + z) ** 2 * 0.2)

    def _element(self, where, g):
        u, s, rise, a = (x[(slice(None), *where)] for x in (self.u, self.s, self.rise, self.a))
        last, carried, out = len(g) - 1, 0.0, np.zeros(len(g))
        for t in range(last, -1, -1):
            e = sum(self._eps(k - t) * g[k] for k in range(t, last + 1))
            j = np.clip(1 / rise[t], 0, 8) if s[t] else 0.0
            q = e * j
            if t < last:
                q += carried * u[t] * j / self.tau_m + carried * (1 - 1 / self.tau_m) * (1 - s[t])
            carried = q * s[t] + carried * (1 - s[t]) * (1 - 1 / self.tau_m)
            out[t] = e * self._surrogate(u[t]) if a[t] < 1 / (4 * self.tau_s) else q
        return out

    def _layer(self, where, g):
        u, s, rise = (x[(slice(None), *where)] for x in (self.u, self.s, self.rise))
        n = len(g)
        inter = np.array([[self._eps(k - t) if k >= t else 0 for k in range(n)] for t in range(n)])
        # What a spike at t leaves of its reset just before the neuron's next spike changes the membrane there.
        resets = np.zeros((n, n))
        for t in np.flatnonzero(s):
            later = np.flatnonzero(s[t + 1 :])
            if len(later):
                k = t + 1 + later[0]
                resets[t, k] = u[t] / self.tau_m * (1 - 1 / self.tau_m) ** (k - t - 1)
        e = (inter + inter @ resets) @ g
        if self.s.mean() > 0.1:
            return e * np.where(s > 0, np.clip(1 / np.where(s > 0, rise, 1), -10, 10), 0)
        return e * self._surrogate(u)


def official(weights, x, g, tau_m, tau_s, version):
    """Spikes and weight gradients of a stack of layers, for input "spikes" ``x`` and ``dL/da`` of the last one."""
    layers, a = [], synapse(x, tau_s)
    for weight in weights:
        layers.append(OfficialLayer(weight, a, tau_m, tau_s, version))
        a = layers[-1].a
    gradients = []
    for layer in reversed(layers):
        of_weight, g = layer.backward(g)
        gradients.insert(0, of_weight)
    return [layer.s for layer in layers], gradients


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(["element", "layer"]),
    st.sampled_from([(5.0, 3.0), (8.0, 4.0), (1.5, 1.2), (2.0, 6.0)]),
    st.sampled_from([0.2, 1.2]),
    st.sampled_from([1, STEPS]),
)
def test_spikes_and_gradients_are_those_of_the_official_formulas(seed, version, taus, strength, steps):
    """The official code filters at the source, we at the target; both versions of the gradient, three layers."""
    rng = np.random.default_rng(seed)
    sizes = (6, 8, 7, 3)
    weights = [strength * rng.normal(0.3, 1, (n, m)) for m, n in pairwise(sizes)]
    x, g = rng.normal(0.5, 1, (steps, BATCH, sizes[0])), rng.normal(0, 1, (steps, BATCH, sizes[-1]))
    spikes, gradients = official(weights, x, g, *taus, version)

    s = torch.tensor(x).flatten(0, 1)
    ours = [torch.tensor(w, requires_grad=True) for w in weights]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tssl, "CHUNK", 10)
        for weight, want in zip(ours, spikes, strict=True):
            s = TSSLNeuron(steps, 1.0, *taus, version).double()(s @ weight.T)
            np.testing.assert_array_equal(s.detach().unflatten(0, (steps, -1)).numpy(), want)
        keep = 1 - 1 / taus[1]
        eps = [[(1 - keep) * keep ** (t - k) if t >= k else 0 for k in range(steps)] for t in range(steps)]
        a = torch.tensordot(torch.tensor(eps, dtype=torch.float64), s.unflatten(0, (steps, -1)), 1)
        a.backward(torch.tensor(g))
    for weight, want in zip(ours, gradients, strict=True):
        assert weight.grad is not None
        scale = max(1.0, np.abs(want).max())
        np.testing.assert_allclose(weight.grad.numpy() / scale, want / scale, rtol=0, atol=1e-10)


def test_both_branches_of_each_version_are_met():
    """Among random layers: spiking and silent ones, neurons with one spike, several and none."""
    rng = np.random.default_rng(0)
    for strength, busy in ((0.2, False), (1.2, True)):
        weights = [strength * rng.normal(0.3, 1, (8, 6))]
        (s,), _ = official(weights, rng.normal(0.5, 1, (STEPS, BATCH, 6)), np.zeros((STEPS, BATCH, 8)), 5, 3, "layer")
        assert (s.mean() > 0.1) == busy
        assert {0, 1} <= set(s.sum(0).ravel())
        assert s.sum(0).max() >= 2


@pytest.mark.parametrize("filters", [1, 2])
@pytest.mark.parametrize("steps", [5, 12])
def test_kernel_loss(filters, steps):
    rng = np.random.default_rng(1)
    spikes = torch.tensor(rng.random((steps, BATCH, 3)) < 0.5, dtype=torch.float64, requires_grad=True)
    y = torch.tensor([0, 2, 1, 1])
    config = TrainConfig(loss="kernel", target_filters=filters)
    loss, scores = spike_loss(config, spikes, y, 1 - 1 / 3)
    loss.backward()
    pattern = np.array([0, 1] * 6)[:steps] if steps >= 10 else np.array([0, 1, 1, 1, 1])
    wanted = np.zeros((steps, BATCH, 3))
    wanted[:, range(BATCH), y] = pattern[:, None]
    for _ in range(filters):
        wanted = synapse(wanted, 3)
    a = synapse(spikes.detach().numpy(), 3)
    np.testing.assert_allclose(loss.item(), 0.5 * ((a - wanted) ** 2).sum(), rtol=1e-12)
    np.testing.assert_allclose(scores.detach().numpy(), a.sum(0), rtol=1e-12)
    want = [
        sum((2 / 3) ** (k - t) / 3 * (a - wanted)[k] for k in range(t, steps)) for t in range(steps)
    ]  # through the synapse
    np.testing.assert_allclose(spikes.grad, want, atol=1e-12)


def test_count_loss():
    rng = np.random.default_rng(2)
    spikes = torch.tensor(rng.random((STEPS, 30, 3)) < 0.5, dtype=torch.float64, requires_grad=True)
    y = torch.tensor(rng.integers(0, 3, 30))
    loss, scores = spike_loss(TrainConfig(loss="count", desired=3, undesired=1), spikes, y, 0.75)
    count = synapse(spikes.detach().numpy(), 4).sum(0)
    delta = np.zeros((30, 3))
    for b, c in np.ndindex(30, 3):
        if y[b] == c and count[b, c] < 3:
            delta[b, c] = (count[b, c] - 3) / STEPS
        if y[b] != c and count[b, c] > 1:
            delta[b, c] = (count[b, c] - 1) / STEPS
    assert 0 < (delta != 0).mean() < 1
    np.testing.assert_allclose(loss.item(), 0.5 * STEPS * (delta**2).sum(), rtol=1e-12)
    (to_scores,) = torch.autograd.grad(loss, scores)
    np.testing.assert_allclose(to_scores, delta, atol=1e-12)


def test_softmax_loss_is_that_of_the_sums():
    spikes = (torch.rand(STEPS, BATCH, 3) < 0.5).double()
    y = torch.tensor([0, 2, 1, 1])
    loss, scores = spike_loss(TrainConfig(loss="softmax"), spikes, y, 0.5)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(scores, y))


def config_of(**options):
    return NetworkConfig(method="tssl-bp", **({"layers": LAYERS} | options))


def test_defaults_are_the_published_settings():
    recipe = load_recipe("digits-tssl", ["network.architecture=mnist-cnn", "network.layers=[]"])
    n, t = recipe.network, recipe.train
    assert (n.neuron, n.reset, n.steps, n.threshold, n.tau_m, n.tau_s) == ("lif", "zero", 5, 1.0, 5.0, 3.0)
    assert (t.optimizer, t.weight_decay, t.gradient_clip, t.weight_clip, t.loss) == ("adamw", 0.01, 1.0, 4.0, "kernel")
    older = load_recipe("digits-tssl", ["network.gradient=layer"])
    assert (older.network.tau_s, older.train.target, older.train.target_filters) == (2.0, (0, 1, 0, 1, 1), 1)
    assert type(recipe).model_validate(recipe.model_dump(mode="json")) == recipe


@pytest.mark.parametrize(
    ("name", "shape", "features"),
    [
        ("mnist-cnn", (1, 28, 28), [15, 40, 300, 10]),
        ("nmnist-cnn", (2, 34, 34), [12, 64, 10]),
        ("fashion-cnn", (1, 28, 28), [32, 64, 1024, 10]),
        ("fashion-mlp", (1, 28, 28), [400, 400, 10]),
        ("cifar10-cnn1", (3, 32, 32), [96, 256, 384, 384, 256, 1024, 1024, 10]),
        ("cifar10-cnn2", (3, 32, 32), [128, 256, 512, 1024, 512, 1024, 512, 10]),
    ],
)
def test_networks_of_the_paper(name, shape, features):
    with torch.device("meta"):
        model = build(config_of(layers=(), architecture=name), shape, 10)
    weights = [m for m in model.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]
    assert [len(m.weight) for m in weights] == features
    assert all(m.bias is None for m in weights)
    linear = next(m for m in weights if isinstance(m, torch.nn.Linear))
    inputs = {"mnist-cnn": 640, "nmnist-cnn": 2304, "fashion-cnn": 3136, "fashion-mlp": 784}
    assert linear.in_features == inputs.get(name, linear.in_features)
    both = build(NetworkConfig(architecture=name, width=1), shape, 10)
    assert any(isinstance(m, (torch.nn.BatchNorm2d, torch.nn.BatchNorm1d)) for m in both.modules()), "DSR normalizes"


def test_initial_weights_are_scaled():
    small, large = (build(config_of(layers=(), architecture="cifar10-cnn1", width=w), (3, 32, 32), 10) for w in (3, 4))
    assert 0 < small.layers.conv1.weight.abs().max() <= 5 / np.sqrt(27)
    assert large.layers.conv1.weight.std() > 2 / np.sqrt(27) / np.sqrt(3)


def busy(model):
    with torch.no_grad():
        for p in model.double().parameters():
            if p.ndim > 1:
                p.mul_(2.5)
    return model


def sample(batch=20):
    return torch.tensor(np.random.default_rng(3).normal(0.3, 1, (batch, 1, 8, 8)))


@pytest.mark.parametrize("readout", ["rate", "membrane"])
@pytest.mark.parametrize("frames", [False, True])
def test_the_folded_network_emits_every_spike(readout, frames):
    model, x = busy(build(config_of(readout=readout, tau_m=4.0), (1, 8, 8), 10, seed=1)), sample()
    if frames:
        x = torch.stack([x.roll(t, 0) for t in range(5)])
    run = lower(model).simulate(x.numpy())
    recorded = dict(zip(model.population_names, model.record(x), strict=False))
    assert recorded.keys() == run.spikes.keys() == {"conv1", "conv2", "fc1"} | ({"fc2"} if readout == "rate" else set())
    for name, want in recorded.items():
        got = run.spikes[name]
        np.testing.assert_array_equal(got, want.numpy()[(..., *[slice(n) for n in got.shape[2:]])], err_msg=name)
        assert got.any()
    model.eval()
    with torch.no_grad():
        np.testing.assert_allclose(run.scores, model(x).numpy(), rtol=1e-9, atol=1e-12)


def test_the_readout_sums_filtered_output_spikes():
    model, x = busy(build(config_of(), (1, 8, 8), 10, seed=1)).eval(), sample()
    spikes = model.output_spikes(x).detach().numpy()
    assert spikes.any()
    np.testing.assert_allclose(5 * model(x).detach().numpy(), synapse(spikes, 3.0).sum(0), atol=1e-12)


def test_decays_of_the_description():
    """tau_s = 3 and tau_m = 5 are du = 1365 and dv = 819 of 4096: a stock current-based LIF with a hard reset."""
    network = quantize(lower(build(config_of(), (1, 8, 8), 10).double()), QuantizeConfig(), sample().numpy())
    assert [(p.name, p.du, p.dv, p.reset) for p in network.populations] == [
        ("conv1", 1365, 819, "zero"),
        ("conv2", 1365, 819, "zero"),
        ("fc1", 1365, 819, "zero"),
        ("fc2", 1365, 819, "zero"),
        ("readout", 1365, 0, "none"),
    ]
    assert not any(p.bias.any() for p in network.populations)


def test_dropout_has_one_mask_for_all_steps_and_for_rows():
    torch.manual_seed(0)
    dropout = SharedDropout(0.5, STEPS)
    out = dropout(torch.ones(STEPS * BATCH, 3, 4, 5)).unflatten(0, (STEPS, -1))
    assert set(out.unique().tolist()) == {0.0, 2.0}
    assert (out == out[:1, ..., :1]).all()
    assert not (out == out[:1, :1]).all()
    flat = dropout(torch.ones(STEPS * BATCH, 50)).unflatten(0, (STEPS, -1))
    assert (flat == flat[:1]).all()
    assert 0.3 < (flat == 0).double().mean() < 0.7
    assert torch.equal(dropout.eval()(out), out)


def test_what_tssl_does_not_have_is_refused():
    for wrong in ({"reset": "subtract"}, {"neuron": "if"}, {"alpha": 0.5}):
        with pytest.raises(ValidationError, match="tssl-bp"):
            config_of(**wrong)
    with pytest.raises(ValidationError, match="batch normalization"):
        config_of(layers=(), architecture="preact-resnet18")
    for wrong in ({"batch_norm": True}, {"bias": True}):
        with pytest.raises(ValidationError, match=r"layers.0 \(conv\)"):
            config_of(layers=[LAYERS[0] | wrong, *LAYERS[1:]])
    model = build(config_of(), (1, 8, 8), 10)
    with pytest.raises(UnsupportedError, match="rate_epochs"):
        rate_scores(model, torch.rand(2, 1, 8, 8))
    biased = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), TSSLNeuron(5), torch.nn.Flatten(), Accumulator(5))
    with pytest.raises(UnsupportedError, match="bias"):
        lower(SpikingSequential(biased, (1, 8, 8), 5, "membrane"))
    with pytest.raises(UnsupportedError, match="input_mean"):
        quantize(lower(model), QuantizeConfig(input_mean=(0.1,), input_std=(0.3,)), sample().numpy())


def test_spike_losses_need_spikes():
    from lapilli.train.data import Split
    from lapilli.train.loop import fit

    split = Split(np.zeros((4, 1, 8, 8), np.float32), np.zeros(4, np.int64))
    dsr = build(NetworkConfig(layers=[{"type": "linear"}]), (1, 8, 8), 10)
    with pytest.raises(RecipeError, match=r"train\.loss"):
        fit(dsr, split, TrainConfig(loss="kernel", epochs=1))
    with pytest.raises(RecipeError, match="rate_epochs"):
        fit(build(config_of(), (1, 8, 8), 10), split, TrainConfig(loss="kernel", epochs=1, rate_epochs=1))
