"""The training loop: it learns, and a run that was stopped ends with the same weights as one that was not."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lapilli.errors import ExecutionError, FileFormatError
from lapilli.train import DataConfig, NetworkConfig, Split, TrainConfig, build, evaluate, fit, load_data
from lapilli.train.checkpoint import METADATA_KEY, load, save
from lapilli.train.data import shift
from lapilli.train.loop import learning_rate

pytestmark = pytest.mark.usefixtures("one_thread")

LAYERS = [
    {"type": "conv", "channels": 4, "padding": 1},
    {"type": "pool"},
    {"type": "dropout", "p": 0.1},
    {"type": "linear"},
]
NETWORK = NetworkConfig(steps=4, layers=LAYERS)
CONFIGS = {
    "sgd": TrainConfig(epochs=4, batch_size=32, warmup_iterations=5, seed=3, gradient_clip=5.0),
    "adamw": TrainConfig(epochs=4, batch_size=32, warmup_iterations=5, seed=3, optimizer="adamw", learning_rate=0.01),
}


@pytest.fixture(scope="module")
def digits():
    return load_data(DataConfig())


@pytest.fixture(scope="module")
def few(digits):
    return Split(digits.train.x[:129], digits.train.y[:129])


def model():
    return build(NETWORK, (1, 8, 8), 10)


class StopError(Exception):
    """Raised on purpose in the middle of a run."""


def same_tensors(a, b):
    assert a.keys() == b.keys()
    return all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("neuron", ["if", "lif"])
@pytest.mark.parametrize("reset", ["subtract", "zero"])
def test_digits_are_learned(digits, neuron, reset):
    config = NetworkConfig(neuron=neuron, reset=reset, steps=5, layers=LAYERS)
    net = build(config, digits.shape, digits.n_classes)
    before = evaluate(net, digits.test)
    history = fit(net, digits.train, TrainConfig(epochs=2, warmup_iterations=10), test=digits.test, progress=False)
    assert before < 0.4
    assert history.test_accuracy is not None
    assert history.test_accuracy > 0.8
    assert history.test_accuracy == evaluate(net, digits.test)
    assert history.epochs[1].loss < history.epochs[0].loss
    assert history.epochs[1].spike_rates.keys() == {"conv1"}
    assert 0.01 < history.epochs[1].spike_rates["conv1"] < 0.5


@pytest.mark.parametrize("optimizer", CONFIGS)
@pytest.mark.parametrize("stop_after", [1, 3])
def test_resume_after_an_exception_ends_with_the_same_weights(few, tmp_path, optimizer, stop_after):
    config = CONFIGS[optimizer]
    whole = model()
    history = fit(whole, few, config, augment=shift)

    def stop(epochs):
        if len(epochs) == stop_after:
            raise StopError

    path = tmp_path / "run.safetensors"
    with pytest.raises(StopError):
        fit(model(), few, config, augment=shift, checkpoint=path, on_epoch=stop)
    assert load(path).header.epoch == stop_after
    resumed = model()
    torch.manual_seed(999)  # what else happened in the process must not matter
    resumed_history = fit(resumed, few, config, augment=shift, checkpoint=path, resume=True)

    assert same_tensors(whole.state_dict(), resumed.state_dict())
    assert [e.loss for e in history.epochs] == [e.loss for e in resumed_history.epochs]
    assert load(path).header.epoch == config.epochs


def test_keyboard_interrupt_in_the_middle_of_an_epoch(few, tmp_path):
    config = CONFIGS["sgd"]
    path = tmp_path / "run.safetensors"
    whole = model()
    fit(whole, few, config, augment=shift)
    calls = 0

    def interrupted(x, rng):
        nonlocal calls
        calls += 1
        if calls == 8:  # five batches make an epoch
            raise KeyboardInterrupt
        return shift(x, rng)

    with pytest.raises(KeyboardInterrupt):
        fit(model(), few, config, augment=interrupted, checkpoint=path)
    resumed = model()
    fit(resumed, few, config, augment=shift, checkpoint=path, resume=True)
    assert same_tensors(whole.state_dict(), resumed.state_dict())


SCRIPT = """
import sys, time, numpy, torch
from test_train_loop import CONFIGS, model
from lapilli.train import Split, fit
from lapilli.train.data import shift
torch.set_num_threads(1)
few = Split(**numpy.load(sys.argv[2]))
def slow(x, rng):
    time.sleep(0.02)
    return shift(x, rng)
