"""Data sets over workers: equal results in order whatever the backend, deaths, interruptions, resuming."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from functools import partial

import distributed
import numpy as np
import pytest
import scale_tasks
from hypothesis import given, settings
from hypothesis import strategies as st

import lapilli
from lapilli.errors import DataError, ExecutionError, MissingDependencyError, UnsupportedError
from lapilli.network import INPUT, Connection, Conv2d, Dense, Input, Network, Population, Readout
from lapilli.scale import backends, kept
from lapilli.scale.backends import Backend
from lapilli.sim import parts, simulate, simulate_in_parts
from strategies import networks_with_input

BACKENDS = [
    "joblib",
    "dask",
    pytest.param(
        "ray",
        marks=pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed, it is large"),
    ),
]


@pytest.fixture(scope="module")
def cluster():
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0", silence_logs=50) as made:
        yield made


@pytest.fixture(params=BACKENDS)
def backend(request):
    if request.param == "dask":
        return Backend.parse(f"dask:{request.getfixturevalue('cluster').scheduler_address}")
    return Backend.parse(request.param, 2)


@pytest.fixture
def network():
    rng = np.random.default_rng(3)
    conv = Conv2d(rng.integers(-60, 61, (4, 1, 3, 3)), padding=1, stride=2)
    return Network(
        name="small",
        steps=4,
        input=Input(shape=(1, 8, 8), high=16, scale=np.array([1 / 16])),
        populations=[
            Population(name="conv1", shape=(4, 4, 4), threshold=64 * 900, reset_amount=64 * 900),
            Population(name="fc1", shape=(10,), threshold=64 * 40, reset_amount=64 * 40, du=2000),
        ],
        connections=[
            Connection(source=INPUT, target="conv1", synapse=conv),
            Connection(source="conv1", target="fc1", synapse=Dense(rng.integers(-40, 61, (10, 64))), delay=1),
        ],
        readout=Readout(population="fc1"),
    )


@pytest.fixture
def x():
    return np.random.default_rng(4).integers(0, 17, (100, 1, 8, 8))


def assert_equal(got, want):
    assert got.n_samples == want.n_samples
    for name in ("counts", "events", "events_per_step", "synops", "synops_per_step", "spikes", "u", "v", "current"):
        a, b = getattr(got, name), getattr(want, name)
        assert a.keys() == b.keys(), name
        for key in a:
            assert a[key].dtype == b[key].dtype, (name, key)
            np.testing.assert_array_equal(a[key], b[key], f"{name} of {key}")
    np.testing.assert_array_equal(got.input_events, want.input_events)
    assert (got.scores is None) == (want.scores is None)
    if want.scores is not None:
        assert got.scores.dtype == np.int64
        np.testing.assert_array_equal(got.scores, want.scores)
    assert (got.wraps, got.saturations, got.rates) == (want.wraps, want.saturations, want.rates)


def test_results_are_equal_and_in_order(backend, network, x):
    record = {"conv1": "spikes", "fc1": ("u", "v", "current")}
    reports = []
    run = simulate_in_parts(network, x, record=record, backend=backend, progress=lambda *n: reports.append(n))
    assert_equal(run, simulate(network, x, record=record))
    assert len(reports) == 7, "parts of 16 samples"
    assert reports[-1] == (100, 100)


@settings(max_examples=25, deadline=None)
@given(networks_with_input(wild=True, delays=True, acyclic=False), st.integers(1, 3), st.integers(1, 4))
def test_a_run_survives_packing_and_joining(case, smallest, repeats):
    network, x = case
    axis = x.ndim - len(network.input.shape) - 1
    x = np.concatenate([x] * repeats, axis)
    record = {p.name: (("spikes",) if p.spikes else ()) + ("u", "v", "current") for p in network.populations}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "SMALLEST_PART", smallest)
        got = simulate_in_parts(network, x, record=record, backend=Backend("joblib", jobs=1))
    assert_equal(got, simulate(network, x, record=record))


@pytest.mark.parametrize("name", BACKENDS)
def test_a_worker_that_dies_is_replaced_and_its_task_runs_again(name, tmp_path):
    backend = Backend.parse(name, 2)
    results = dict(backend.run(scale_tasks.dies_once, str(tmp_path), {n: n for n in range(8)}))
    assert (tmp_path / "died").exists()
    assert results == {n: n for n in range(8)}


def test_a_task_that_always_kills_its_worker_ends_the_run_by_name(monkeypatch):
    monkeypatch.setattr(backends, "RETRIES", 1)
    with pytest.raises(ExecutionError, match=r"workers died 2 times on tasks .*1"):
        dict(Backend("joblib", jobs=2).run(scale_tasks.always_dies, None, dict.fromkeys(range(2), 1)))


def test_what_a_task_complains_of_arrives_as_it_is(backend):
    with pytest.raises(DataError, match=r"^item 2 does not fit$"):
        dict(backend.run(scale_tasks.complains, None, {n: n for n in range(6)}))


def test_an_interrupted_run_goes_on_where_it_stopped(network, x, tmp_path, monkeypatch):
    want = simulate(network, x)

    def stop(done, _total):
        if done >= 48:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate_in_parts(network, x, backend=Backend(jobs=1), keep=tmp_path, progress=stop)
    assert len(list(tmp_path.glob("part-*.npz"))) == 3
    broken = tmp_path / "part-000001.npz"
    broken.write_bytes(broken.read_bytes()[:-40])

    real, ran = parts._part, []
    monkeypatch.setattr(parts, "_part", lambda shared, part: (ran.append(len(part)), real(shared, part))[1])
    again = simulate_in_parts(network, x, backend=Backend(jobs=1), keep=tmp_path, resume=True)
    assert sum(ran) == 100 - 32, "two whole parts were there"
    assert_equal(again, want)
    assert_equal(simulate_in_parts(network, x, backend=Backend(jobs=1), keep=tmp_path, resume=True), want)
    assert sum(ran) == 100 - 32
    simulate_in_parts(network, x, backend=Backend(jobs=1), keep=tmp_path)
    assert sum(ran) == 200 - 32, "without resume everything runs"

    with pytest.raises(DataError, match="data differ"):
        simulate_in_parts(network, x + (x < 16), backend=Backend(jobs=1), keep=tmp_path, resume=True)
    with pytest.raises(DataError, match=r"engine differ"):
        simulate_in_parts(network, x, "reference", backend=Backend(jobs=1), keep=tmp_path, resume=True)


def test_what_is_kept_is_bounded(network, x, tmp_path, monkeypatch):
    whole = kept.Kept(tmp_path / "whole", {}, resume=False)
    monkeypatch.setattr(kept.Kept.__init__, "__kwdefaults__", {"limit": 6000})
    run = simulate_in_parts(network, x, backend=Backend(jobs=1), keep=tmp_path / "small")
    assert_equal(run, simulate(network, x))
    sizes = [path.stat().st_size for path in (tmp_path / "small").glob("part-*.npz")]
    assert sizes
    assert sum(sizes) <= 6000
    assert len(sizes) < 7
    assert not whole.full


def group_lives(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_ctrl_c_leaves_results_and_no_process(network, tmp_path):
    """The whole process group gets the signal, as from a terminal."""
    lapilli.save(network, tmp_path / "net.onnx")
    np.savez(tmp_path / "data.npz", x=np.zeros((200_000, 1, 8, 8), np.uint8))
    command = [sys.executable, "-m", "lapilli", "sim", "net.onnx", "data.npz", "--engine", "reference"]
    command += ["--jobs", "2", "--out", "out"]
    started = subprocess.Popen(
        command,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    deadline = time.monotonic() + 60
    while not list((tmp_path / "out").glob("part-*.npz")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(started.pid, signal.SIGINT)
    _, err = started.communicate(timeout=60)
    assert started.returncode == 130, err
    assert err.count("\n") == 1, err
    assert "--resume" in err
    assert list((tmp_path / "out").glob("part-*.npz"))
    deadline = time.monotonic() + 20
    while group_lives(started.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not group_lives(started.pid)


@pytest.mark.parametrize(
    ("text", "jobs", "names"),
    [
        ("spark", None, "there is no 'spark'"),
        ("dask:", None, "an address belongs to a cluster"),
        ("joblib:tcp://host:1", None, "an address belongs to a cluster"),
        ("dask:tcp://host:1", 2, "leave --jobs out"),
        ("joblib", 0, "jobs 0 is below 1"),
    ],
)
def test_backends_that_make_no_sense_are_refused(text, jobs, names):
    with pytest.raises(UnsupportedError, match=names):
        Backend.parse(text, jobs)


@pytest.mark.parametrize("name", ["dask", "ray"])
def test_an_absent_package_is_one_line_with_the_remedy(name, monkeypatch):
    monkeypatch.setitem(sys.modules, {"dask": "distributed"}.get(name, name), None)
    with pytest.raises(MissingDependencyError, match=rf"pip install 'lapilli\[{name}\]'"):
        Backend.parse(name)


def test_a_cluster_that_does_not_answer_is_one_line(monkeypatch):
    monkeypatch.setattr(backends, "CONNECT_SECONDS", 1)
    with pytest.raises(ExecutionError, match=r"no Dask scheduler answers at 'tcp://127\.0\.0\.1:9'") as caught:
        dict(Backend.parse("dask:tcp://127.0.0.1:9").run(scale_tasks.square, 0, {0: 1}))
    assert "\n" not in str(caught.value)
