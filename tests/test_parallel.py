"""Training on several processes gives the weights of one, up to the order of sums; logs and the best epoch."""

import csv
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch

from lapilli.errors import DataError, RecipeError, UnsupportedError
from lapilli.pipeline import run_recipe
from lapilli.recipe import load_recipe
from lapilli.terminal import Narrator
from lapilli.train import DataConfig, NetworkConfig, Split, TrainConfig, build, evaluate, fit, load_data
from lapilli.train.checkpoint import load
from lapilli.train.logs import COLUMNS, TrainingLog
from lapilli.train.loop import best_epoch
from lapilli.train.parallel import ALONE, Workers

LAYERS = [{"type": "conv", "channels": 4, "batch_norm": False}, {"type": "linear", "batch_norm": False}]

SCRIPT = """
import sys
import numpy as np, torch
from lapilli.train import NetworkConfig, Split, TrainConfig, build, fit
from lapilli.train.parallel import joined

rng = np.random.default_rng(0)
data = Split(rng.random((41, 1, 6, 6), np.float32), rng.integers(0, 3, 41))
layers = [{"type": "conv", "channels": 4, "batch_norm": False}, {"type": "linear", "batch_norm": False}]
config = TrainConfig(epochs=2, batch_size=16, seed=3, threads=1, learning_rate=0.05, gradient_clip=1.0)
with joined("cpu") as (workers, device):
    net = build(NetworkConfig(steps=4, threshold=1.0, layers=layers), (1, 6, 6), 3, seed=1).double()
    history = fit(net, data, config, test=data, workers=workers, checkpoint=sys.argv[1])
    torch.save({k: v for k, v in net.state_dict().items()}, f"{sys.argv[1]}.{workers.rank}")
"""


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


def train_with(processes, path):
    port = free_port()
    running = []
    for rank in range(processes):
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        if processes > 1:
            env |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
            env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        running.append(subprocess.Popen([sys.executable, "-c", SCRIPT, str(path)], env=env))
    assert [p.wait(timeout=120) for p in running] == [0] * processes
    return [torch.load(f"{path}.{rank}", weights_only=True) for rank in range(processes)]


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch without gloo")
def test_two_processes_train_as_one(tmp_path):
    (alone,) = train_with(1, tmp_path / "one")
    first, second = train_with(2, tmp_path / "two")
    for name, tensor in alone.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], tensor, rtol=1e-9, atol=1e-12)
    one, two = (load(tmp_path / name).header.history for name in ("one", "two"))
    assert [e.test_accuracy for e in one] == [e.test_accuracy for e in two]
    assert [e.loss for e in one] == pytest.approx([e.loss for e in two])
    assert [e.train_accuracy for e in one] == [e.train_accuracy for e in two]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_shares_are_the_batch(size):
    batch = np.arange(10, 17)
    shares = [Workers(rank, size).share(batch) for rank in range(size)]
    assert np.concatenate(shares).tolist() == batch.tolist()
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_whole_run_is_for_one_process(monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UnsupportedError, match="lapilli train with torchrun"):
        run_recipe(load_recipe("digits"), tmp_path, resume=False, narrator=Narrator())


# ------------------------------------------------------------------------------------- validation and the best epoch


@pytest.fixture(scope="module")
def digits():
    return load_data(DataConfig(validation=0.2, seed=5))


def test_validation_samples_are_training_samples_no_more(digits):
    whole = load_data(DataConfig(seed=5))
    assert digits.validation is not None
    assert len(digits.train) + len(digits.validation) == len(whole.train)
    assert np.array_equal(digits.test.x, whole.test.x)
    rows = {x.tobytes() for x in digits.train.x}
    assert not any(x.tobytes() in rows for x in digits.validation.x)
    share = np.bincount(digits.validation.y) / np.bincount(whole.train.y)
    assert np.all(abs(share - 0.2) < 0.01)
    again = load_data(DataConfig(validation=0.2, seed=5))
    assert np.array_equal(again.validation.x, digits.validation.x)


def test_a_class_without_validation_samples_is_named():
    with pytest.raises(DataError, match=r"data\.validation: 0\.001 of the \d+ training samples of class '0' is 0"):
        load_data(DataConfig(validation=0.001))


def network():
    layers = [{"type": "conv", "channels": 4}, {"type": "linear"}]
    return build(NetworkConfig(steps=4, threshold=1.0, layers=layers), (1, 8, 8), 10)


