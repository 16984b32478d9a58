"""Bit-true training: the forward pass is the description, the backward pass is DSR's clamp."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lapilli.errors import DataError, DescriptionError, FileFormatError, UnsupportedError
from lapilli.export.lowering import lower
from lapilli.export.quantization import QuantizeConfig, quantize_with_latent
from lapilli.network import INPUT, Connection, Dense, Input, Network, Population, Readout
from lapilli.recording import decide, scores
from lapilli.sim.engine.batched import fast
from lapilli.sim.reference import reference
from lapilli.train.bit_true import BitTrueNetwork, _Product
from lapilli.train.config import BitTrueConfig, DataConfig, NetworkConfig, TrainConfig
from lapilli.train.data import load
from lapilli.train.executor import outcome, tells_means
from lapilli.train.integer_forward import synapse_sum
from lapilli.train.loop import evaluate, fit
from lapilli.train.model import build
from strategies import networks, networks_with_input


def recurrent():
    one = Population(name="a", shape=(2,), threshold=10, reset_amount=10)
    loop = Connection(source="a", target="a", synapse=Dense(np.ones((2, 2))), delay=1, name="loop")
    feed = Connection(source=INPUT, target="a", synapse=Dense(np.ones((2, 3))))
    return Network(
        name="loop",
        steps=3,
        input=Input(shape=(3,)),
        populations=[one],
        connections=[feed, loop],
        readout=Readout(population="a"),
    )


def test_a_recurrent_network_is_refused_by_name():
    with pytest.raises(UnsupportedError, match="'loop' is recurrent"):
        BitTrueNetwork(recurrent())


@settings(max_examples=30, deadline=None)
@given(networks(delays=True, wild=True, graded=False))
def test_a_network_survives_the_round_trip(network):
    rng = np.random.default_rng(0)
    assert BitTrueNetwork(network).to_network() == network
    noisy = {name: array + rng.uniform(-0.6, 0.6, array.shape) for name, array in network.tensors().items()}
    assert BitTrueNetwork(network, noisy).to_network() == network


@settings(max_examples=25, deadline=None)
@given(networks_with_input(delays=True, graded=False))
def test_after_training_steps_the_module_is_its_description(case):
    network, x = case
    torch.manual_seed(0)
    model = BitTrueNetwork(network)
    batch = torch.tensor(x)
    for _ in range(3):
        logits = model(batch)
        model.zero_grad()
        torch.nn.functional.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64)).backward()
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.05 * (p.grad.sign() if p.grad is not None else 0.0)
    trained = model.to_network(metadata={"note": "fine"})
    assert trained.metadata == {"note": "fine"}
    for p, q in zip(network.populations, trained.populations, strict=True):
        assert (p.threshold, p.reset_amount, p.dv) == (q.threshold, q.reset_amount, q.dv)
    want = reference(trained, x)
    got = model.record(batch)
    for name, spikes in want.spikes.items():
        np.testing.assert_array_equal(got.spikes[name], spikes)
    exact = scores(trained, want)
    logits = model(batch).detach().numpy()
    np.testing.assert_array_equal(logits.argmax(1), decide(exact))
    order = np.argsort(exact, axis=1, kind="stable")
    np.testing.assert_array_equal(order, np.argsort(logits, axis=1, kind="stable"))


def gradients(model, x):
    """Logits and all gradients of one batch, and how often the model's executor was asked."""
    asked = []
    executor = model.executor
    if executor is not None:
        model.executor = lambda *given: asked.append(1) or executor(*given)
    logits = model(torch.tensor(x))
    torch.nn.functional.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64)).backward()
    return logits.detach(), {n: p.grad for n, p in model.named_parameters()}, len(asked)


def assert_same_training(network, x, executor, asked):
    logits, plain, _ = gradients(BitTrueNetwork(network), x)
    same, other, calls = gradients(BitTrueNetwork(network, executor=executor), x)
    assert calls == asked
    assert torch.equal(logits, same)
    rates = (BitTrueNetwork(network, executor=e).spike_rates(torch.tensor(x)) for e in (None, executor))
    assert next(rates) == next(rates)
    for name, grad in plain.items():
        assert (grad is None) == (other[name] is None)
        assert grad is None or torch.equal(grad, other[name]), name


