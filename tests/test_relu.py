"""DSR's hybrid training: a ReLU network, thresholds from its activations, then spikes."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from lapilli.errors import FileFormatError, RecipeError
from lapilli.pipeline import Narrator, train_float
from lapilli.recipe import load_recipe
from lapilli.train import DataConfig, NetworkConfig, Split, build, evaluate, fit, load_data
from lapilli.train.checkpoint import load
from lapilli.train.config import ReluConfig
from lapilli.train.logs import TrainingLog
from lapilli.train.relu import ReluNetwork, _Percentile, to_spikes

pytestmark = pytest.mark.usefixtures("one_thread")

BLOCKS = [
    {"type": "conv", "channels": 4, "padding": 1},
    {"type": "pool", "size": 3, "stride": 2, "padding": 1},
    {"type": "block", "channels": 6, "stride": 2, "bias": False, "shortcut_norm": True},
    {"type": "neurons"},
    {"type": "pool", "size": "all", "neurons": True},
    {"type": "linear", "bias": True},
]


def network(neuron="if", **more):
    config = NetworkConfig.model_validate({"layers": BLOCKS, "neuron": neuron, "readout": "rate", "steps": 4, **more})
    model = build(config, (3, 12, 12), 5, seed=1)
    torch.manual_seed(0)
    for name, tensor in model.state_dict().items():
        if "norm" in name and tensor.is_floating_point():
            tensor += 0.3 * torch.rand_like(tensor)
    return model


@pytest.mark.parametrize("neuron", ["if", "lif"])
def test_thresholds_are_the_percentiles_of_activations_computed_by_hand(neuron):
    model = network(neuron, **({"tau": 1.5, "dt": 0.1} if neuron == "lif" else {}))
    tau, dt = (1.5, 0.1) if neuron == "lif" else (1.0, 1.0)
    rng = np.random.default_rng(0)
    data = Split(rng.standard_normal((70, 3, 12, 12), np.float32), rng.integers(0, 5, 70))
    relu = ReluNetwork(model)
    to_spikes(relu, model, data, ReluConfig(epochs=1, batch_size=7, calibration_batches=50, percentile=98.0))

    layers, sent = model.layers, {}

    def after(name, norm, x):
        y = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias)
        sent[name] = F.relu(y / tau)
        return sent[name]

    block = layers.block1
    x = after("conv1", layers.conv1_norm, F.conv2d(torch.from_numpy(data.x), layers.conv1.weight, None, 1, 1))
    x = after("block1_in", block.in_norm, F.avg_pool2d(x, 3, 2, 1))
    y = after("block1_mid", block.mid_norm, F.conv2d(x, block.conv1.weight, None, 2, 1))
    conv, norm = block.shortcut
    z = F.conv2d(x, conv.weight, None, 2)
    z = F.batch_norm(z, norm.running_mean, norm.running_var, norm.weight, norm.bias)
    x = after("neurons1", layers.neurons1_norm, F.conv2d(y, block.conv2.weight, None, 1, 1) + z)
    x = sent["pool1"] = F.relu(x.mean((2, 3)) / tau)
    name = list(model.neurons)[-2]
    sent[name] = sent.pop("pool1")
    after("fc1", layers.fc1_norm, F.linear(x, layers.fc1.weight, layers.fc1.bias))
    assert sent.keys() == model.neurons.keys()
    for name, values in sent.items():
        flat = np.sort(values.detach().numpy(), axis=None)
        expected = max(flat[int(0.98 * flat.size)] * dt, model.neurons[name].bound)
        assert model.neurons[name].threshold.item() == pytest.approx(expected, rel=1e-5), name
    assert torch.equal(relu(torch.from_numpy(data.x)[:2].expand(4, 2, 3, 12, 12)), relu(torch.from_numpy(data.x)[:2]))


@settings(max_examples=50, deadline=None)
@given(
    parts=st.lists(st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=30), min_size=1, max_size=6),
    percentile=st.sampled_from([0.5, 50.0, 90.0, 99.9, 100.0]),
)
def test_a_percentile_in_parts_is_that_of_all(parts, percentile):
    values = np.sort(np.concatenate([np.array(p, np.float32) for p in parts]))
    found = _Percentile(percentile, len(values))
    for part in parts:
        found.add(torch.tensor(part))
    assert found.value.item() == values[min(int(percentile / 100 * len(values)), len(values) - 1)]


def test_spikes_right_after_conversion_are_as_good_as_the_relu_network():
    data = load_data(DataConfig())
    layers = [
        {"type": "conv", "channels": 8, "padding": 1, "neurons": False, "batch_norm": False},
        {"type": "block", "channels": 8},
        {"type": "block", "channels": 16, "stride": 2},
        {"type": "neurons"},
        {"type": "pool", "size": "all", "neurons": True},
        {"type": "linear", "bias": True},
    ]
    coarse, fine = (
        build(NetworkConfig.model_validate({"layers": layers, "steps": steps}), data.shape, 10) for steps in (2, 40)
    )
    config = ReluConfig(epochs=3, batch_size=32, warmup_iterations=20)
    relu = ReluNetwork(fine)
    before = evaluate(coarse, data.test)
    fit(relu, data.train, config, stage="relu", progress=False)
    accuracy = {"relu": evaluate(relu, data.test)}
    for model in (coarse, fine):
        to_spikes(relu, model, data.train, config)
        accuracy[model.steps] = evaluate(model, data.test)
    assert before < 0.3
    assert accuracy["relu"] > 0.93
    assert accuracy[40] > accuracy["relu"] - 0.02
    assert accuracy[2] < accuracy[40]  # few steps are too coarse: that is what training with spikes is for


RECIPE = [
    "relu.epochs=2",
    "relu.batch_size=128",
    "relu.threads=1",
    "relu.seed=5",
    "train.epochs=2",
    "train.batch_size=128",
    "network.layers=[{type='conv',channels=4},{type='block',channels=4},{type='neurons'},{type='linear'}]",
]


@pytest.mark.parametrize(("stage", "epoch"), [("relu", 1), ("relu", 2), ("float", 1)])
def test_a_resumed_run_ends_with_the_same_bits(tmp_path, monkeypatch, stage, epoch):
    recipe = load_recipe("digits", RECIPE)
    train_float(recipe, tmp_path / "whole", resume=False, narrator=Narrator())
    whole = load(tmp_path / "whole" / "float.safetensors")
    called = TrainingLog.__call__

    def stop(self, epochs):
        called(self, epochs)
        if self._table.stem == stage and len(epochs) == epoch:
            raise KeyboardInterrupt

    monkeypatch.setattr(TrainingLog, "__call__", stop)
    with pytest.raises(KeyboardInterrupt):
        train_float(recipe, tmp_path / "stopped", resume=False, narrator=Narrator())
    monkeypatch.undo()
    train_float(recipe, tmp_path / "stopped", resume=True, narrator=Narrator())
    resumed = load(tmp_path / "stopped" / "float.safetensors")
    assert all(torch.equal(whole.model[name], resumed.model[name]) for name in whole.model)
    assert (tmp_path / "stopped" / "relu.csv").read_text().count("\n") == 3
    relu = load(tmp_path / "stopped" / "relu.safetensors")
    assert relu.header.stage == "relu"
    assert {n.rpartition(".")[2] for n in whole.model.keys() - relu.model.keys()} == {"threshold"}

    other = load_recipe("digits", [*RECIPE, "relu.percentile=99"])
    (tmp_path / "stopped" / "relu.safetensors").unlink()
    with pytest.raises(FileFormatError, match=r"float\.safetensors: was started from another ReLU network"):
        train_float(other, tmp_path / "stopped", resume=True, narrator=Narrator())


def official(relu):
    """The network's tensors under the names of the official code, written out."""
    ours = {name.removeprefix("layers."): t for name, t in relu.state_dict().items()}
    numbers = {f"block{2 * s + b + 1}": f"layer{s + 1}.{b}" for s in range(4) for b in range(2)}
    names = {"conv1": "conv1", "conv1_norm": "bn1", "neurons1_norm": "bn2", "fc1": "fc", "fc1_norm": "bn3"}
    inner = {"in_norm": "bn1", "conv1": "conv1", "mid_norm": "bn2", "conv2": "conv2", "shortcut": "downsample"}
    found = {}
    for name, tensor in ours.items():
        first, rest = name.split(".", 1)
        if first in numbers:
            second, rest = rest.split(".", 1)
            found[f"module.{numbers[first]}.{inner[second]}.{rest}"] = tensor
        else:
            found[f"module.{names[first]}.{rest}"] = tensor
    return found


