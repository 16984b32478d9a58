"""Post-training quantization: integers on the chip's grid, and no error that is not reported."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from lapilli.bounds import population_bounds
from lapilli.errors import DataError, RecipeError, UnsupportedError
from lapilli.export.folding import Affine, Folded, FoldedLayer
from lapilli.export.quantization import QuantizeConfig, quantize, quantize_with_latent
from lapilli.network import INPUT, Conv2d
from lapilli.recording import decide, scores
from lapilli.sim.reference import reference


def folded(*, beta=1.0, reset="subtract", last="spikes", seed=0, size=1.0, bias=0.1, threshold=1.0, shape=(2, 6, 6)):
    """A strided grouped convolution and a dense layer."""
    rng = np.random.default_rng(seed)
    conv = Affine(
        "conv2d",
        rng.normal(0, size, (4, shape[0] // 2, 3, 3)),
        rng.normal(0, bias, 4),
        stride=(2, 1),
        padding=(1, 1),
        groups=2,
    )
    middle = conv.output_shape(shape)
    dense = Affine("dense", rng.normal(0, size, (5, int(np.prod(middle)))), rng.normal(0, bias, 5))
    amount = threshold if reset == "subtract" else 0.0
    neuron = {"reset": reset, "threshold": 0.5 * threshold, "reset_amount": amount, "beta": beta}
    end = neuron if last == "spikes" else {"reset": "none", "beta": beta}
    return Folded(
        layers=(
            FoldedLayer(name="conv1", affine=conv, shape=middle, **neuron),
            FoldedLayer(name="fc1", affine=dense, shape=(5,), **end),
        ),
        steps=8,
        input_shape=shape,
        labels=tuple("abcde"),
    )


def broken(**changes):
    net = folded()
    return replace(net, layers=(net.layers[0], replace(net.layers[1], **changes)))


IMAGES = np.random.default_rng(9).integers(0, 17, (20, 2, 6, 6)) / 16.0


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("beta", [1.0, 0.9])
@pytest.mark.parametrize("reset", ["subtract", "zero"])
def test_everything_is_on_the_grid_of_the_registers(bits, beta, reset):
    network = quantize(folded(beta=beta, reset=reset), QuantizeConfig(weight_bits=bits), IMAGES)
    for c in network.connections:
        assert c.weight_exponent == 8 - bits
        assert np.abs(c.synapse.weight).max() == 2 ** (bits - 1) - 1
    for p in network.populations:
        assert p.fraction_bits == 6
        assert p.du == 4096
        assert p.dv == (0 if beta == 1.0 else 410)
        assert p.threshold % 64 == 0
        assert p.threshold // 64 < 2**17
        assert p.reset_amount % 64 == 0
        exponents = [e for e in range(8) if not np.any(p.bias % 2**e) and np.abs(p.bias >> e).max() <= 4095]
        assert exponents, "no exponent of the bias register fits"
        if beta == 1.0:
            assert not np.any(p.bias % 64), "an IF membrane leaves the grid of its threshold"
        assert not population_bounds(network, p).can_wrap


def test_an_if_neuron_fires_at_its_threshold_and_not_below():
    """Membranes are multiples of 64: theta = 64 (T - 1) is 'fires at S alpha th or above', for every possible v."""
    for threshold, bits in ((0.31, 8), (0.5, 8), (1.0, 5), (2.7, 2)):
        result = quantize_with_latent(folded(threshold=threshold), QuantizeConfig(weight_bits=bits), IMAGES)
        for p, r in zip(result.network.populations, result.report, strict=True):
            v = 64 * np.arange(-10, 2000)
            np.testing.assert_array_equal(v > p.threshold, v >= p.scale * 0.5 * threshold)
            assert p.reset_amount == 64 * round(p.scale / 64 * threshold)
            assert p.scale == 64 * r.scale * 2 ** (8 - bits)


def test_latent_values_are_those_before_rounding():
    net = folded(beta=0.9)
    result = quantize_with_latent(net, QuantizeConfig(input_levels=16), IMAGES)
    tensors = result.network.tensors()
    assert result.latent.keys() == {"input->conv1/weight", "conv1/bias", "conv1->fc1/weight", "fc1/bias"}
    for name, value in result.latent.items():
        assert value.shape == tensors[name].shape
        grid = 1 if name.endswith("weight") else 2 ** result.report[0].bias_exponent
        assert np.abs(value - tensors[name]).max() <= grid / 2 + 1e-9
    scale = result.report[1].scale
    np.testing.assert_allclose(result.latent["conv1->fc1/weight"], net.layers[1].affine.weight * scale)
    np.testing.assert_allclose(result.latent["fc1/bias"], net.layers[1].affine.bias * scale * 64)
    # The input's step of 1/16 is in the first layer's weights.
    np.testing.assert_allclose(
        result.latent["input->conv1/weight"], net.layers[0].affine.weight * result.report[0].scale / 16
    )


@pytest.mark.parametrize("beta", [1.0, 0.95])
@pytest.mark.parametrize("reset", ["subtract", "zero"])
@pytest.mark.parametrize("last", ["spikes", "membrane"])
def test_eight_bits_stay_close_to_the_real_network(beta, reset, last):
    # A weight of 1/128 of the largest is below the noise of these networks; most decisions agree.
    net = folded(beta=beta, reset=reset, last=last, threshold=4.0)
    network = quantize(net, QuantizeConfig(input_levels=16), IMAGES)
    run = reference(network, network.input.encode(IMAGES))
    real = net.simulate(IMAGES)
    for name, spikes in real.spikes.items():
        assert 0 < spikes.mean() < 1
        assert np.mean(spikes != run.spikes[name]) < 0.03
    assert np.mean(decide(scores(network, run)) == real.scores.argmax(1)) >= 0.85
    assert (
        network.readout.kind
        == {
            ("spikes", 1.0): "count",
            ("spikes", 0.95): "weighted_count",
            ("membrane", 1.0): "membrane",
            ("membrane", 0.95): "membrane",
        }[last, beta]
    )
    assert network.readout.decay == (205 if (last, beta) == ("spikes", 0.95) else 0)
    assert network.labels == tuple("abcde")


def test_integer_weights_and_thresholds_are_kept_exactly():
    """A real network that already is on the grid loses nothing: every spike is equal."""
    rng = np.random.default_rng(3)
    net = folded(bias=0.0)
    layers = []
    for layer in net.layers:
        weight = rng.integers(-126, 127, layer.affine.weight.shape).astype(float)
        weight.flat[0] = 127
        bias = rng.integers(-50, 50, len(weight)).astype(float)
        affine = replace(layer.affine, weight=weight * (16 if layer.name == "conv1" else 1), bias=bias)
        layers.append(replace(layer, affine=affine, threshold=300.0, reset_amount=601.0))
    net = replace(net, layers=tuple(layers))
    result = quantize_with_latent(net, QuantizeConfig(input_levels=16, input_range=(0, 1)))
    run = reference(result.network, result.network.input.encode(IMAGES))
    for name, spikes in net.simulate(IMAGES).spikes.items():
        np.testing.assert_array_equal(run.spikes[name], spikes)
    assert all(r.weight_error_max < 1e-12 and r.reset_error == 0 and r.bias_error_max < 1e-12 for r in result.report)


@pytest.mark.parametrize(
    ("data", "settings", "low", "high", "scale"),
    [
        ([0.0, 1.0], {}, 0, 255, 1 / 255),
        ([0.0, 1.0], {"input_levels": 16}, 0, 16, 1 / 16),
        ([0.0, 3.0], {"input_bits": 4}, 0, 15, 3 / 15),
        ([-1.0, 0.5], {}, -127, 127, 1 / 127),
        ([-1.0, 2.0], {"input_levels": 5}, -5, 5, 2 / 5),
        ([0.2, 0.7], {"input_range": (0, 1), "input_levels": 1}, 0, 1, 1.0),
    ],
)
def test_the_input_range_is_that_of_the_data(data, settings, low, high, scale):
    x = np.broadcast_to(np.array(data)[:, None, None, None], (2, 2, 6, 6))
    network = quantize(folded(), QuantizeConfig(**settings), x)
    assert (network.input.low, network.input.high) == (low, high)
    np.testing.assert_allclose(network.input.scale, scale)
    assert not network.input.zero.any()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([2, 4]))
def test_normalization_folds_into_the_input_exactly_at_padded_borders(seed, channels):
    """``W zeropad((x - mean) / std)`` equals the integer network's sum plus its bias at every neuron."""
    rng = np.random.default_rng(seed)
    mean, std = rng.uniform(0.2, 0.6, channels), rng.uniform(0.1, 0.4, channels)
    net = folded(seed=seed, shape=(channels, 6, 6))
    raw = rng.integers(0, 256, (4, channels, 6, 6)) / 255
    raw[0, 0, 0, 0], raw[0, 0, 0, 1] = 0, 1
    x = (raw - mean[:, None, None]) / std[:, None, None]
    config = QuantizeConfig(input_mean=tuple(mean), input_std=tuple(std))
    result = quantize_with_latent(net, config, x)
    net_input = result.network.input
    q = net_input.encode(x)
    assert (net_input.low, net_input.high) == (0, 255)
    np.testing.assert_array_equal(q, np.rint(raw * 255))
    conv = replace(net.layers[0].affine, weight=result.latent["input->conv1/weight"])
    integers = conv(q.astype(float)) * 64 + result.latent["conv1/bias"]
    real = net.layers[0].affine(x) + net.layers[0].affine.bias[:, None, None]
    np.testing.assert_allclose(integers, real * result.network.populations[0].scale, rtol=1e-9, atol=1e-6)
    assert result.network.populations[0].bias.shape == net.layers[0].shape


