"""Clipping by least spike disagreement, and bias correction: the best of the candidates, layer by layer."""

from __future__ import annotations

import tracemalloc
from functools import partial

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lapilli.errors import DataError, RecipeError, UnsupportedError
from lapilli.export.bit_search import mixed_precision
from lapilli.export.calibration import CLIPPINGS, Calibrator, calibrate, mean_excess
from lapilli.export.folding import Affine, Folded, FoldedLayer
from lapilli.export.quantization import QuantizeConfig, quantize
from lapilli.export.sensitivity import Samples, quantization_report
from lapilli.recording import decide, scores
from lapilli.sim.executors import find

fast = find("fast")
run = partial(calibrate, execute=fast)


def network(seed, reset="subtract"):
    """Weights with few large ones, where clipping pays; random biases and thresholds."""
    rng = np.random.default_rng(seed)
    heavy = partial(rng.standard_t, 4)
    neuron = {"reset": reset, "threshold": 1.5, "reset_amount": 1.5 if reset == "subtract" else 0.0}
    conv = Affine("conv2d", heavy((4, 2, 3, 3)) * 0.3, rng.normal(0, 0.2, 4), padding=(1, 1))
    hidden = Affine("dense", heavy((6, 4 * 5 * 5)) * 0.2, rng.normal(0, 0.2, 6))
    last = Affine("dense", heavy((3, 6)), rng.normal(0, 0.2, 3))
    return Folded(
        name="net",
        steps=6,
        input_shape=(2, 5, 5),
        labels=("a", "b", "c"),
        layers=(
            FoldedLayer(name="conv", affine=conv, shape=(4, 5, 5), source="input", **neuron),
            FoldedLayer(name="hidden", affine=hidden, shape=(6,), source="conv", **neuron),
            FoldedLayer(name="last", affine=last, shape=(3,), source="hidden", reset="none"),
        ),
    )


def samples(seed, n=12):
    return np.random.default_rng(seed).random((n, 2, 5, 5))


def measured(folded, config, x):
    report = quantization_report(folded, config, x, calibration=x, execute=fast)
    return {layer.name: layer for layer in report.layers}


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**16), bits=st.integers(3, 5), reset=st.sampled_from(["subtract", "zero"]))
def test_no_layer_disagrees_more_than_with_any_other_clipping_or_method(seed, bits, reset):
    folded, x = network(seed, reset), samples(seed)
    _, config = run(folded, QuantizeConfig(weight_bits=bits, weight_scale="spikes"), x)
    assert set(config.clipping) == {"conv", "hidden", "last"}
    found = measured(folded, config, x)
    others = [{"clipping": dict.fromkeys(config.clipping, clipping)} for clipping in CLIPPINGS[:17:4]]
    for settings_ in (*others, *({"weight_scale": method} for method in ("max", "mse", "percentile"))):
        try:
            other = measured(folded, config.model_copy(update=settings_), x)
        except UnsupportedError:
            continue  # all weights of a layer round to zero
        for name in ("conv", "hidden"):
            assert found[name].spike_agreement >= other[name].spike_agreement
        assert found["last"].current_error <= other["last"].current_error * (1 + 1e-12)


def test_clipping_pays_on_heavy_tails():
    gains = []
    for seed in range(6):
        folded, x = network(seed), samples(seed)
        _, config = run(folded, QuantizeConfig(weight_bits=3, weight_scale="spikes"), x)
        by_spikes, by_max = measured(folded, config, x), measured(folded, QuantizeConfig(weight_bits=3), x)
        gains.append(by_spikes["conv"].spike_agreement - by_max["conv"].spike_agreement)
    assert min(gains) >= 0
    assert max(gains) > 0.005


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**16), bits=st.integers(3, 5))
def test_bias_correction_brings_mean_currents_back(seed, bits):
    folded, x = network(seed), samples(seed)
    config = QuantizeConfig(weight_bits=bits, bias_correction=True)
    try:
        corrected, done = run(folded, config, x)
    except UnsupportedError:
        assume(False)  # all weights of a layer round to zero
    assert corrected.corrected
    assert done == config
    assert run(corrected, done, x) == (corrected, done), "corrected twice"
    plain = quantize(folded, done.model_copy(update={"bias_correction": False}), x)
    better = quantize(corrected, done, x)
    assert better.metadata["quantization"]["settings"]["bias_correction"]
    before = mean_excess(folded, plain, Samples.of(folded, x, None), execute=fast)
    after = mean_excess(folded, better, Samples.of(folded, x, None), execute=fast)
    grid = 128  # state units: biases have exponent 7 at most, and are rounded before and after, by half of it
    for layer in folded.layers:
        p, q = plain.population(layer.name), better.population(layer.name)
        if p.scale == q.scale:  # otherwise the new bias is the limit of the scale, and the weights are others
            assert np.abs(after[layer.name]).max() <= grid / q.scale
            moved = corrected.layers[folded.layers.index(layer)].affine.bias - layer.affine.bias
            assert np.array_equal(moved, (layer.affine.bias - before[layer.name]) - layer.affine.bias)