@settings(max_examples=30, deadline=None)
@given(networks_with_input(delays=True, wild=True, graded=False), st.sampled_from((fast, reference)))
def test_an_executor_in_the_forward_pass_changes_no_bit_of_the_gradients(case, executor):
    network, x = case
    assert_same_training(network, x, executor, int(tells_means(network)))


@settings(max_examples=40, deadline=None)
@given(networks_with_input(delays=True, wild=True, graded=False), st.data())
def test_an_executor_tells_means_by_membranes_and_by_sums(case, data):
    network, x = case
    populations = [
        replace(p, dv=0, du=data.draw(st.sampled_from((4096, 100))))
        if p.reset == "subtract"
        else replace(p, dv=data.draw(st.sampled_from((0, 300, 4096))), du=4096)
        for p in network.populations
    ]
    assert_same_training(replace(network, populations=populations), x, fast, 1)


@pytest.mark.parametrize(("bits", "event"), [(20, "saturations"), (14, "wraps")])
def test_where_the_state_overflows_the_executor_is_still_used(bits, event):
    p = Population(name="p", shape=(2,), threshold=10, reset_amount=10, state_bits=bits, du=4096, dv=0)
    c = Connection(source=INPUT, target="p", synapse=Dense(np.array([[100, 0], [-100, 1]])))
    given = {"populations": [p], "connections": [c], "readout": Readout(population="p")}
    network = Network(name="full", steps=12, input=Input(shape=(2,), low=0, high=9), **given)
    x = np.array([[9, 1], [1, 9]])
    recording = fast(network, x)
    assert getattr(recording, event)["p"] > 0
    found = outcome(network, x, recording)
    assert found is not None
    want = np.array([[900 * 64, (1 - 900) * 64], [100 * 64, (9 - 100) * 64]])
    np.testing.assert_array_equal(found.mean_input["p"].numpy(), want)
    assert_same_training(network, x, fast, 1)


@settings(max_examples=20, deadline=None)
@given(networks_with_input(graded=False))
def test_mixed_precision_changes_no_logit(case):
    network, x = case
    logits, plain, _ = gradients(BitTrueNetwork(network), x)
    same, rounded, _ = gradients(BitTrueNetwork(network, mixed_precision=True), x)
    assert torch.equal(logits, same)
    for name, grad in plain.items():
        assert (grad is None) == (rounded[name] is None)


def product_gradients(network, c, x, weight, grad, dtype):
    """To what a connection carries and to its weights."""
    x, weight = x.requires_grad_(), weight.requires_grad_()
    product = _Product.apply(x, weight, c.synapse, network.population(c.target).shape, dtype)
    return torch.autograd.grad(product, (x, weight), grad)


@settings(max_examples=30, deadline=None)
@given(networks(), st.integers(0, 2**32 - 1))
def test_products_of_the_backward_pass_are_those_of_autograd_and_bfloat16_rounds_each_of_them(network, seed):
    """Terms may cancel, so errors are measured against the same sums of magnitudes: a few roundings of 2^-9 each."""
    generator = torch.Generator().manual_seed(seed)
    for c in network.connections:
        target = network.population(c.target).shape
        x = torch.randn(2, *network.shape_of(c.source), generator=generator)
        weight = torch.randn(c.synapse.weight.shape, generator=generator)
        grad = torch.randn(2, *target, generator=generator)
        exact = product_gradients(network, c, x.clone(), weight.clone(), grad, torch.float32)
        inputs = (x.clone().requires_grad_(), weight.clone().requires_grad_())
        autograd = torch.autograd.grad(synapse_sum(c, inputs[1], inputs[0], target), inputs, grad)
        rounded = product_gradients(network, c, x.clone(), weight.clone(), grad, torch.bfloat16)
        magnitudes = product_gradients(network, c, x.abs(), weight.abs(), grad.abs(), torch.float32)
        for e, a, r, m in zip(exact, autograd, rounded, magnitudes, strict=True):
            assert bool(((e - a).abs() <= 1e-5 * m + 1e-30).all())
            assert bool(((e - r).abs() <= 2**-6 * m + 1e-30).all())


