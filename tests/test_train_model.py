"""Recipes to torch networks."""

import pytest
import torch
from pydantic import ValidationError

from lapilli.errors import DataError, RecipeError
from lapilli.train import BitTrueConfig, NetworkConfig, TrainConfig, build
from lapilli.train.neurons import Accumulator, IFNeuron, LIFNeuron

LAYERS = [
    {"type": "conv", "channels": 4, "padding": 1},
    {"type": "pool"},
    {"type": "conv", "channels": 6, "kernel": [2, 3], "stride": 2, "groups": 2},
    {"type": "dropout", "p": 0.5},
    {"type": "linear", "features": 12},
    {"type": "linear"},
]


def network(**options):
    return build(NetworkConfig(**{"layers": LAYERS, "steps": 4} | options), (1, 8, 8), 3)


@pytest.mark.parametrize("neuron", ["if", "lif"])
@pytest.mark.parametrize("readout", ["rate", "membrane"])
def test_scores_names_and_spikes(neuron, readout):
    model = network(neuron=neuron, readout=readout)
    x = torch.rand(5, 1, 8, 8)
    assert model(x).shape == (5, 3)
    assert model.population_names == ("conv1", "conv2", "fc1", "fc2")
    spikes = model.record(x)
    shapes = [(4, 5, 4, 8, 8), (4, 5, 6, 2, 1), (4, 5, 12)] + ([(4, 5, 3)] if readout == "rate" else [])
    assert [tuple(s.shape) for s in spikes] == shapes
    assert all(s.dtype == torch.uint8 and s.max() <= 1 for s in spikes)
    assert isinstance(model.neurons["conv1"], IFNeuron if neuron == "if" else LIFNeuron)
    assert isinstance(model.neurons["fc2"], Accumulator) == (readout == "membrane")
    assert model.training


def test_rate_scores_are_the_amplitude_times_the_weighted_rate():
    model = network(neuron="lif", readout="rate", threshold=0.01).eval()
    x = torch.rand(5, 1, 8, 8)
    last = model.neurons["fc2"]
    weights = last.beta ** torch.arange(3, -1, -1.0)
    spikes = model.record(x)[-1].float()
    assert spikes.any()
    expected = last.amplitude * torch.einsum("t,tbc->bc", weights, spikes) / weights.sum()
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("training", [True, False])
def test_an_image_is_the_same_image_at_every_step(training):
    """Direct coding runs the layers before the first neurons once; frames run them at every step."""
    model = network(layers=[entry for entry in LAYERS if entry["type"] != "dropout"]).train(training)
    x = torch.rand(5, 1, 8, 8)
    torch.testing.assert_close(model(x), model(x.expand(4, *x.shape)), rtol=1e-4, atol=1e-5)


def test_frames_differ_from_step_to_step():
    model = network().eval()
    frames = torch.rand(4, 5, 1, 8, 8)
    assert not torch.equal(model.record(frames)[0], model.record(frames.flip(0))[0])


def test_initial_weights_follow_the_seed_and_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    a, b = (build(NetworkConfig(layers=LAYERS), (1, 8, 8), 3, seed=1).state_dict() for _ in range(2))
    other = build(NetworkConfig(layers=LAYERS), (1, 8, 8), 3, seed=2).state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(a["layers.conv1.weight"], other["layers.conv1.weight"])
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("shape", [(5, 2, 8, 8), (5, 8, 8), (3, 5, 1, 8, 8)])
def test_wrong_input_is_refused(shape):
    with pytest.raises(DataError, match="input"):
        network()(torch.rand(shape))


@pytest.mark.parametrize(
    ("layers", "shape", "words"),
    [
        ([{"type": "conv", "channels": 4, "kernel": 9}, {"type": "linear"}], (1, 8, 8), r"layers\.0 \(conv\).*kernel"),
        ([{"type": "conv", "channels": 4, "groups": 2}, {"type": "linear"}], (1, 8, 8), r"layers\.0.*groups"),
        ([{"type": "pool", "size": 9}, {"type": "linear"}], (1, 8, 8), r"layers\.0 \(pool\)"),
        ([{"type": "conv", "channels": 4}, {"type": "linear"}], (64,), r"layers\.0 \(conv\): needs an image"),
        ([{"type": "linear", "features": 7}], (64,), r"layers\.0 \(linear\): features 7"),
    ],
)
def test_layers_that_do_not_fit_are_named(layers, shape, words):
    with pytest.raises(RecipeError, match=words):
        build(NetworkConfig(layers=layers), shape, 3)


def test_defaults_follow_neuron_and_reset():
    def defaults(**options):
        c = NetworkConfig(layers=[{"type": "linear"}], **options)
        return c.threshold, c.alpha, c.threshold_bound, c.threshold_gradient_scale

    assert defaults() == (6.0, 0.5, 0.01, 1.0)
    assert defaults(neuron="lif") == (0.3, 0.3, 0.0005, 0.05)
    assert defaults(neuron="lif", dt=0.1, alpha=0.5) == (0.3, 0.5, 0.0005, 0.1)
    assert defaults(reset="zero") == (6.0, 1.0, 0.01, 1.0)
    assert BitTrueConfig().epochs < TrainConfig().epochs


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layer": []}, "layer"),
        ({"neuron": "relu"}, "neuron"),
        ({"steps": 0}, "steps"),
        ({"alpha": 1.5}, "alpha"),
        ({"threshold": float("nan")}, "threshold"),
        ({"threshold": 0.001}, "threshold_bound"),
        ({"layers": []}, "layers"),
        ({"layers": [{"type": "dense"}]}, r"layers\.0"),
        ({"layers": [{"type": "conv", "channels": 4, "kernal": 3}, {"type": "linear"}]}, r"layers\.0\.conv\.kernal"),
        ({"layers": [{"type": "conv", "channels": 4}]}, "last layer"),
        ({"layers": [{"type": "linear"}, {"type": "linear"}]}, r"layers\.0 \(linear\): features"),
        ({"layers": [{"type": "linear", "features": 4}, {"type": "pool"}, {"type": "linear"}]}, r"layers\.1 \(pool\)"),
    ],
)
def test_mistakes_in_a_recipe_name_their_place(change, words):
    with pytest.raises(ValidationError, match=words):
        NetworkConfig.model_validate({"layers": [{"type": "linear"}]} | change)
