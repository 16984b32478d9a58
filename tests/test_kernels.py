"""The compiled kernels give the bits of the arithmetic, on every instruction set of this machine."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lapilli.arithmetic import neuron_step, synapse_sum
from lapilli.errors import UnsupportedError
from lapilli.network import INPUT, Connection, Conv2d, Dense, Input, Network, Population
from lapilli.sim.engine import batched, kernels, packing, threads
from lapilli.sim.engine.batched import fast, plan_of
from lapilli.sim.engine.packing import pack
from lapilli.sim.reference import reference

pytestmark = pytest.mark.skipif(kernels.best_level() < 0, reason="lapilli was installed without a compiler")
LEVELS = range(kernels.best_level() + 1)


@pytest.fixture(params=LEVELS, ids=kernels.LEVELS[: kernels.best_level() + 1])
def level(request, monkeypatch):
    monkeypatch.setattr(kernels, "level", request.param)


@st.composite
def cases_of_neurons(draw):
    """A population whose numbers sit at the edges of its width, its state, and a drive that leaves it now and then."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    bits = draw(st.integers(2, kernels.WIDEST_STATE))
    v_max = 2 ** (bits - 1) - 1
    reset = draw(st.sampled_from(("subtract", "zero", "none")))
    size, steps, batch = draw(st.integers(1, 40)), draw(st.integers(1, 6)), draw(st.integers(1, 3))
    population = Population(
        name="p",
        shape=(size,),
        threshold=draw(st.integers(0, v_max)),
        reset=reset,
        reset_amount=draw(st.integers(0, v_max)) if reset == "subtract" else 0,
        du=draw(st.one_of(st.sampled_from((0, 1, 4095, 4096)), st.integers(0, 4096))),
        dv=draw(st.one_of(st.sampled_from((0, 1, 4095, 4096)), st.integers(0, 4096))),
        bias=rng.integers(-v_max, v_max + 1, size) if draw(st.booleans()) else np.zeros(1),
        v_init=draw(st.integers(-v_max, v_max)),
        fraction_bits=0,
        state_bits=bits,
    )
    reach = draw(st.sampled_from((v_max // 8 + 1, v_max, kernels.LARGEST_DRIVE)))
    return population, rng.integers(-reach, reach + 1, (steps, batch, size)).astype(np.int32)


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=150, deadline=None)
@given(cases_of_neurons(), st.booleans())
def test_neurons_of_any_width_and_decay(level, case, traced):
    population, drive = case
    before = kernels.level
    kernels.level = level
    try:
        p = population
        u = None if p.du == 4096 and not traced else np.zeros(drive.shape[1:], np.int32)
        v = np.full(drive.shape[1:], p.v_init, np.int32)
        spikes = np.full(drive.shape, 7, np.uint8)
        traces = tuple(np.zeros(drive.shape, np.int64) for _ in range(3)) if traced else None
        bias = np.ascontiguousarray(np.broadcast_to(p.bias, p.shape), np.int32)
        wraps, saturations = kernels.neuron_steps(p, drive, u, v, bias, spikes if p.spikes else None, traces)
    finally:
        kernels.level = before
    exact_u, exact_v = np.zeros(drive.shape[1:], np.int64), np.full(drive.shape[1:], p.v_init, np.int64)
    wrapped = saturated = 0
    for n, arrived in enumerate(drive.astype(np.int64)):
        step = neuron_step(p, exact_u, exact_v, arrived)
        exact_u, exact_v = step.u, step.v
        wrapped, saturated = wrapped + int(step.wrapped.sum()), saturated + int(step.saturated.sum())
        if p.spikes:
            np.testing.assert_array_equal(spikes[n], step.spikes)
        if traces:
            for trace, value in zip(traces, (arrived, exact_u, exact_v), strict=True):
                np.testing.assert_array_equal(trace[n], value)
    np.testing.assert_array_equal(v, exact_v)
    if u is not None:
        np.testing.assert_array_equal(u, exact_u)
    assert (wraps, saturations) == (wrapped, saturated)


def assert_sums(synapse, source, density, *, seed=0, shift=3):
    rng = np.random.default_rng(seed)
    target = synapse.output_size(source)
    target = (target,) if isinstance(target, int) else target
    packed = pack(synapse, source, target)
    assert packed is not None
    x = (rng.random((3, 2, *source)) < density).astype(np.uint8)
    want = np.stack([synapse_sum(synapse, images.astype(np.int64), target) for images in x]) << shift
    drive = np.full((3, 2, *target), 77, np.int32)
    assert kernels.event_sums(packed, x, drive, shift, add=False) == x.sum()
    np.testing.assert_array_equal(drive, want)
    kernels.event_sums(packed, x, drive, shift, add=True)
    np.testing.assert_array_equal(drive, 2 * want)


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("density", [0.0, 0.004, 0.1, 1.0])
@pytest.mark.parametrize(("n_in", "n_out"), [(1, 1), (784, 10), (63, 64), (257, 65), (600, 512), (130, 700)])
def test_dense_layers_of_any_size_and_density(n_in, n_out, density):
    """Density 1 adds up more rows than 16 bits hold, with all weights at their lowest."""
    assert_sums(Dense(np.random.default_rng(1).integers(-128, 128, (n_out, n_in))), (n_in,), density)
    assert_sums(Dense(np.full((n_out, n_in), -128)), (n_in,), density)
    assert_sums(Dense(np.full((n_out, n_in), 127)), (n_in,), density)


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("density", [0.0, 0.1, 1.0])
@pytest.mark.parametrize(
    ("source", "weight", "options"),
    [
        ((1, 1, 1), (1, 1, 1, 1), {}),
        ((3, 9, 7), (5, 3, 3, 2), {"padding": (1, 2)}),
        ((64, 5, 5), (70, 64, 3, 3), {"padding": 1}),
        ((20, 8, 8), (130, 20, 3, 3), {"padding": (1, 0), "stride": (2, 3)}),
        ((4, 11, 9), (6, 4, 3, 3), {"dilation": (2, 3), "padding": 3}),
        ((32, 6, 6), (48, 16, 3, 3), {"groups": 2, "padding": 1}),
        ((300, 4, 4), (17, 300, 1, 1), {}),
        ((2, 3, 40), (3, 2, 3, 3), {"padding": 30}),
    ],
)
def test_convolutions_of_any_kind_and_density(source, weight, options, density):
    rng = np.random.default_rng(2)
    assert_sums(Conv2d(rng.integers(-128, 128, weight), **options), source, density)


@pytest.mark.usefixtures("level")
def test_images_that_do_not_fit_the_event_lists_together():
    """1 MiB of lists per image, twice what is kept at a time, and weights in several blocks."""
    assert_sums(Conv2d(np.random.default_rng(3).integers(-128, 128, (2, 512, 1, 1))), (512, 32, 32), 0.01)
    weight = np.random.default_rng(3).integers(-128, 128, (200, 1024, 3, 3))
    synapse = Conv2d(weight, padding=1)
    packed = pack(synapse, (1024, 3, 3), (200, 3, 3))
    assert packed is not None
    assert packed.weight.shape[1] > 1
    assert_sums(synapse, (1024, 3, 3), 0.05)


def mlp(steps=7, **options):
    rng = np.random.default_rng(4)
    sizes = (200, 90, 70, 10)
    populations = [
        Population(name=f"p{i}", shape=(n,), threshold=20_000, reset_amount=15_000, du=700, dv=90, **options)
        for i, n in enumerate(sizes[1:])
    ]
    names = [INPUT, *(p.name for p in populations)]
    connections = [
        Connection(source=a, target=b, synapse=Dense(rng.integers(-90, 100, (n, m))))
        for a, b, n, m in zip(names, names[1:], sizes[1:], sizes, strict=False)
    ]
    net = Network(name="mlp", steps=steps, input=Input(shape=(200,)), populations=populations, connections=connections)
    return net, (rng.random((steps, 23, 200)) < 0.2).astype(np.int64)


@pytest.mark.parametrize("n_threads", [1, 2, 5])
@pytest.mark.parametrize("cache", [1, 3000, 2**21])
def test_any_number_of_threads_gives_the_same_bits(monkeypatch, n_threads, cache):
    used = set()
    original = batched.run_neurons
    monkeypatch.setenv("LAPILLI_THREADS", str(n_threads))
    monkeypatch.setattr(batched, "THREAD_BYTES", 0)
    monkeypatch.setattr(batched, "CACHE_BYTES", cache)
    monkeypatch.setattr(batched, "run_neurons", lambda *a: (used.add(threading.get_ident()), original(*a))[1])
    network, x = mlp()
    want, got = reference(network, x), fast(network, x)
    assert all(s.any() for s in want.spikes.values())
    for name, spikes in want.spikes.items():
        np.testing.assert_array_equal(got.spikes[name], spikes)
        np.testing.assert_array_equal(got.v_final[name], want.v_final[name])
    assert (threading.get_ident() in used) == (n_threads == 1)


def test_a_sample_does_not_depend_on_its_batch():
    network, x = mlp()
    together = fast(network, x)
    for b in (0, 22):
        alone = fast(network, x[:, b : b + 1])
        for name, spikes in alone.spikes.items():
            np.testing.assert_array_equal(together.spikes[name][:, b : b + 1], spikes)


def test_the_kernels_are_what_runs():
    """A plain network is compiled; numbers wider than 32 bits are not."""
    assert all(s.compiled and all(p.packed for p in s.prepared) for s in plan_of(mlp()[0]))
    assert not any(s.compiled for s in plan_of(mlp(state_bits=31)[0]))


def test_a_plan_lives_as_long_as_its_network():
    network, x = mlp()
    before = len(batched._plans)
    fast(network, x)
    assert plan_of(network) is plan_of(network)
    assert len(batched._plans) == before + 1
    del network
    assert len(batched._plans) == before


def test_arrays_that_do_not_fit_are_refused_before_the_kernel():
    packed = pack(Dense(np.ones((4, 9))), (9,), (4,))
    assert packed is not None
    x, drive = np.zeros((2, 3, 9), np.uint8), np.zeros((2, 3, 4), np.int32)
    for bad_x, bad_drive in (
        (x[..., :8], drive),
        (x.astype(np.int64), drive),
        (x[..., ::-1], drive),
        (x[:1], drive),
        (x, drive[:, :2]),
        (x, drive.astype(np.int64)),
        (x, np.broadcast_to(drive[..., :1], drive.shape)),
    ):
        with pytest.raises(AssertionError):
            kernels.event_sums(packed, bad_x, bad_drive, 0, add=False)


def test_synapses_without_use_for_events_are_left_to_numpy():
    assert pack(Conv2d(np.ones((8, 1, 2, 2)), groups=8), (8, 4, 4), (8, 3, 3)) is None
    assert pack(Dense(np.ones((1, packing.MAX_CHANNELS + 1))), (packing.MAX_CHANNELS + 1,), (1,)) is None


@pytest.mark.parametrize(("value", "expected"), [("off", -1), ("portable", 0), ("PORTABLE", 0), ("", None)])
def test_the_environment_chooses_the_instruction_set(monkeypatch, value, expected):
    monkeypatch.setenv(kernels.CHOICE, value)
    assert kernels.best_level() == (kernels._compiled.level() if expected is None else expected)


def test_an_unknown_instruction_set_is_named(monkeypatch):
    monkeypatch.setenv(kernels.CHOICE, "mmx")
    with pytest.raises(UnsupportedError, match="mmx"):
        kernels.best_level()


@pytest.mark.parametrize(("lapilli", "omp", "expected"), [("3", "2", 3), ("", "2", 2), ("x", "0", None)])
def test_the_environment_sets_the_threads(monkeypatch, lapilli, omp, expected):
    monkeypatch.setenv("LAPILLI_THREADS", lapilli)
    monkeypatch.setenv("OMP_NUM_THREADS", omp)
    assert threads.count() == expected if expected else threads.count() >= 1