def test_weights_come_from_files(tmp_path):
    config = NetworkConfig(architecture="preact-resnet18", stem="imagenet", width=2, readout="rate")
    there, here = (build(config, (3, 32, 32), 7, seed=seed) for seed in (1, 2))
    source = ReluNetwork(there)
    for name, tensor in source.state_dict().items():
        if "running" in name:
            tensor += torch.rand_like(tensor)
    plain = {name.removeprefix("layers."): t.contiguous() for name, t in source.state_dict().items()}
    data = Split(np.random.default_rng(0).standard_normal((4, 3, 32, 32), np.float32), np.arange(4))
    fit(source, data, ReluConfig(epochs=1, batch_size=2), checkpoint=tmp_path / "ours.safetensors", stage="relu")
    files = {"ours.safetensors": load(tmp_path / "ours.safetensors").model}
    save_file(plain, tmp_path / "plain.safetensors")
    torch.save({"state_dict": official(ReluNetwork(there)), "epoch": 90}, tmp_path / "official.pth")
    torch.save(there.state_dict(), tmp_path / "spiking.pt")  # with thresholds, which are not used
    files |= {"plain.safetensors": {f"layers.{name}": t for name, t in plain.items()}}
    files |= dict.fromkeys(["official.pth", "spiking.pt"], there.state_dict())
    x = torch.from_numpy(data.x)
    for file, expected in files.items():
        relu = ReluNetwork(here)
        relu.load(tmp_path / file)
        found = relu.state_dict()
        assert all(torch.equal(t, expected[name]) for name, t in found.items() if "num_batches" not in name), file
        assert torch.isfinite(relu(x)).all()
    assert not torch.equal(here.state_dict()["layers.conv1.weight"], found["layers.conv1.weight"])


