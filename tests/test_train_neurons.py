"""DSR neurons against the formulas of the official code and a slow loop, in float64."""

import itertools
import math

import numpy as np
import pytest
import torch

from lapilli.train.neurons import Accumulator, IFNeuron, LIFNeuron, mean_over_steps

STEPS, BATCH = 7, 5
CASES = list(itertools.product((IFNeuron, LIFNeuron), ("subtract", "zero"), (0.3, 0.5, 1.0)))


def neuron_of(kind, *, reset="subtract", alpha=0.5, threshold=1.5, steps=STEPS, **options):
    if kind is LIFNeuron:
        options = {"tau": 0.8, "dt": 0.1} | options
    return kind(steps, threshold, alpha, reset, **options).double()


def currents(neuron, seed=0, steps=STEPS):
    """Currents whose mean falls below, inside and above the clamp."""
    generator = torch.Generator().manual_seed(seed)
    ceiling = neuron.threshold.item() * (neuron.tau / neuron.dt if isinstance(neuron, LIFNeuron) else 1)
    level = torch.rand(BATCH, 3, 2, generator=generator, dtype=torch.float64) * 2 - 0.5
    noise = torch.randn(steps, BATCH, 3, 2, generator=generator, dtype=torch.float64)
    return ((level + 0.3 * noise) * ceiling).flatten(0, 1)


def slow_spikes(neuron, current):
    """The neuron equations, one neuron and one step at a time."""
    frames = current.unflatten(0, (neuron.steps, -1)).numpy()
    spikes = np.zeros(frames.shape)
    th = neuron.threshold.item()
    lif = isinstance(neuron, LIFNeuron)
    be = math.exp(-neuron.dt / neuron.tau) if lif else 1.0
    for where in np.ndindex(frames.shape[1:]):
        v = 0.0
        for n in range(neuron.steps):
            i = frames[(n, *where)]
            v = be * v + (1 - be) * i if lif else v + i
            if v >= neuron.alpha * th:
                spikes[(n, *where)] = 1
                v = v - th if neuron.reset == "subtract" else 0.0
    return spikes


@pytest.mark.parametrize(("kind", "reset", "alpha"), CASES)
def test_forward_equals_a_slow_loop(kind, reset, alpha):
    neuron = neuron_of(kind, reset=reset, alpha=alpha)
    x = currents(neuron)
    amplitude = neuron.threshold.item() / (neuron.dt if kind is LIFNeuron else 1)
    spikes = slow_spikes(neuron, x)
    assert 0.1 < spikes.mean() < 0.9
    np.testing.assert_array_equal(neuron(x).detach().unflatten(0, (STEPS, -1)).numpy(), amplitude * spikes)


@pytest.mark.parametrize("reset", ["subtract", "zero"])
def test_if_gradient_is_that_of_the_clamp_on_a_closed_interval(reset):
    neuron = neuron_of(IFNeuron, reset=reset, gradient_scale=0.25)
    th = neuron.threshold.item()
    x = currents(neuron)
    x = x.unflatten(0, (STEPS, -1))
    x[:, 0, 0, 0], x[:, 0, 1, 0] = 0, th  # exactly on both ends
    x = x.flatten(0, 1).requires_grad_()
    g = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    neuron(x).backward(g)

    mean = x.detach().unflatten(0, (STEPS, -1)).mean(0)
    total = g.unflatten(0, (STEPS, -1)).sum(0)
    inside = (mean >= 0) & (mean <= th)
    assert inside[0, 0, 0]
    assert inside[0, 1, 0]
    assert inside.any()
    assert (mean > th).any()
    assert (mean < 0).any()
    expected = (total * inside / STEPS).expand(STEPS, *total.shape).flatten(0, 1)
    torch.testing.assert_close(x.grad, expected, rtol=0, atol=1e-12)
    expected_th = 0.25 * (total * (mean > th)).sum()
    torch.testing.assert_close(neuron.threshold.grad, expected_th, rtol=0, atol=1e-12)


