"""Training at the level of rates: one pass stands for all steps of a constant current."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lapilli.errors import RecipeError
from lapilli.train import Split, build, evaluate, fit
from lapilli.train.config import NetworkConfig, TrainConfig
from lapilli.train.neurons import IFNeuron, LIFNeuron, Neuron, RateFunction
from lapilli.train.rates import at_rate_level, rate_scores

LAYERS = [{"type": "conv", "channels": 4}, {"type": "block", "channels": 4}, {"type": "neurons"}, {"type": "linear"}]


def network(**options: Any) -> Any:
    given = {"layers": LAYERS, "steps": 4, "threshold": 1.0, **options}
    return build(NetworkConfig.model_validate(given), (1, 6, 6), 3).double()


def neuron(kind: str, steps: int, threshold: float, alpha: float, reset: Any) -> Neuron:
    return (IFNeuron if kind == "if" else LIFNeuron)(steps, threshold, alpha, reset).double()


@settings(max_examples=200, deadline=None)
@given(
    kind=st.sampled_from(["if", "lif"]),
    reset=st.sampled_from(["subtract", "zero"]),
    steps=st.integers(1, 12),
    threshold=st.integers(1, 32),
    alpha=st.sampled_from([0.25, 0.5, 1.0]),
    current=st.lists(st.integers(-200, 400), min_size=1, max_size=8),
)
@example("if", "subtract", 12, 17, 0.5, [17])  # 12 x 17/8 is exactly (2 - 1 + 0.5) x 17
def test_the_rate_of_a_constant_current_is_that_of_its_spikes(
    kind: str, reset: str, steps: int, threshold: int, alpha: float, current: list[int]
) -> None:
    # Multiples of 1/8 sum without rounding, so that IF's closed form meets its simulation at the threshold, too.
    x = torch.tensor(current, dtype=torch.float64)[:, None] / 8 + (0.01 if kind == "lif" else 0.0)
    layer = neuron(kind, steps, float(threshold), alpha, reset)
    spikes = layer(x.repeat(steps, 1))
    layer.levels = steps
    rates = RateFunction.apply(x, layer.threshold, layer)
    assert torch.allclose(rates, spikes.unflatten(0, (steps, -1)).mean(0), atol=1e-9, rtol=0)


@pytest.mark.parametrize("kind", ["if", "lif"])
def test_its_gradient_is_that_of_the_spikes(kind: str) -> None:
    steps = 5
    layer = neuron(kind, steps, 0.7, 0.5, "subtract")
    gradients = []
    for at_rates in (False, True):
        x = torch.linspace(-1, 2, 31, dtype=torch.float64).view(-1, 1).requires_grad_()
        layer.threshold.grad = None
        if at_rates:
            layer.levels = steps
            (layer(x) * torch.arange(31.0)[:, None]).sum().backward()
        else:
            sent = layer(x.repeat(steps, 1)).unflatten(0, (steps, -1))
            (sent * layer_weights(layer, steps) * torch.arange(31.0)[:, None]).sum().backward()
        gradients.append((x.grad, layer.threshold.grad))
    for spikes, rates in zip(*gradients, strict=True):
        assert torch.allclose(spikes, rates, atol=1e-12)


def layer_weights(layer: Neuron, steps: int) -> torch.Tensor:
    weights = layer.beta ** torch.arange(steps - 1, -1, -1, dtype=torch.float64)
    # G = N sum_n w_n g[n] is 1 for g[n] = w_n / (N sum w^2)
    weights = weights / weights.sum()
    return (weights / (steps * (weights**2).sum()))[:, None, None]


@pytest.mark.parametrize("reset", ["subtract", "zero"])
@pytest.mark.parametrize("kind", ["if", "lif"])
def test_a_network_with_one_layer_of_neurons_has_the_scores_of_its_spikes(kind: str, reset: str) -> None:
    layers = [{"type": "conv", "channels": 4}, {"type": "linear"}]
    net = network(layers=layers, neuron=kind, reset=reset, threshold=0.5, readout="rate").eval()
    net.layers = net.layers[:-1]  # up to the sums of the readout, whose own neurons get an uneven current
    x = torch.randn(5, 1, 6, 6, dtype=torch.float64)
    sums = net.layers(x.repeat(4, 1, 1, 1)).unflatten(0, (4, -1)).mean(0)
    with at_rate_level(net):
        assert torch.allclose(net.layers(x), sums, atol=1e-12)


def test_the_network_is_left_as_it_was() -> None:
    net = network()
    x = torch.randn(3, 1, 6, 6, dtype=torch.float64)
    before = net.eval()(x)
    rate_scores(net, x)
    rate_scores(net, x.expand(4, *x.shape))
    assert torch.equal(net(x), before)


def bars(n: int) -> Split:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, n)
    x = rng.random((n, 1, 6, 6), np.float32) * 0.3
    x[np.arange(n), 0, 2 * y] += 1
    return Split(x, y)


def test_rate_epochs_come_first_and_a_resumed_run_ends_with_the_same_weights(tmp_path: Any) -> None:
    config = TrainConfig(epochs=3, rate_epochs=2, freeze_norm=True, batch_size=16, threads=1, learning_rate=0.05)
    data = bars(96)
    whole = network().float()
    history = fit(whole, data, config, test=data)
    assert [e.rates for e in history.epochs] == [True, True, False]
    assert history.epochs[0].spike_rates == {}
    assert history.epochs[2].spike_rates
    assert history.test_accuracy == evaluate(whole, data)
    assert history.test_accuracy is not None
    assert history.test_accuracy > 0.9

    class StopError(Exception):
        pass

    def stop(epochs: Any) -> None:
        if len(epochs) == 2:
            raise StopError

    path = tmp_path / "run.safetensors"
    with pytest.raises(StopError):
        fit(network().float(), data, config, test=data, checkpoint=path, on_epoch=stop)
    resumed = network().float()
    fit(resumed, data, config, test=data, checkpoint=path, resume=True)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_frozen_statistics_stay() -> None:
    data = bars(32)
    net = network().float()
    fit(net, data, TrainConfig(epochs=1, rate_epochs=1, freeze_norm=True, batch_size=16, threads=1))
    after_rates = net.state_dict()["layers.conv1_norm.running_mean"].clone()
    torch.manual_seed(0)
    other = network().float()
    fit(other, data, TrainConfig(epochs=1, freeze_norm=True, batch_size=16, threads=1))
    assert torch.equal(other.state_dict()["layers.conv1_norm.running_mean"], torch.zeros(4))
    assert not torch.equal(after_rates, torch.zeros(4))


def test_other_modules_have_no_rate_level() -> None:
    data = bars(8)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 3))
    with pytest.raises(RecipeError, match=r"train\.rate_epochs.*set it to 0"):
        fit(net, data, TrainConfig(epochs=1, rate_epochs=1))
