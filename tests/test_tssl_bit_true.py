"""Bit-true training with TSSL-BP's gradient: exact spikes forward, the formulas on the real membranes backward."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from test_tssl import OfficialLayer, synapse

from lapilli.arithmetic import decay
from lapilli.errors import DescriptionError, UnsupportedError
from lapilli.export.lowering import lower
from lapilli.export.quantization import QuantizeConfig, quantize_with_latent
from lapilli.network import INPUT, Connection, Dense, Input, Network, Population, Readout
from lapilli.recording import decide, scores
from lapilli.sim.reference import reference
from lapilli.train import bit_true_spikes
from lapilli.train.bit_true import BitTrueNetwork
from lapilli.train.bit_true_spikes import spike_trains
from lapilli.train.config import BitTrueConfig, DataConfig, NetworkConfig, TrainConfig
from lapilli.train.data import load
from lapilli.train.loop import evaluate, fit
from lapilli.train.model import build
from strategies import networks_with_input


def tensors(network):
    weights = {c.name: torch.tensor(c.synapse.weight, dtype=torch.float64) for c in network.connections}
    biases = {p.name: torch.tensor(p.bias, dtype=torch.float64) for p in network.populations}
    return weights, biases


def assert_exact(network, x):
    spikes, _ = spike_trains(network, torch.tensor(x).double(), *tensors(network), "element")
    want = reference(network, x).spikes
    assert spikes.keys() == want.keys()
    for name, train in spikes.items():
        np.testing.assert_array_equal(train.numpy(), want[name], err_msg=name)


@settings(max_examples=40, deadline=None)
@given(networks_with_input(resets=("zero",), delays=True, graded=False))
def test_trains_are_the_spikes_of_the_reference(case):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bit_true_spikes, "CHUNK", 40)
        assert_exact(*case)


@settings(max_examples=40, deadline=None)
@given(networks_with_input(resets=("zero",), delays=True, wild=True, graded=False))
def test_trains_are_the_spikes_of_the_reference_where_states_overflow(case):
    assert_exact(*case)


@pytest.mark.parametrize("version", ["element", "layer"])
@pytest.mark.parametrize("delay", [0, 2])
@pytest.mark.parametrize("threshold", [64 * 2000, 64 * 30000])
def test_gradients_are_the_formulas_on_the_integers_that_occurred(version, delay, threshold):
    rng = np.random.default_rng(4)
    steps, du, dv, f, e = 9, 1365, 819, 6, 1
    p = Population(
        name="a", shape=(6,), threshold=threshold, reset="zero", du=du, dv=dv, bias=64 * rng.integers(-50, 90, 6)
    )
    weight = rng.integers(-60, 128, (6, 8))
    connection = Connection(source=INPUT, target="a", synapse=Dense(weight), weight_exponent=e, delay=delay)
    network = Network(
        name="n", steps=steps, input=Input(shape=(8,), high=8), populations=[p], connections=[connection],
        readout=Readout(population="a"),
    )  # fmt: skip
    x, g = rng.integers(0, 9, (steps, 5, 8)), rng.normal(0, 1, (steps, 5, 6))
    weights, biases = tensors(network)
    for tensor in (*weights.values(), *biases.values()):
        tensor.requires_grad_()
    spikes, _ = spike_trains(network, torch.tensor(x).double(), weights, biases, version)
    unit, keep = threshold + 1, 1 - du / 4096
    a = torch.tensor(0.0)
    total = torch.zeros(())
    for t in range(steps):  # a[t], the spikes behind a synapse
        a = keep * a + (1 - keep) * spikes["a"][t].double()
        total = total + (a * torch.tensor(g[t])).sum()
    total.backward()

    seen = reference(network, x, ["a"])
    before = np.concatenate([np.zeros_like(seen.v["a"][:1]), seen.v["a"][:-1]])
    layer = OfficialLayer.__new__(OfficialLayer)
    layer.tau_m, layer.tau_s, layer.version, layer.th = 4096 / dv, 4096 / du, version, 1.0
    layer.u = (decay(before, dv) + seen.u["a"] + p.bias) / unit
    layer.rise = layer.u - before / unit
    layer.s = seen.spikes["a"].astype(float)
    layer.a = synapse(layer.s, layer.tau_s)
    assert (layer.s.mean() > 0.1) == (threshold < 64 * 5000)
    assert layer.s.any()
    formula = layer._element if version == "element" else layer._layer
    to_current = np.zeros_like(g)
    for where in np.ndindex(g.shape[1:]):
        to_current[(slice(None), *where)] = formula(where, g[(slice(None), *where)])
    arrived = np.concatenate([np.zeros_like(x[:delay]), x[: steps - delay]])
    filtered = synapse(arrived, layer.tau_s) * layer.tau_s * 2 ** (f + e) / unit
    want = np.einsum("tbo,tbi->oi", to_current, filtered)
    got = weights["input->a"].grad
    scale = np.abs(want).max()
    np.testing.assert_allclose(got.numpy() / scale, want / scale, atol=1e-5)  # membranes are kept in float32
    want_bias = to_current.sum((0, 1)) / unit
    np.testing.assert_allclose(biases["a"].grad.numpy(), want_bias, atol=1e-5 * np.abs(want_bias).max())


def trained(bits=8, version="element", readout="rate", epochs=1):
    """A small network after a little float training, quantized."""
    layers = [{"type": "linear", "features": 40}, {"type": "linear"}]
    data = load(DataConfig())
    config = NetworkConfig(method="tssl-bp", layers=layers, gradient=version, readout=readout)
    model = build(config, data.shape, data.n_classes)
    loss = "kernel" if readout == "rate" else "cross-entropy"
    config = TrainConfig(epochs=epochs, batch_size=16, optimizer="adamw", learning_rate=5e-3, loss=loss, threads=1)
    fit(model, data.train, config)
    made = quantize_with_latent(lower(model.double()), QuantizeConfig(weight_bits=bits, input_levels=16), data.train.x)
    return data, BitTrueNetwork(made.network, made.latent)


@pytest.mark.parametrize(("bits", "version"), [(8, "element"), (4, "element"), (3, "layer"), (2, "element")])
def test_accuracy_in_training_is_that_of_the_exported_network(bits, version):
    data, module = trained(bits, version)
    config = BitTrueConfig(epochs=2, batch_size=32, loss="kernel", learning_rate=1e-3, threads=1)
    history = fit(module, data.train, config, test=data.test)
    assert history.epochs[-1].loss < history.epochs[0].loss
    network = module.to_network()
    assert {c.weight_bits for c in network.connections} == {bits}
    recording = reference(network, network.input.encode(data.test.x))
    accuracy = float((decide(scores(network, recording)) == data.test.y).mean())
    assert accuracy == history.test_accuracy == evaluate(module, data.test)
    assert accuracy > 0.3


@pytest.mark.parametrize("readout", ["rate", "membrane"])
def test_scores_train_with_cross_entropy_too(readout):
    data, module = trained(readout=readout)
    history = fit(module, data.train, BitTrueConfig(epochs=2, learning_rate=1e-3, threads=1), test=data.test)
    assert history.epochs[-1].loss < history.epochs[0].loss
    network = module.to_network()
    recording = reference(network, network.input.encode(data.test.x))
    assert float((decide(scores(network, recording)) == data.test.y).mean()) == history.test_accuracy


def test_its_state_holds_the_gradient():
    _, module = trained(epochs=0)
    again = BitTrueNetwork.from_state("here", module.state_dict())
    assert again.gradient == "tssl-bp, by element"
    assert again.network == module.network
    with pytest.raises(DescriptionError, match="unknown gradient"):
        BitTrueNetwork(replace(module.network, metadata={"gradient": "other"}))


def test_what_is_not_tssl_is_refused():
    data, module = trained(epochs=0)
    x = torch.tensor(data.test.x[:2])
    dsr = BitTrueNetwork(replace(module.network, metadata={}))
    with pytest.raises(UnsupportedError, match="tssl-bp"):
        dsr.output_spikes(x)
    soft = [replace(p, reset="subtract", reset_amount=5) if p.spikes else p for p in module.network.populations]
    with pytest.raises(UnsupportedError, match="reset to zero"):
        BitTrueNetwork(replace(module.network, populations=tuple(soft))).output_spikes(x)