@pytest.mark.parametrize("reset", ["subtract", "zero"])
@pytest.mark.parametrize("scale", [None, 2.0])
def test_lif_gradient_is_that_of_the_clamp_on_an_open_interval(reset, scale):
    neuron = neuron_of(LIFNeuron, reset=reset, gradient_scale=scale)
    th, tau, dt = neuron.threshold.item(), neuron.tau, neuron.dt
    x = currents(neuron)
    x = x.unflatten(0, (STEPS, -1))
    x[:, 0, 0, 0] = 0  # exactly on the lower end: outside
    x = x.flatten(0, 1).requires_grad_()
    g = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    neuron(x).backward(g)

    w = torch.tensor([math.exp(-(STEPS - n) * dt / tau) for n in range(1, STEPS + 1)], dtype=torch.float64)
    w = w.view(-1, 1, 1, 1)
    mean = (w * x.detach().unflatten(0, (STEPS, -1))).sum(0) / w.sum()
    total = STEPS * (w * g.unflatten(0, (STEPS, -1))).sum(0) / w.sum()
    inside = (mean > 0) & (mean < th * tau / dt)
    assert not inside[0, 0, 0]
    assert inside.any()
    assert (mean > th * tau / dt).any()
    expected = (total / tau * inside / STEPS).expand(STEPS, *total.shape).flatten(0, 1)
    torch.testing.assert_close(x.grad, expected, rtol=0, atol=1e-12)
    expected_th = (dt if scale is None else scale) * (total * (mean > th * tau / dt)).sum()
    torch.testing.assert_close(neuron.threshold.grad, expected_th, rtol=0, atol=1e-12)


@pytest.mark.parametrize("alpha", [0.25, 0.5, 1.0])
def test_alpha_rounds_the_spike_count_of_a_constant_current(alpha):
    steps, th = 10, 4.0
    level = torch.arange(-128, 512, dtype=torch.float64) / 64  # exact in binary, ties included
    out = neuron_of(IFNeuron, alpha=alpha, threshold=th, steps=steps)(level.repeat(steps)[:, None])
    count = out.detach().view(steps, -1).sum(0) / th
    expected = torch.clamp(torch.floor(steps * level / th + 1 - alpha), 0, steps)
    assert torch.equal(count, expected)


def test_representation_is_the_mean_current_less_the_remaining_membrane():
    """IF, soft reset: a = Ibar - V[N]/N exactly, the identity that the clamp rests on."""
    neuron = neuron_of(IFNeuron, threshold=2.0)
    x = torch.randint(-64, 128, (STEPS * BATCH, 3), generator=torch.Generator().manual_seed(0)).double() / 32
    v = torch.zeros(BATCH, 3, dtype=torch.float64)
    for frame, sent in zip(x.view(STEPS, BATCH, 3), neuron(x).detach().view(STEPS, BATCH, 3), strict=True):
        v += frame - sent
    torch.testing.assert_close(
        mean_over_steps(neuron(x).detach(), STEPS), mean_over_steps(x, STEPS) - v / STEPS, rtol=0, atol=1e-14
    )


def test_lif_readout_weighs_late_spikes_more():
    neuron = neuron_of(LIFNeuron)
    out = neuron(currents(neuron)).detach()
    w = np.exp(-np.arange(STEPS - 1, -1, -1) * neuron.dt / neuron.tau)
    expected = np.einsum("t,tbcx->bcx", w, out.unflatten(0, (STEPS, -1)).numpy()) / w.sum()
    np.testing.assert_allclose(mean_over_steps(out, STEPS, neuron.beta).numpy(), expected, rtol=1e-14)


@pytest.mark.parametrize("beta", [1.0, 0.9])
def test_accumulator_reads_the_normalized_membrane(beta):
    x = torch.randn(STEPS * BATCH, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    v = torch.zeros(BATCH, 3, dtype=torch.float64)
    for frame in x.view(STEPS, BATCH, 3):
        v = v + frame if beta == 1 else beta * v + (1 - beta) * frame
    normalized = v / (STEPS if beta == 1 else 1 - beta**STEPS)
    torch.testing.assert_close(Accumulator(STEPS, beta)(x), normalized, rtol=0, atol=1e-14)


@pytest.mark.parametrize("kind", [IFNeuron, LIFNeuron])
def test_threshold_is_raised_to_its_bound_in_training_and_evaluation(kind):
    for training in (True, False):
        neuron = neuron_of(kind, bound=0.25).train(training)
        with torch.no_grad():
            neuron.threshold.fill_(-3.0)
        neuron(currents(neuron_of(kind)))
        assert neuron.threshold.item() == 0.25


@pytest.mark.parametrize("kind", [IFNeuron, LIFNeuron])
def test_two_forward_passes_before_one_backward(kind):
    """The bound is applied in place; that must not spoil what the first pass saved."""
    neuron = neuron_of(kind)
    x = currents(neuron).requires_grad_()
    (neuron(x).sum() + neuron(x).sum()).backward()
    assert x.grad is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_precision_is_kept(dtype):
    neuron = LIFNeuron(STEPS).to(dtype)
    assert neuron(currents(neuron).to(dtype)).dtype == dtype