def test_bias_correction_is_the_mean_that_rounding_took():
    weight = np.array([[10.0, 3.3]])  # at 3 bits: 3, and 0.99 rounds to 1, so 3.3333 instead of 3.3
    layer = FoldedLayer(
        name="only", affine=Affine("dense", weight, np.zeros(1)), shape=(1,), source="input", reset="none"
    )
    folded = Folded(name="n", steps=2, input_shape=(2,), labels=(), layers=(layer,))
    x = np.array([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    config = QuantizeConfig(weight_bits=3, input_levels=1, bias_correction=True)
    corrected, _ = run(folded, config, x)
    assert corrected.layers[0].affine.bias == pytest.approx([(3.3 - 10 / 3) * 2 / 3])


def test_without_data_or_calibration_the_error_says_so():
    folded = network(0)
    config = QuantizeConfig(weight_scale="spikes", input_range=(0, 1))
    with pytest.raises(RecipeError, match=r"weight_scale: 'spikes' needs calibration data for layer 'conv'"):
        quantize(folded, config)
    with pytest.raises(DataError, match=r"weight_scale = 'spikes' needs calibration samples"):
        run(folded, config, None)
    correcting = QuantizeConfig(bias_correction=True, input_range=(0, 1))
    with pytest.raises(DataError, match=r"bias_correction needs calibration samples"):
        run(folded, correcting, np.zeros((0, 2, 5, 5)))
    with pytest.raises(RecipeError, match=r"bias_correction: needs calibration data"):
        quantize(folded, correcting)
    with pytest.raises(RecipeError, match=r"quantize\.clipping: there is no layer 'nothing'; there are conv"):
        quantize(folded, QuantizeConfig(clipping={"nothing": 2.0}, input_range=(0, 1)))
    plain = QuantizeConfig()
    assert run(folded, plain, None) == (folded, plain)


def test_samples_are_counted_and_chunks_change_nothing(monkeypatch):
    folded, x = network(1), samples(1)
    config = QuantizeConfig(
        weight_bits=3, weight_scale="spikes", bias_correction=True, calibration_samples=7, input_range=(0, 1)
    )
    whole = run(folded, config, x)
    monkeypatch.setattr("lapilli.export.sensitivity.CHUNK_VALUES", 1)
    parts = run(folded, config, x)
    few = run(folded, config, x[:7])
    assert whole[1] == parts[1] == few[1]
    for a, b in zip(whole[0].layers, parts[0].layers, strict=True):
        assert np.allclose(a.affine.bias, b.affine.bias, rtol=0, atol=1e-12)


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**16), widths=st.tuples(*[st.sampled_from([3, 4, 8])] * 3))
def test_a_calibrator_finds_for_a_mixture_what_each_width_finds(seed, widths):
    folded, x = network(seed), samples(seed, 5)
    config = QuantizeConfig(weight_scale="spikes", bias_correction=True)
    calibrator = Calibrator(folded, config, x, execute=fast)
    for width in (8, 4, 3):
        calibrator(width)
    bits = dict(zip(("conv", "hidden", "last"), widths, strict=True))
    alone, chosen = run(folded, config.model_copy(update={"weight_bits": bits}), x)
    mixed, same = calibrator(bits)
    assert same == chosen
    for a, b in zip(alone.layers, mixed.layers, strict=True):
        assert np.array_equal(a.affine.bias, b.affine.bias)


def test_the_search_calibrates_every_width(monkeypatch):
    folded, x = network(3), samples(3, 40)
    y = folded.simulate(x).scores.argmax(1)
    config = QuantizeConfig(weight_scale="spikes", bias_correction=True)
    found = mixed_precision(folded, config, x, y, calibration=x, execute=fast, max_loss=0.1, candidates=(8, 4, 3))
    assert found.accuracy_reference == 1.0, "the yardstick is the network as it was trained"
    again, chosen = run(folded, config.model_copy(update={"weight_bits": dict(found.bits)}), x)
    assert found.config == chosen
    result = quantize(found.folded, found.config, x)
    assert result == quantize(again, chosen, x)
    right = decide(fast_scores(result, x)) == y
    assert right.mean() == found.accuracy


def fast_scores(network, x):
    return scores(network, fast(network, network.input.encode(x)))


def test_a_large_data_set_is_not_copied():
    """Only the first samples are converted, and the range is found in parts."""
    folded = network(0)
    x = np.broadcast_to(samples(0, 1).astype(np.float32), (4_000_000, 2, 5, 5))  # 800 MB, if it were written out
    config = QuantizeConfig(weight_bits=4, bias_correction=True, calibration_samples=3)
    tracemalloc.start()
    try:
        run(folded, config, x[:200_000])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 200_000 * 50 * 8  # one copy of them in float64
