"""Lava emits the spikes of the description, in a process that always ends."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import Phase, given, settings

from lapilli.arithmetic import synapse_sum
from lapilli.bounds import largest_sum
from lapilli.deploy.lava import available, build, executor, lava_executor, run_jobs
from lapilli.deploy.lava.executor import Job
from lapilli.deploy.lava.graph import bias_registers, conv_as_matrix, fits_stock_lif
from lapilli.deploy.schedule import make_schedule
from lapilli.errors import ExecutionError, MissingDependencyError, UnsupportedError
from lapilli.network import INPUT, Connection, Conv2d, Dense, Input, Network, Population, Scale
from lapilli.sim.reference import reference
from strategies import networks, networks_with_input

lava = pytest.mark.lava
needs_lava = pytest.mark.skipif(not available(), reason="lava-nc is not installed")


def runnable(case):
    try:
        make_schedule(case[0])
    except UnsupportedError:
        return False
    return all(2 * largest_sum(case[0], c) < 2**31 for c in case[0].connections)  # wider payloads are refused by name


def assert_equal(network, recording, expected):
    assert recording.spikes.keys() == expected.spikes.keys()
    for name, spikes in expected.spikes.items():
        np.testing.assert_array_equal(recording.spikes[name], spikes, err_msg=f"{network.name} {name}")
    for p in network.populations:
        if not p.spikes:
            np.testing.assert_array_equal(recording.v_final[p.name], expected.v_final[p.name])


# Every kind of network; a worker runs several, because starting one takes longer than running it.
CASES = {
    "stock": {"stock": True, "resets": ("zero",)},
    "soft": {"resets": ("subtract",)},
    "delays": {"delays": True, "acyclic": False},
    "wild": {"wild": True},
}


def draw(count, **kind):
    """Networks as hypothesis draws them; collected first, because a worker should run many."""
    cases = []

    @given(networks_with_input(**kind).filter(runnable))
    @settings(max_examples=3 * count, deadline=None, database=None, derandomize=True, phases=[Phase.generate])
    def collect(case):
        cases.append(case)

    collect()
    drawn = cases[count:]  # the first ones are the simplest
    return sorted(drawn, key=convolutions)[-count:]  # dense connections are in all of them


def convolutions(case):
    return sum(isinstance(c.synapse, Conv2d) for c in case[0].connections)


@lava
@needs_lava
def test_random_networks_emit_the_reference_s_spikes():
    cases = [case for kind in CASES.values() for case in draw(5, **kind)]
    jobs = [Job(n, x, (), "conv" if i % 2 else "sparse") for i, (n, x) in enumerate(cases)]
    assert sum(map(convolutions, cases)) >= 8
    spikes = 0
    for job, run in zip(jobs, run_jobs(jobs, timeout=240), strict=True):
        expected = reference(job.network, job.x)
        assert_equal(job.network, run.recording, expected)
        assert run.chip_steps == make_schedule(job.network).total_steps(job.x.shape[-len(job.network.input.shape) - 1])
        spikes += sum(int(s.sum()) for s in expected.spikes.values())
    assert spikes > 1000


def digits_like(reset, steps=6, **connection):
    rng = np.random.default_rng(0)

    def population(name, shape, bias):
        return Population(
            name=name,
            shape=shape,
            threshold=64 * 150,
            reset=reset,
            reset_amount=64 * 130 if reset == "subtract" else 0,
            du=4096 if reset == "subtract" else 1200,
            dv=0 if reset == "subtract" else 300,
            bias=rng.integers(-10, 30, bias) * 64,
            v_init=64 * 40 if reset == "subtract" else 0,
        )

    return Network(
        name=reset,
        steps=steps,
        input=Input(shape=(1, 6, 5), low=0, high=16),
        populations=[
            population("conv", (4, 6, 5), (4, 1, 1)),
            population("strided", (6, 2, 3), (1,)),
            population("branch", (6, 2, 3), (6, 2, 3)),
            population("dense", (5,), (5,)),
            Population(name="readout", shape=(5,), reset="none"),
        ],
        connections=[
            Connection(source=INPUT, target="conv", synapse=Conv2d(rng.integers(-20, 24, (4, 1, 3, 3)), padding=1)),
            Connection(
                source="conv",
                target="strided",
                synapse=Conv2d(rng.integers(-90, 100, (6, 2, 3, 2)), stride=(3, 2), padding=(0, 1), groups=2),
            ),
            Connection(source="strided", target="branch", synapse=Scale(rng.integers(50, 127, 6))),
            Connection(source="strided", target="dense", synapse=Dense(rng.integers(-40, 50, (5, 36))), **connection),
            Connection(source="branch", target="dense", synapse=Dense(rng.integers(-40, 50, (5, 36)))),
            Connection(source=INPUT, target="dense", synapse=Dense(rng.integers(-9, 9, (5, 30)))),
            Connection(source="dense", target="readout", synapse=Dense(rng.integers(-128, 127, (5, 5)))),
        ],
    )


def images(samples):
    return np.random.default_rng(1).integers(0, 17, (samples, 1, 6, 5))


@pytest.fixture(scope="module")
def branched():
    """Runs of the same branched network with both resets and both kinds of convolution, everything traced."""
    jobs = [
        Job(digits_like(reset), images(7), ("conv", "branch", "dense", "readout"), convolution)
        for reset, convolution in (("subtract", "sparse"), ("zero", "conv"))
    ]
    return list(zip(jobs, run_jobs(jobs, timeout=180), strict=True))


@lava
@needs_lava
def test_branched_networks_run_back_to_back_spike_for_spike(branched):
    for job, run in branched:
        expected = reference(job.network, job.x)
        assert all(0.02 < s.mean() < 0.98 for s in expected.spikes.values())
        assert_equal(job.network, run.recording, expected)


@lava
@needs_lava
def test_traces_are_those_of_the_description(branched):
    for job, run in branched:
        expected = reference(job.network, job.x, job.trace)
        for name in job.trace:
            for what in ("current", "u", "v"):
                np.testing.assert_array_equal(getattr(run.recording, what)[name], getattr(expected, what)[name])


@lava
@needs_lava
def test_without_the_window_s_reset_spikes_differ(monkeypatch):
    network, x = digits_like("subtract"), images(4)
    code = """
        from lapilli.deploy.lava import graph, worker
        make = graph.build
        def forgetful(*args):
            lava = make(*args)
            lava.processes["strided"].proc_params.overwrite("reset_interval", None)
            return lava
        worker.build = forgetful
        worker.start()
    """
    monkeypatch.setattr(executor, "WORKER", ["-c", textwrap.dedent(code)])
    spikes = lava_executor(network, x).spikes
    expected = reference(network, x).spikes
    np.testing.assert_array_equal(spikes["conv"], expected["conv"])
    assert (spikes["strided"][:, 0] != expected["strided"][:, 0]).any()  # its biases acted before its window
    assert (spikes["strided"][:, 1:] != expected["strided"][:, 1:]).any()  # and the sample before left its membrane


@lava
@needs_lava
def test_an_exception_inside_a_model_ends_the_run_with_its_message(monkeypatch):
    code = """
        from lapilli.deploy.lava import import_lava, worker
        import_lava()
        from lapilli.deploy.lava.processes.frame_source import PyFrameSourceFixed
        def fail(self):
            raise RuntimeError("the source is dry")
        PyFrameSourceFixed.run_spk = fail
        worker.start()
    """
    monkeypatch.setattr(executor, "WORKER", ["-c", textwrap.dedent(code)])
    monkeypatch.setattr(executor, "GRACE", 1.0)
    begin = time.monotonic()
    with pytest.raises(ExecutionError, match="the source is dry"):
        lava_executor(digits_like("zero"), images(1))
    assert time.monotonic() - begin < 40


@lava
@needs_lava
def test_unconnected_parts_are_refused_by_name():
    network = Network(
        name="parts",
        steps=2,
        input=Input(shape=(1,)),
        populations=[Population(name="a", shape=(1,)), Population(name="b", shape=(1,))],
        connections=[Connection(source=INPUT, target="a", synapse=Dense([[1]]))],
    )
    with pytest.raises(UnsupportedError, match="b and 'a' are not connected"):
        lava_executor(network, np.ones((1, 1), np.int64))


@lava
@needs_lava
def test_a_lava_user_can_reach_every_process():
    code = """
        import numpy as np
        from lapilli.deploy.lava import build, import_lava
        import_lava()
        from lava.proc.io.sink import RingBuffer
        from test_lava import digits_like, images
        from lapilli.sim.reference import reference
        network, x = digits_like("zero"), images(2)
        lava = build(network, x, network.steps)
        kinds = {n: type(p).__name__ for n, p in (lava.processes | lava.connections | lava.delays).items()}
        assert kinds == {
            "conv": "LIFReset", "strided": "LIFReset", "branch": "LIFReset", "dense": "LIFReset",
            "readout": "SoftResetLIF", "input->conv": "Conv", "conv->strided": "Conv", "strided->branch": "Sparse",
            "strided->dense": "DelayDense", "branch->dense": "Dense", "input->dense": "DelayDense",
            "dense->readout": "Dense",
        }, kinds
        steps = lava.schedule.total_steps(2)
        sink = RingBuffer(shape=(5,), buffer=steps)
        lava.processes["dense"].s_out.connect(sink.a_in)
        lava.run(samples=2)
        seen = sink.data.get().T[lava.schedule.first_step("dense") - 1 :][: 2 * network.steps]
        lava.stop()
        assert (lava.schedule.by_sample(seen) == reference(network, x).spikes["dense"]).all()
        print("same spikes")
    """
    here = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": here, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        start_new_session=True,
    )
    assert "same spikes" in done.stdout, done.stderr[-2000:]


# What needs no run


def test_bias_registers_are_exact_or_refused():
    bias = np.array([0, 1, -1, 4095, -4096, 4096, 64 * 4095, -4096 * 128, 4095 * 128, 8192])
    registers = bias_registers(bias)
    assert registers is not None
    mantissa, exponent = registers
    np.testing.assert_array_equal(mantissa << exponent, bias)
    assert mantissa.min() >= -4096
    assert mantissa.max() <= 4095
    assert exponent.max() <= 7
    assert bias_registers(np.array([4097])) is None
    assert bias_registers(np.array([4096 * 128])) is None


@pytest.mark.parametrize(
    ("change", "fits"),
    [
        ({}, True),
        ({"threshold": 65}, False),
        ({"v_init": 1}, False),
        ({"reset": "subtract", "reset_amount": 64}, False),
        ({"bias": np.array([4097])}, False),
        ({"state_bits": 23}, False),
        ({"fraction_bits": 5}, False),
    ],
)
def test_the_stock_neuron_is_used_only_where_it_is_exact(change, fits):
    options = {"name": "p", "shape": (1,), "threshold": 64, "reset": "zero", **change}
    assert fits_stock_lif(one_synapse(Population(**options), 127, 0), Population(**options)) is fits


def test_the_stock_neuron_is_not_used_where_a_current_could_wrap_twice():
    p = Population(name="p", shape=(1,), threshold=64, reset="zero")
    assert fits_stock_lif(one_synapse(p, 127, 10), p)
    assert not fits_stock_lif(one_synapse(p, 127, 12), p)


def one_synapse(population, weight, exponent):
    connection = Connection(source=INPUT, target="p", synapse=Dense([[weight]]), weight_exponent=exponent)
    return Network(name="one", steps=1, input=Input(shape=(1,)), populations=[population], connections=[connection])


@given(networks())
@settings(max_examples=60, deadline=None)
def test_a_convolution_as_a_matrix_is_the_same_sum(network):
    pytest.importorskip("scipy")
    rng = np.random.default_rng(0)
    for c in network.connections:
        if isinstance(c.synapse, Conv2d):
            source, target = network.shape_of(c.source), network.shape_of(c.target)
            x = rng.integers(-9, 9, (3, *source))
            product = (conv_as_matrix(c.synapse, source, target) @ x.reshape(3, -1).T).T
            np.testing.assert_array_equal(product.reshape(3, *target), synapse_sum(c.synapse, x, target))


@lava
@needs_lava
@pytest.mark.parametrize("exponent", [0, 1, 5])
@pytest.mark.parametrize("signs", [(-128, 127), (0, 127), (-128, 0), (-128, -1), (0, 0), (1, 1), (-1, -1)])
def test_any_int8_matrix_keeps_its_value_in_lava(signs, exponent):
    """Lava's own preparation of weights, on what ``build`` gives it."""
    network = one_synapse(Population(name="p", shape=(1,)), 0, exponent)
    w = np.random.default_rng(0).integers(signs[0], signs[1] + 1, (20, 30)).astype(np.int8)
    w[0, :2] = signs
    network = Network(
        name="w",
        steps=1,
        input=Input(shape=(30,)),
        populations=[Population(name="p", shape=(20,))],
        connections=[Connection(source=INPUT, target="p", synapse=Dense(w), weight_exponent=exponent)],
    )
    process = build(network).connections["input->p"]
    from lava.utils.weightutils import clip_weights, truncate_weights

    params = process.proc_params
    kept = clip_weights(process.weights.init, params["sign_mode"], num_bits=8)
    kept = truncate_weights(kept, params["sign_mode"], params["num_weight_bits"])
    x = np.random.default_rng(1).integers(0, 2, (64, 30))
    total = x @ kept.T.astype(np.int64)
    shift = params["weight_exp"]
    shifted = total << shift if shift > 0 else total >> -shift
    np.testing.assert_array_equal(shifted, (x @ w.T.astype(np.int64)) << exponent)