@settings(max_examples=20, deadline=None)
@given(networks(delays=True, graded=False))
def test_a_state_dict_is_enough_to_rebuild_the_module(network):
    model = BitTrueNetwork(replace(network, metadata={"trained": "here", "values": [1, 2.5]}))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p))
    state = {name: tensor.clone() for name, tensor in model.float().state_dict().items()}
    assert BitTrueNetwork.from_state("file", state).to_network() == model.to_network()
    for broken in (
        {k: v for k, v in state.items() if k != "description"},
        {k: v for k, v in state.items() if k != "array_0"},
        {k: v for k, v in state.items() if k != "weights.0"},
        state | {"description": state["description"][:-1]},
        state | {"weights.0": torch.zeros(3, 3, 3)},
        {},
    ):
        with pytest.raises(FileFormatError, match=r"^file: "):
            BitTrueNetwork.from_state("file", broken)


def test_resuming_from_another_network_is_refused():
    state = BitTrueNetwork(small()).state_dict()
    with pytest.raises(FileFormatError, match="another network"):
        BitTrueNetwork(small(bias=128)).load_state_dict(state)


def test_training_moves_the_integers_and_keeps_them_in_range():
    network = small(weight_bits=4)
    model = BitTrueNetwork(network)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1e4)
    moved = model.to_network()
    assert moved != network
    for c in moved.connections:
        assert np.abs(c.synapse.weight).max() == 7
    for p in moved.populations:
        assert np.abs(p.bias).max() == 4095 * 64


def small(*, reset="subtract", dv=0, weight_bits=8, readout="count", bias=64, du=4096, delay=0):
    """Two dense layers whose weights differ in size, so that some neurons clamp on either side."""
    rng = np.random.default_rng(5)
    limit = 2 ** (weight_bits - 1) - 1
    rho = 64 * 9 * limit // 10 if reset == "subtract" else 0
    one = Population(
        name="one",
        shape=(12,),
        threshold=64 * limit // 2,
        reset=reset,
        reset_amount=rho,
        dv=dv,
        du=du,
        bias=bias * rng.integers(-limit, limit + 1, 12),
    )
    last = replace(one, name="two", shape=(5,), bias=np.zeros(1, np.int64))
    if readout == "membrane":
        last = replace(last, reset="none", reset_amount=0, threshold=0, scale=100.0)
    return Network(
        name="small",
        steps=6,
        input=Input(shape=(7,), low=0, high=3, scale=np.array([1 / 3])),
        populations=[one, last],
        connections=[
            Connection(
                source=INPUT,
                target="one",
                synapse=Dense(rng.integers(-limit, limit + 1, (12, 7))),
                weight_bits=weight_bits,
            ),
            Connection(
                source="one",
                target="two",
                synapse=Dense(rng.integers(-limit, limit + 1, (5, 12))),
                weight_bits=weight_bits,
                delay=delay,
            ),
        ],
        readout=Readout(population="two", kind=readout, decay=dv if readout == "weighted_count" else 0),
    )