def test_a_dense_first_layer_takes_normalized_input_too():
    rng = np.random.default_rng(0)
    affine = Affine("dense", rng.normal(size=(3, 8)), np.zeros(3))
    net = Folded(
        layers=(FoldedLayer(name="fc1", affine=affine, shape=(3,), reset="zero", threshold=1.0),),
        steps=2,
        input_shape=(2, 2, 2),
    )
    raw = rng.integers(0, 256, (5, 2, 2, 2)) / 255
    mean, std = np.array([0.3, 0.5]), np.array([0.2, 0.4])
    x = (raw - mean[:, None, None]) / std[:, None, None]
    config = QuantizeConfig(input_mean=tuple(mean), input_std=tuple(std), input_range=(0, 1))
    result = quantize_with_latent(net, config)
    q = result.network.input.encode(x).reshape(5, -1)
    integers = q @ result.latent["input->fc1/weight"].T * 64 + result.latent["fc1/bias"]
    np.testing.assert_allclose(integers, affine(x) * result.network.populations[0].scale, rtol=1e-9, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "limited_by"),
    [
        ({}, "weights"),
        ({"bias": 1000.0}, "bias"),
        ({"reset_amount": 1e4}, "threshold"),
        ({"threshold": 1e4}, "threshold"),
    ],
)
def test_the_report_says_what_limited_the_scale(change, limited_by):
    if "bias" in change:
        change = {"affine": replace(folded().layers[1].affine, bias=np.full(5, change["bias"]))}
    result = quantize_with_latent(broken(**change), QuantizeConfig(), IMAGES)
    assert [r.limited_by for r in result.report] == ["weights", limited_by]
    assert result.network.metadata["quantization"]["layers"][1]["limited_by"] == limited_by
    population = result.network.populations[1]
    if limited_by == "bias":
        assert population.bias[0] == 4095 * 2**7
    if limited_by == "threshold":
        assert max(population.threshold, population.reset_amount) == (2**17 - 1) * 64
    assert result.network.metadata["quantization"]["settings"]["weight_bits"] == 8