# Processes end


def test_absent_lava_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"lava-nc 0.10.0.*uv sync"):
        lava_executor(digits_like("zero"), images(1))


SLEEPER = (
    "import subprocess, sys, time; subprocess.Popen(['sleep', '{tag}']); print('ready', flush=True); time.sleep(60)"
)


def alive(tag):
    return subprocess.run(["pgrep", "-f", f"^sleep {tag}$"], capture_output=True).returncode == 0


def wait_until(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


@pytest.fixture
def tag():
    return f"{60 + os.getpid() % 1000}.{time.monotonic_ns() % 10**9}"


@needs_lava
def test_the_time_limit_ends_the_whole_process_group(monkeypatch, tag):
    monkeypatch.setattr(executor, "WORKER", ["-c", SLEEPER.format(tag=tag)])
    monkeypatch.setenv("LAPILLI_LAVA_TIMEOUT", "2")
    with pytest.raises(ExecutionError, match=r"within 2 s .*LAPILLI_LAVA_TIMEOUT"):
        lava_executor(digits_like("zero"), images(1))
    assert wait_until(lambda: not alive(tag))


@needs_lava
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_behind_when_the_caller_ends(how, tag):
    """Ctrl-C is handled here; after SIGTERM and SIGKILL the worker notices that its parent is gone."""
    worker = f"from lapilli.deploy.lava.worker import die_with_parent; die_with_parent(); {SLEEPER.format(tag=tag)}"
    code = f"""
        from lapilli.deploy.lava import executor
        from test_lava import digits_like, images
        executor.WORKER = ["-c", {worker!r}]
        executor.lava_executor(digits_like("zero"), images(1))
    """
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    caller = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=environment,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    try:
        assert wait_until(lambda: alive(tag), 60)
        caller.send_signal(how)
        caller.wait(20)
        assert wait_until(lambda: not alive(tag))
    finally:
        caller.kill()
        caller.wait()


def test_a_bad_time_limit_is_refused(monkeypatch):
    monkeypatch.setenv("LAPILLI_LAVA_TIMEOUT", "soon")
    with pytest.raises(ExecutionError, match="LAPILLI_LAVA_TIMEOUT is 'soon'"):
        executor.time_limit([], [])