def test_files_that_do_not_fit_are_named(tmp_path):
    relu = ReluNetwork(network())
    state = {name: t.contiguous() for name, t in relu.state_dict().items()}

    def refused(name, words, content=None):
        if isinstance(content, dict):
            save_file(content, tmp_path / name)
        elif content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(FileFormatError, match=words) as caught:
            relu.load(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)

    refused("absent.safetensors", "no such file")
    refused("a.safetensors", "conv1.weight' is missing", {n: t for n, t in state.items() if "conv1.weight" not in n})
    refused("b.safetensors", "'layers.more' has no place", {**state, "layers.more": torch.zeros(1)})
    refused("c.safetensors", r"is torch.float32 \(3,\)", {**state, "layers.conv1.weight": torch.zeros(3)})
    refused("d.safetensors", "truncated", (tmp_path / "b.safetensors").read_bytes()[:-9])
    torch.save(state, tmp_path / "e.pt")
    refused("f.pt", "truncated", (tmp_path / "e.pt").read_bytes()[:-90])
    refused("g.pt", "not a file of tensors alone", pickle.dumps(print, protocol=2))
    torch.save([1, 2], tmp_path / "h.pt")
    refused("h.pt", "holds no tensors by name")


@pytest.mark.parametrize(
    ("recipe", "given", "words"),
    [
        ("digits-tssl", "relu.epochs=2", "TSSL-BP are fixed"),
        ("digits", "relu.epochs=0", "no initial weights"),
        ("digits", "relu.rate_epochs=2", "rate_epochs: a network without spikes"),
        ("digits", "relu.percentil=2", "did you mean 'percentile'"),
        ("digits", "relu.percentile=0", "greater than 0"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(recipe, given, words):
    with pytest.raises(RecipeError, match=words):
        load_recipe(recipe, [given])


def test_a_network_does_not_hold_the_path_of_its_first_weights():
    recipe = load_recipe("digits", ["relu.initial=/somewhere/weights.pt", "relu.epochs=0"])
    assert "/somewhere" not in str(recipe.provenance())
    assert recipe.method.endswith("from a ReLU network")
    assert load_recipe("digits").provenance()["relu"] is None