def test_the_worst_current_never_wraps():
    net = folded(shape=(16, 6, 6), seed=1)
    positive = replace(net.layers[0].affine, weight=np.abs(net.layers[0].affine.weight))
    net = replace(net, layers=(replace(net.layers[0], affine=positive), net.layers[1]))
    result = quantize_with_latent(net, QuantizeConfig(), np.random.default_rng(0).random((3, 16, 6, 6)))
    assert result.report[0].limited_by == "current"
    bounds = population_bounds(result.network, result.network.populations[0])
    assert not bounds.can_wrap
    assert bounds.current[1] > 0.9 * 2**23, "the scale is smaller than it needs to be"


def test_bits_by_layer_and_other_scales():
    network = quantize(folded(), QuantizeConfig(weight_bits={"conv1": 4}), IMAGES)
    assert [c.weight_bits for c in network.connections] == [4, 8]
    plain = quantize_with_latent(folded(), QuantizeConfig(weight_bits=4), IMAGES).report
    least = quantize_with_latent(folded(), QuantizeConfig(weight_bits=4, weight_scale="mse"), IMAGES).report
    cut = quantize_with_latent(
        folded(), QuantizeConfig(weight_bits=4, weight_scale="percentile", percentile=90), IMAGES
    ).report
    for a, b, c in zip(plain, least, cut, strict=True):
        assert b.weight_error_rms < a.weight_error_rms
        assert a.clipped_weights == 0
        assert c.clipped_weights > 0