fit(model(), few, CONFIGS["sgd"], augment=slow, checkpoint=sys.argv[1])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_resume_after_a_kill_ends_with_the_same_weights(few, tmp_path):
    path, data = tmp_path / "run.safetensors", tmp_path / "few.npz"
    np.savez(data, x=few.x, y=few.y)
    whole = model()
    fit(whole, few, CONFIGS["sgd"], augment=shift)
    here = os.path.dirname(__file__)  # noqa: PTH120
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(path), str(data)],
        env=os.environ | {"PYTHONPATH": here, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 120
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 1 <= load(path).header.epoch < CONFIGS["sgd"].epochs
    resumed = model()
    fit(resumed, few, CONFIGS["sgd"], augment=shift, checkpoint=path, resume=True)
    assert same_tensors(whole.state_dict(), resumed.state_dict())


def test_the_seed_of_training_matters(few):
    a, b = model(), model()
    fit(a, few, CONFIGS["sgd"])
    fit(b, few, CONFIGS["sgd"].model_copy(update={"seed": 4}))
    assert not same_tensors(a.state_dict(), b.state_dict())


def test_the_test_split_never_influences_training(few, digits):
    a, b = model(), model()
    fit(a, few, CONFIGS["sgd"])
    fit(b, few, CONFIGS["sgd"], test=digits.test)
    assert same_tensors(a.state_dict(), b.state_dict())


def test_learning_rate_warms_up_and_falls_to_zero():
    config = TrainConfig(learning_rate=0.1, warmup_iterations=4)
    rates = [learning_rate(config, i, 20) for i in range(21)]
    np.testing.assert_allclose(rates[:5], [0.025, 0.05, 0.075, 0.1, 0.1])
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[20] == pytest.approx(0)
    assert learning_rate(config.model_copy(update={"schedule": "constant"}), 19, 20) == 0.1


def test_a_diverging_run_stops_with_advice(few):
    with pytest.raises(ExecutionError, match="lower the learning_rate"):
        fit(model(), Split(few.x * np.float32(np.nan), few.y), CONFIGS["sgd"])


@pytest.fixture
def finished(few, tmp_path):
    path = tmp_path / "run.safetensors"
    net = model()
    fit(net, few, CONFIGS["sgd"], checkpoint=path, recipe={"name": "tiny"})
    return path, net


def test_a_checkpoint_holds_the_run(finished):
    path, net = finished
    found = load(path)
    assert found.header.stage == "float"
    assert found.header.recipe == {"name": "tiny"}
    assert found.header.seed == 3
    assert [e.epoch for e in found.header.history] == [1, 2, 3, 4]
    assert same_tensors(found.model, net.state_dict())
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_finished_run_resumes_to_itself(finished, few):
    path, net = finished
    again = model()
    history = fit(again, few, CONFIGS["sgd"], checkpoint=path, resume=True)
    assert len(history.epochs) == 4
    assert same_tensors(again.state_dict(), net.state_dict())


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_truncated_checkpoint_is_refused(finished, keep):
    path, _ = finished
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(FileFormatError, match=r"run\.safetensors"):
        load(path)


def test_foreign_files_are_refused(finished, tmp_path):
    path, _ = finished
    other = tmp_path / "other"
    with pytest.raises(FileFormatError, match="no such checkpoint"):
        load(other)
    torch.save({"a": torch.zeros(2)}, other)  # a pickle
    with pytest.raises(FileFormatError, match="not a checkpoint"):
        load(other)
    save_file({"a": torch.zeros(2)}, other)
    with pytest.raises(FileFormatError, match="not a lapilli checkpoint"):
        load(other)
    save_file({"a": torch.zeros(2)}, other, metadata={METADATA_KEY: '{"stage": "float"}'})
    with pytest.raises(FileFormatError, match="malformed"):
        load(other)
    header = load(path).header
    save_file({"a": torch.zeros(2)}, other, metadata={METADATA_KEY: header.model_dump_json()})
    with pytest.raises(FileFormatError, match="unknown tensor 'a'"):
        load(other)
    newer = header.model_copy(update={"format_version": 2})
    save_file({}, other, metadata={METADATA_KEY: newer.model_dump_json()})
    with pytest.raises(FileFormatError, match="version 2"):
        load(other)


def test_a_checkpoint_of_another_run_is_not_resumed(finished, few):
    path, _ = finished
    config = CONFIGS["sgd"]
    with pytest.raises(FileFormatError, match=r"learning_rate = 0\.1, the recipe says 0\.2"):
        fit(model(), few, config.model_copy(update={"learning_rate": 0.2}), checkpoint=path, resume=True)
    with pytest.raises(FileFormatError, match="holds float training, not bit-true"):
        fit(model(), few, config, checkpoint=path, resume=True, stage="bit-true")
    wider = build(NetworkConfig(steps=4, layers=[{"type": "linear"}]), (1, 8, 8), 10)
    with pytest.raises(FileFormatError, match="does not fit the network"):
        fit(wider, few, config, checkpoint=path, resume=True)


def test_a_failed_write_leaves_the_old_checkpoint(finished, monkeypatch):
    path, _ = finished
    before = path.read_bytes()

    def full(*_args, **_kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(FileFormatError, match="No space left"):
        save(path, load(path))
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_progress_is_for_terminals(few, capfd):
    config = CONFIGS["sgd"].model_copy(update={"epochs": 1})
    fit(model(), few, config)
    assert capfd.readouterr() == ("", "")
    fit(model(), few, config, progress=True)
    assert capfd.readouterr().out == ""