# A rate far too high, so that accuracy goes up and down.
WILD = TrainConfig(epochs=4, batch_size=64, learning_rate=3.0, schedule="constant", threads=1, keep="best")


def test_the_best_epoch_is_kept_and_survives_a_resume(digits, tmp_path):
    few = Split(digits.train.x[:200], digits.train.y[:200])
    path = tmp_path / "run.safetensors"
    net = network()
    history = fit(net, few, WILD, validation=digits.validation, checkpoint=path)
    accuracies = [e.validation_accuracy for e in history.epochs]
    assert max(accuracies) != accuracies[-1], "the last epoch is the best: this test shows nothing"
    assert evaluate(net, digits.validation) == max(accuracies)
    assert best_epoch(history.epochs).epoch == accuracies.index(max(accuracies)) + 1
    assert all(torch.equal(t, net.state_dict()[name]) for name, t in load(path).kept.items())

    class StopError(Exception):
        pass

    def stop(epochs):
        if len(epochs) == 2:
            raise StopError

    other = tmp_path / "other.safetensors"
    with pytest.raises(StopError):
        fit(network(), few, WILD, validation=digits.validation, checkpoint=other, on_epoch=stop)
    resumed = network()
    fit(resumed, few, WILD, validation=digits.validation, checkpoint=other, resume=True)
    assert all(torch.equal(t, net.state_dict()[name]) for name, t in resumed.state_dict().items())


def test_the_best_epoch_needs_validation_samples(digits):
    with pytest.raises(RecipeError, match=r"train\.keep.*data\.validation"):
        fit(network(), digits.train, WILD)


def test_weight_decay_can_spare_all_but_weights():
    rng = np.random.default_rng(0)
    data = Split(rng.random((8, 1, 8, 8), np.float32), rng.integers(0, 10, 8))
    config = TrainConfig(
        epochs=1, batch_size=8, learning_rate=1e-30, weight_decay=1e29, momentum=0, warmup_iterations=0
    )
    for decay in ("all", "weights"):
        net = network()
        before = {name: p.detach().clone() for name, p in net.named_parameters()}
        fit(net, data, config.model_copy(update={"decay": decay}))
        shrunk = {name for name, p in net.named_parameters() if not torch.allclose(p, before[name])}
        assert "layers.conv1.weight" in shrunk
        assert ("layers.conv1_norm.weight" in shrunk) == (decay == "all")
        # The lower bound of the threshold is above what is left of it.
        assert ("layers.conv1_neuron.threshold" in shrunk) == (decay == "all")


# ------------------------------------------------------------------------------------------------------------- logs


def test_every_epoch_is_a_row(digits, tmp_path):
    history = fit(
        network(), digits.train, TrainConfig(epochs=2), test=digits.test, validation=digits.validation,
        on_epoch=TrainingLog(tmp_path, "float"),
    )  # fmt: skip
    rows = list(csv.DictReader((tmp_path / "float.csv").open()))
    assert list(rows[0]) == [*COLUMNS, "rate:conv1"]
    for row, epoch in zip(rows, history.epochs, strict=True):
        assert float(row["loss"]) == epoch.loss
        assert float(row["validation_accuracy"]) == epoch.validation_accuracy
        assert float(row["rate:conv1"]) == epoch.spike_rates["conv1"]


def test_tensorboard_gets_the_same_numbers(digits, tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = TrainingLog(tmp_path, "float", tensorboard=True)
    history = fit(network(), digits.train, TrainConfig(epochs=2), test=digits.test, on_epoch=log)
    found = events.EventAccumulator(str(tmp_path / "tensorboard" / "float")).Reload()
    assert [e.step for e in found.Scalars("loss")] == [1, 2]
    assert [e.value for e in found.Scalars("loss")] == pytest.approx([e.loss for e in history.epochs])
    assert "spike_rate/conv1" in found.Tags()["scalars"]


def test_without_tensorboard_the_remedy_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("lapilli.train.logs.find_spec", lambda _name: None)
    with pytest.raises(UnsupportedError, match="pip install tensorboard"):
        TrainingLog(tmp_path, "float", tensorboard=True)


def test_alone_nothing_is_exchanged():
    assert ALONE.first
    assert ALONE.total(1.5, 2) == [1.5, 2]