def test_a_layer_that_does_not_survive_is_named():
    affine = folded().layers[1].affine
    zero = replace(affine, weight=np.zeros_like(affine.weight))
    infinite = replace(affine, weight=np.where(affine.weight > 0, np.inf, affine.weight))
    tiny = replace(affine, weight=affine.weight * 1e-9, bias=np.zeros(5))
    for net, says in [
        (broken(affine=zero), "'fc1'.*all weights are zero"),
        (broken(affine=infinite), "'fc1'.*not finite"),
        (broken(affine=tiny), "'fc1'.*round to zero.*threshold"),
        (broken(threshold=1e-4, reset_amount=2e-4), "'fc1'.*rounds to zero"),
    ]:
        with pytest.raises(UnsupportedError, match=says):
            quantize(net, QuantizeConfig(), IMAGES)


def test_bad_settings_are_refused():
    for bad in (
        {"weight_bits": 9},
        {"weight_bits": {"conv1": 1}},
        {"weigth_bits": 8},
        {"input_range": (1, 1)},
        {"input_mean": (0.5,)},
        {"input_mean": (0.5,), "input_std": (0.0,)},
    ):
        with pytest.raises(ValidationError):
            QuantizeConfig(**bad)
    with pytest.raises(RecipeError, match="no layer 'conv9'"):
        quantize(folded(), QuantizeConfig(weight_bits={"conv9": 4}), IMAGES)
    with pytest.raises(RecipeError, match="input_mean"):
        quantize(folded(), QuantizeConfig(input_mean=(0.1,) * 3, input_std=(1.0,) * 3), IMAGES)
    with pytest.raises(DataError, match="input_range"):
        quantize(folded(), QuantizeConfig())
    for data in (IMAGES[:, :1], IMAGES * np.nan, IMAGES[:0], IMAGES * 0):
        with pytest.raises(DataError):
            quantize(folded(), QuantizeConfig(), data)


@pytest.mark.parametrize(
    ("beta", "bits", "weight_scale", "fingerprint"),
    [
        (1.0, 8, "max", "aaf2536cf9a74f52"),
        (0.9, 4, "mse", "c9d45e71905e75aa"),
        (1.0, 3, "percentile", "8243889ad6b82e6b"),
    ],
)
def test_the_same_network_gives_the_same_integers_in_every_version(beta, bits, weight_scale, fingerprint):
    config = QuantizeConfig(weight_bits=bits, weight_scale=weight_scale, percentile=95)
    result = quantize_with_latent(folded(beta=beta), config, IMAGES)
    content = hashlib.sha256()
    for name, array in sorted({**result.network.tensors(), **result.latent}.items()):
        content.update(name.encode())
        content.update(np.ascontiguousarray(array).tobytes())
    for p in result.network.populations:
        content.update(repr((p.name, p.threshold, p.reset_amount, p.dv, p.scale)).encode())
    assert content.hexdigest()[:16] == fingerprint


def test_the_geometry_is_kept():
    network = quantize(folded(), QuantizeConfig(), IMAGES)
    first, second = network.connections
    assert isinstance(first.synapse, Conv2d)
    assert (first.synapse.stride, first.synapse.padding, first.synapse.groups) == ((2, 1), (1, 1), 2)
    assert (first.source, first.target, second.source, second.target) == (INPUT, "conv1", "conv1", "fc1")


def test_the_configuration_needs_no_torch():
    code = "import sys; from lapilli.export.quantization import QuantizeConfig; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