@pytest.mark.parametrize("reset", ["subtract", "zero"])
@pytest.mark.parametrize(("dv", "readout"), [(0, "count"), (200, "weighted_count"), (0, "membrane"), (390, "membrane")])
@pytest.mark.parametrize("du", [4096, 1000])
def test_the_gradient_is_the_clamp_rule_in_closed_form(reset, dv, readout, du):
    """Against the rule written out in NumPy (the mask, beta^(N-n)), from the reference's spikes and currents."""
    network = small(reset=reset, dv=dv, readout=readout, du=du, delay=1)
    x = np.random.default_rng(6).integers(0, 4, (9, 7))
    model = BitTrueNetwork(network)
    logits = model(torch.tensor(x))
    g = np.random.default_rng(7).normal(size=(9, 5))
    (logits * torch.tensor(g)).sum().backward()

    run = reference(network, x, ["one", "two"])
    one, two = network.populations
    T, keep = network.steps, 1 - dv / 4096
    w = keep ** np.arange(T - 1.0, -1.0, -1.0)
    w /= w.sum()

    def mean(frames):
        return np.tensordot(w, frames, 1)

    def gain(delay):  # what a steady input of 1 adds to u, over the window
        u, seen = 0.0, []
        for n in range(T):
            u = u * (1 - du / 4096) + (n >= delay)
            seen.append(u)
        return float(np.dot(w, seen))

    def unit(p):
        return {"subtract": p.reset_amount, "zero": p.threshold + 1, "none": p.scale}[p.reset]

    def inside(p):
        z = mean(run.u[p.name] + p.bias) / unit(p)
        return (z >= 0) & (z <= 1)

    # Logits are per-unit scores; undo the exact factor by comparing with the scores themselves.
    exact = scores(network, run)
    some = exact != 0
    factor = float((logits.detach().numpy()[some] / exact[some]).mean())
    np.testing.assert_allclose(logits.detach().numpy(), exact * factor, rtol=1e-12)
    if readout == "membrane":
        per_unit = unit(two) * float((keep ** np.arange(T)).sum())
        to_z2 = g * factor * per_unit
    else:
        total = 2**20 * (keep ** np.arange(T)).sum() if readout == "weighted_count" else T
        to_z2 = g * factor * total * inside(two)
    w2 = network.connections[1].synapse.weight * 64.0
    to_a1 = to_z2 @ (w2 / unit(two)) * gain(1)
    to_z1 = to_a1 * inside(one)
    want = {
        "weights.0": to_z1.T @ x * gain(0),
        "weights.1": to_z2.T @ mean(run.spikes["one"].astype(float)) * gain(1),
        "biases.0": to_z1.sum(0),
        "biases.1": to_z2.sum(keepdims=True).reshape(1),
    }
    assert 0 < inside(one).mean() < 1
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        np.testing.assert_allclose(parameter.grad.numpy(), want[name], rtol=2e-4, atol=1e-6, err_msg=name)


def test_input_is_encoded_as_the_description_says():
    network = small()
    model = BitTrueNetwork(network)
    x = np.random.default_rng(0).uniform(-0.5, 1.5, (50, 7)).astype(np.float32)
    np.testing.assert_array_equal(model.encode(torch.tensor(x)).numpy(), network.input.encode(x))
    for bad in (torch.zeros(2, 8), torch.full((2, 7), 9), torch.full((2, 7), float("nan")), torch.zeros(5, 2, 7)):
        with pytest.raises(DataError):
            model(bad)


def test_misuse_is_refused():
    network = small()
    with pytest.raises(DescriptionError, match="readout"):
        BitTrueNetwork(replace(network, readout=None))
    with pytest.raises(DescriptionError, match="latent values"):
        BitTrueNetwork(network, {"one/bias": np.zeros(3)})


@pytest.fixture(scope="module")
def digits():
    data = load(DataConfig())
    layers = [{"type": "conv", "channels": 8, "stride": 2, "padding": 1}, {"type": "pool"}, {"type": "linear"}]
    model = build(NetworkConfig(steps=5, layers=layers), data.shape, data.n_classes)
    fit(model, data.train, TrainConfig(epochs=5), progress=False)
    return data, model


@pytest.mark.parametrize("bits", [8, 6, 4])
def test_digits_from_float_to_integers(digits, bits):
    data, model = digits
    quantized = quantize_with_latent(lower(model), QuantizeConfig(weight_bits=bits, input_levels=16), data.train.x)
    tuned = BitTrueNetwork(quantized.network, quantized.latent)
    before = evaluate(tuned, data.test)
    fit(tuned, data.train, BitTrueConfig(epochs=2), progress=False)
    after = evaluate(tuned, data.test)
    network = tuned.to_network()
    x = network.input.encode(data.test.x)
    predicted = decide(scores(network, reference(network, x)))
    assert float((predicted == data.test.y).mean()) == after
    assert evaluate(model, data.test) > 0.85
    assert before > 0.8
    assert after > 0.85
    assert network != quantized.network
