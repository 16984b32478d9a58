"""What quantization costs by layer, and the fewest bits that keep the accuracy: known answers, then trained digits."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from itertools import product
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lapilli.errors import DataError, RecipeError, UnsupportedError
from lapilli.export import sensitivity
from lapilli.export.bit_search import Search, mixed_precision
from lapilli.export.folding import Affine, Branch, Folded, FoldedLayer, identity
from lapilli.export.lowering import lower
from lapilli.export.quantization import QuantizeConfig, quantize
from lapilli.export.quantization_plots import plot, plot_search
from lapilli.export.sensitivity import memory_bits, quantization_report
from lapilli.recording import Recording, decide, scores
from lapilli.sim.executors import find
from lapilli.sim.reference import reference
from lapilli.train.config import DataConfig, NetworkConfig, TrainConfig
from lapilli.train.data import load
from lapilli.train.loop import fit
from lapilli.train.model import build

RANGE = QuantizeConfig(input_levels=4, input_range=(0, 4))  # inputs 0..4 are their own integers
X = np.random.default_rng(3).integers(0, 5, (40, 2, 6, 6)).astype(float)
FRAMES = np.random.default_rng(4).integers(0, 5, (5, 12, 2, 6, 6)).astype(float)


def coarse(shape, rng):
    """Weights that any number of bits holds exactly."""
    weight = 127.0 * rng.integers(-1, 2, shape)
    weight.ravel()[0] = 127.0
    return weight


def fine(shape, rng):
    """Weights that only 8 bits hold exactly."""
    weight = rng.integers(-127, 128, shape).astype(float)
    weight.ravel()[0] = 127.0
    return weight


def net(first=coarse, middle=coarse, last=coarse, *, residual=False, end="none", seed=0):
    """Two convolutions, the second with a shortcut if ``residual``, and a dense layer."""
    rng = np.random.default_rng(seed)
    neuron = {"reset": "subtract", "threshold": 254.0, "reset_amount": 254.0}
    layers = [
        FoldedLayer(
            name="conv1",
            affine=Affine("conv2d", first((3, 2, 3, 3), rng), 127.0 * np.arange(3), padding=(1, 1)),
            shape=(3, 6, 6),
            **neuron,
        ),
        FoldedLayer(
            name="conv2",
            affine=Affine("conv2d", middle((3, 3, 3, 3), rng), np.zeros(3), padding=(1, 1)),
            shape=(3, 6, 6),
            shortcuts=(Branch("conv1", replace(identity(3), weight=np.full(3, 127.0))),) if residual else (),
            **neuron,
        ),
        FoldedLayer(
            name="fc1",
            affine=Affine("dense", last((4, 108), rng), np.zeros(4)),
            shape=(4,),
            **({"reset": "none"} if end == "none" else neuron),
        ),
    ]
    return Folded(layers=tuple(layers), steps=5, input_shape=(2, 6, 6))


def at(bits):
    return RANGE.model_copy(update={"weight_bits": bits})


def report(folded, bits, x=X, **options):
    return quantization_report(folded, at(bits), x, execute=options.pop("execute", find("fast")), **options)


def changed(found):
    return [layer.name for layer in found.layers if layer.current_error > 0]


@pytest.mark.parametrize("x", [X, FRAMES], ids=["constant", "frames"])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("end", ["none", "spikes"])
@pytest.mark.parametrize("bits", [8, 3, 2])
def test_what_the_bits_hold_exactly_costs_nothing(bits, end, residual, x):
    folded = net(residual=residual, end=end)
    y = folded.simulate(x).scores.argmax(1)
    found = report(folded, bits, x, y=y)
    assert found.accuracy_float == found.accuracy == found.decisions == 1.0
    for layer in found.layers:
        assert layer.rounding.weight_error_max == 0.0
        assert layer.current_error == 0.0
        assert layer.decisions_alone == layer.accuracy_alone == 1.0
        spikes = folded.simulate(x).spikes.get(layer.name)
        if spikes is None:
            assert layer.spike_rate is layer.spike_agreement is layer.spike_agreement_whole is None
        else:
            assert layer.spike_agreement == layer.spike_agreement_whole == 1.0
            assert layer.spike_rate == pytest.approx(spikes.mean())
            assert 0 < spikes.mean() < 1


@pytest.mark.parametrize("x", [X, FRAMES], ids=["constant", "frames"])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("which", ["first", "middle", "last"])
def test_the_layer_that_loses_is_the_one_that_is_named(which, residual, x):
    """Where one layer alone is changed by its bits, alone and whole are the same thing."""
    folded = net(**{which: fine}, residual=residual)
    y = folded.simulate(x).scores.argmax(1)
    found = report(folded, 2, x, y=y)
    loser = {"first": "conv1", "middle": "conv2", "last": "fc1"}[which]
    assert changed(found) == [loser]
    for layer in found.layers:
        if layer.name == loser:
            assert layer.decisions_alone == layer.accuracy_alone == found.decisions == found.accuracy < 1.0
            assert layer.spike_agreement == layer.spike_agreement_whole
            assert layer.spike_agreement is None or layer.spike_agreement < 1.0
        else:
            assert layer.decisions_alone == 1.0
            assert layer.spike_agreement in (None, 1.0)
    assert report(folded, 8, x, y=y).decisions == 1.0


def test_spikes_of_the_whole_are_those_of_the_description():
    folded = net(fine, fine, fine, residual=True)
    found = report(folded, 3)
    network = quantize(folded, at(3))
    got, want = reference(network, network.input.encode(X)), folded.simulate(X)
    assert found.decisions == np.mean(decide(scores(network, got)) == want.scores.argmax(1))
    assert found.digest == network.digest()
    assert found.accuracy is found.accuracy_float is None
    for layer in found.layers[:2]:
        assert layer.spike_agreement_whole == np.mean(got.spikes[layer.name] == want.spikes[layer.name])
    assert found.layers[1].spike_agreement != found.layers[1].spike_agreement_whole


def test_errors_are_what_they_say():
    """One weight of 1/3 of the largest at 2 bits becomes zero: the current loses exactly that."""
    weight = np.array([[3.0, 1.0]])
    only = FoldedLayer(name="a", affine=Affine("dense", weight, np.zeros(1)), shape=(1,), reset="none")
    folded = Folded(layers=(only,), steps=2, input_shape=(2,))
    x = np.array([[1.0, 2.0], [0.0, 4.0]])
    layer = report(folded, 2, x).layers[0]
    assert layer.current_error == pytest.approx(np.sqrt((2**2 + 4**2) / (5**2 + 4**2)))
    assert layer.rounding.weight_error_max == pytest.approx(1 / 3)
    assert (layer.parameters, layer.memory_bits) == (2, 4)


@pytest.mark.parametrize("x", [X, FRAMES], ids=["constant", "frames"])
def test_chunks_and_executors_do_not_matter(x, monkeypatch):
    folded = net(fine, fine, fine, residual=True)
    y = np.arange(x.shape[-4]) % 4
    whole = report(folded, 3, x, y=y)
    monkeypatch.setattr(sensitivity, "CHUNK_VALUES", 7 * 5 * 108)
    parts = report(folded, 3, x, y=y, execute=reference)
    for a, b in zip(whole.layers, parts.layers, strict=True):
        assert replace(a, current_error=0.0) == replace(b, current_error=0.0)
        assert a.current_error == pytest.approx(b.current_error)
    assert replace(whole, layers=()) == replace(parts, layers=())


def test_warnings_name_the_layer():
    folded = net(partial(lambda shape, rng: np.where(coarse(shape, rng) > 126, 127.0, 10.0)))
    assert any(line.startswith("conv1: ") and "round to zero" in line for line in report(folded, 2).warnings())
    assert report(net(), 8).warnings() == []

    def overflowing(network, x, trace=()):
        return replace(reference(network, x, trace), wraps={"conv2": 3}, saturations={"fc1": 2})

    lines = report(net(), 8, execute=overflowing).warnings()
    assert lines == ["conv2: its current wrapped 3 times", "fc1: its membrane saturated 2 times"]

    def silent(network, x, trace=()):
        return replace(reference(network, x, trace), wraps={}, saturations={})

    assert report(net(), 8, execute=silent).layers[0].wraps is None


@pytest.mark.parametrize(
    ("x", "y", "match"),
    [
        (X[:, :1], None, "do not fit"),
        (np.full_like(X, np.nan), None, "not finite"),
        (FRAMES[:3], None, "5 steps; the samples have 3"),
        (X[:0], None, "no samples"),
        (X, np.zeros(39, int), "40 samples"),
        (X, np.zeros(40), "one integer for each"),
    ],
)
def test_samples_that_do_not_fit_are_refused(x, y, match):
    with pytest.raises(DataError, match=match):
        report(net(), 8, x, y=y)


# ---------------------------------------------------------------------------------------------- the search


def switch():
    """``a`` passes two inputs on; ``b`` tells 7 from 6, which takes 4 bits (of 3 bits, limit 3, both are 3)."""
    neuron = {"reset": "subtract", "threshold": 1.0, "reset_amount": 1.0}
    a = FoldedLayer(name="a", affine=Affine("dense", np.eye(2), np.zeros(2)), shape=(2,), **neuron)
    b = FoldedLayer(
        name="b", affine=Affine("dense", np.array([[6.0, 7], [7, 6]]), np.zeros(2)), shape=(2,), reset="none"
    )
    x = np.array([[1.0, 0.0], [0.0, 1.0]] * 2)
    return Folded(layers=(a, b), steps=3, input_shape=(2,)), x, np.array([1, 0] * 2)


SPIKES = QuantizeConfig(input_levels=1, input_range=(0, 1))


@pytest.mark.parametrize(
    ("max_loss", "bits", "accuracy"),
    [(0.0, {"a": 2, "b": 4}, 1.0), (0.49, {"a": 2, "b": 4}, 1.0), (0.5, {"a": 2, "b": 2}, 0.5)],
)
def test_a_known_answer_is_found(max_loss, bits, accuracy):
    folded, x, y = switch()
    seen = []
    found = mixed_precision(folded, SPIKES, x, y, execute=reference, max_loss=max_loss, on_try=seen.append)
    assert (found.bits, found.accuracy, found.proven) == (bits, accuracy, True)
    assert found.accuracy_reference == 1.0
    assert found.memory_bits == 4 * sum(bits.values()) == memory_bits(quantize(folded, found.config))
    assert found.memory_bits_widest == 64
    assert found.config == SPIKES.model_copy(update={"weight_bits": bits})
    assert tuple(seen) == found.tried
    assert len({t.bits for t in found.tried}) == len(found.tried)


def test_only_candidates_are_chosen():
    folded, x, y = switch()
    found = mixed_precision(folded, SPIKES, x, y, execute=reference, max_loss=0, candidates=(3, 6))
    assert found.bits == {"a": 3, "b": 6}
    assert found.memory_bits_widest == 48


def test_what_cannot_be_kept_is_said():
    folded, x, y = switch()
    with pytest.raises(UnsupportedError, match=r"3 bits in every layer accuracy is 50\.00%, but 100\.00%"):
        mixed_precision(folded, SPIKES, x, y, execute=reference, max_loss=0, candidates=(3, 2))
    relative = mixed_precision(
        folded, SPIKES, x, y, execute=reference, max_loss=0, candidates=(3, 2), relative_to="widest"
    )
    assert relative.bits == {"a": 2, "b": 2}
    assert relative.accuracy_reference == 0.5


@pytest.mark.parametrize(
    "wrong", [{"max_loss": -0.1}, {"max_loss": 1.0}, {"candidates": ()}, {"candidates": (9,)}, {"max_tried": 0}]
)
def test_impossible_requests_are_refused(wrong):
    folded, x, y = switch()
    with pytest.raises(RecipeError, match=next(iter(wrong))):
        mixed_precision(folded, SPIKES, x, y, execute=reference, **({"max_loss": 0.0} | wrong))


@st.composite
def landscapes(draw):
    """Random accuracies for every choice of bits, some of which do not work at all; mostly falling with the bits."""
    layers = draw(st.integers(1, 3))
    candidates = tuple(sorted(draw(st.sets(st.integers(2, 8), min_size=1, max_size=4)), reverse=True))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    loss = rng.integers(0, 6, (layers, 9)) * (8 - np.arange(9))
    noise = draw(st.sampled_from([0, 10]))
    choices = list(product(candidates, repeat=layers))
    correct = {
        bits: int(100 - sum(loss[i, b] for i, b in enumerate(bits)) + rng.integers(0, noise + 1)) for bits in choices
    }
    dead = {bits for bits in choices[1:] if rng.random() < 0.1}
    sizes = [int(n) for n in rng.integers(1, 50, layers)]
    return sizes, candidates, correct, dead, correct[choices[0]] - draw(st.integers(0, 60))


def search(landscape, max_tried):
    sizes, candidates, correct, dead, needed = landscape

    def run(bits):
        if bits in dead:
            raise UnsupportedError("rounds to zero")
        return correct[bits]

    return Search(sizes, candidates, run, needed=needed, samples=100, max_tried=max_tried)


@settings(max_examples=100, deadline=None)
@given(landscapes())
def test_with_time_enough_nothing_cheaper_exists(landscape):
    sizes, _, correct, dead, needed = landscape
    run = search(landscape, 1000)
    best, proven = run.run()
    good = [b for b, c in correct.items() if b not in dead and c >= needed]
    assert proven
    assert best is not None
    assert best.memory_bits == min(sum(s * b for s, b in zip(sizes, bits, strict=True)) for bits in good)
    assert best.bits in good
    assert all((t.accuracy is None) == (t.bits in dead) == bool(t.error) for t in run.tried)


@settings(max_examples=60, deadline=None)
@given(landscapes(), st.integers(1, 12))
def test_cut_short_it_still_keeps_the_accuracy(landscape, max_tried):
    run, longer = search(landscape, max_tried), search(landscape, 1000)
    best, proven = run.run()
    most, _ = longer.run()
    assert best is not None
    assert most is not None
    assert len(run.tried) <= max_tried
    assert run.tried == longer.tried[: len(run.tried)] or proven
    assert best.accuracy is not None
    assert best.accuracy * 100 >= landscape[-1] - 1e-9
    assert best.memory_bits == most.memory_bits if proven else best.memory_bits >= most.memory_bits


# ---------------------------------------------------------------------------------------------- trained


@pytest.fixture(scope="module")
def digits():
    data = load(DataConfig())
    layers = [{"type": "conv", "channels": 8, "stride": 2, "padding": 1}, {"type": "pool"}, {"type": "linear"}]
    model = build(NetworkConfig(neuron="lif", steps=5, layers=layers, readout="rate"), data.shape, data.n_classes)
    fit(model, data.train, TrainConfig(epochs=5), progress=False)
    return lower(model, name="digits"), data, QuantizeConfig(input_levels=16)


def test_trained_digits_lose_with_the_bits(digits):
    folded, data, config = digits
    x, y = data.test.x[:200], data.test.y[:200]
    found = {
        bits: quantization_report(
            folded,
            config.model_copy(update={"weight_bits": bits}),
            x,
            y,
            calibration=data.train.x,
            execute=find("fast"),
        )
        for bits in (8, 4, 2)
    }
    for layers in zip(*(r.layers for r in found.values()), strict=True):
        assert layers[0].current_error < layers[1].current_error < layers[2].current_error
        assert layers[0].spike_agreement > layers[1].spike_agreement > layers[2].spike_agreement > 0.5
    assert found[8].decisions > 0.97
    assert found[8].decisions > found[2].decisions
    assert [r.memory_bits // bits for bits, r in found.items()] == [found[8].memory_bits // 8] * 3
    wanted = folded.simulate(x)
    assert found[8].accuracy_float == np.mean(wanted.scores.argmax(1) == y)
    document = json.loads(json.dumps(found[4].to_json(), allow_nan=False))
    assert [layer["name"] for layer in document["layers"]] == ["conv1", "fc1"]
    assert document["layers"][0]["current_error"] == found[4].layers[0].current_error
    text = str(found[4])
    assert f"{100 * found[4].accuracy:.2f} %" in text
    assert "conv1" in text


def test_trained_digits_get_the_bits_they_need(digits):
    folded, data, config = digits
    x, y = data.train.x[:300], data.train.y[:300]
    search = partial(
        mixed_precision, folded, config, x, y, calibration=data.train.x, execute=find("fast"), max_loss=0.01
    )
    found = search()
    assert found == search()
    assert found.proven
    assert found.memory_bits < found.memory_bits_widest
    assert round(300 * (found.accuracy_reference - found.accuracy)) <= 3
    network = quantize(folded, found.config, data.train.x)
    assert {c.target: c.weight_bits for c in network.connections} == found.bits
    assert memory_bits(network) == found.memory_bits
    run: Recording = reference(network, network.input.encode(x))
    assert np.mean(decide(scores(network, run)) == y) == found.accuracy
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["bits"] == found.bits
    assert "no cheaper choice exists" in str(found)

    svg = plot_search(found)
    assert svg == plot_search(found)
    assert ET.fromstring(svg).tag.endswith("svg")


def test_the_plot_names_every_layer(digits):
    folded, data, config = digits
    found = quantization_report(folded, config, data.test.x[:20], calibration=data.train.x, execute=find("fast"))
    svg = plot(found)
    assert svg == plot(found)
    text = "".join(ET.fromstring(svg).itertext())
    for layer in folded.layers:
        assert f"{layer.name} (8 bit)" in text
