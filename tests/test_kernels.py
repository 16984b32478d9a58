"""The compiled kernels give the bits of the arithmetic, on every instruction set of this machine."""

from __future__ import annotations

import math
import threading
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lapilli.arithmetic import decay, neuron_step, synapse_sum
from lapilli.errors import UnsupportedError
from lapilli.network import DECAY_ONE, INPUT, Connection, Conv2d, Dense, Input, Network, Population, Scale
from lapilli.sim.engine import batched, kernels, packing, threads
from lapilli.sim.engine.batched import fast, plan_of
from lapilli.sim.engine.neurons import State
from lapilli.sim.engine.packing import lay_out, pack
from lapilli.sim.reference import reference

pytestmark = pytest.mark.skipif(kernels.best_level() < 0, reason="lapilli was installed without a compiler")
LEVELS = range(kernels.best_level() + 1)


@pytest.fixture(params=LEVELS, ids=kernels.LEVELS[: kernels.best_level() + 1])
def level(request, monkeypatch):
    monkeypatch.setattr(kernels, "level", request.param)


def run_alone(*arguments):
    """All steps of one block of neurons."""
    return kernels.run([kernels.prepare(*arguments)])[0]


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
@settings(max_examples=100, deadline=None)
@given(cases_of_neurons(), st.booleans())
def test_neurons_of_any_width_and_decay(level, case, traced):
    population, drive = case
    before = kernels.level
    kernels.level = level
    try:
        p = population
        layout = lay_out(p, [])
        state = State.at_rest(p, drive.shape[1], layout, keep_u=traced)
        spikes = np.full(drive.shape, 7, np.uint8)
        traces = tuple(np.zeros(drive.shape, np.int64) for _ in range(3)) if traced else None
        bias = layout.arrange(np.broadcast_to(p.bias, p.shape)[:, None])
        fired, extra = spikes if p.spikes else None, layout.arrange(drive[..., None])
        done = run_alone(p, layout, drive.shape[:2], [], extra, state.u, state.v, bias, fired, traces)
        u, v = (None if a is None else layout.restore(a, p.shape) for a in (state.u, state.v))
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
    assert (done.wraps, done.saturations) == (wrapped, saturated)


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("bits", [25, 26])
def test_a_decay_rounds_toward_zero_up_to_the_widest_state(bits):
    """For membranes whose product with it is just above or below a whole number; 25 bits fit a float."""
    p, rng = Population(name="p", shape=(256,), reset="none", dv=1, state_bits=bits), np.random.default_rng(9)
    layout, bias = lay_out(p, []), np.zeros((1, 1, 256), np.int32)
    for dv in (*range(0, DECAY_ONE, 13), DECAY_ONE - 1, DECAY_ONE):
        whole = rng.integers(1, p.v_max, 50) * DECAY_ONE // max(DECAY_ONE - dv, 1)
        beside = (np.minimum(whole + i, p.v_max) for i in (-1, 0, 1))
        v = np.concatenate([p.v_max - np.arange(28), *beside, [0] * 78])
        v = v * rng.choice((-1, 1), v.size)
        state = layout.arrange(v[:, None])[None]
        run_alone(replace(p, dv=dv), layout, (1, 1), [], None, None, state, bias, None, None)
        np.testing.assert_array_equal(layout.restore(state, p.shape)[0], decay(v, dv))


@pytest.mark.usefixtures("level")
def test_whatever_is_not_zero_is_a_spike():
    synapse = Dense(np.random.default_rng(1).integers(-128, 128, (9, 300)))
    x = np.random.default_rng(2).integers(0, 256, (2, 2, 300)).astype(np.uint8) & 0b10010001
    want = np.stack([synapse_sum(synapse, (images != 0).astype(np.int64), (9,)) for images in x])
    np.testing.assert_array_equal(run_layer([synapse], [x], (9,), 0), want)


def run_layer(synapses, sources, target, shift, extra=None, part=None, silent=0):
    """What the kernel says arrives at a population through these synapses, int64 [t, b, *target]."""
    p = Population(name="p", shape=target, reset="none", du=4096, state_bits=kernels.WIDEST_STATE)
    layout = lay_out(p, synapses)
    arriving = []
    for synapse, x in zip(synapses, sources, strict=True):
        packed = pack(synapse, x.shape[2:], target, layout)
        assert packed is not None
        arriving.append(kernels.Arriving(packed, x[silent:], silent, shift))
    window = sources[0].shape[:2]
    state = State.at_rest(p, window[1], layout, keep_u=True)
    traces = tuple(np.full((*window, *target), 77, np.int64) for _ in range(3))
    extra = None if extra is None else layout.arrange(extra.reshape(*window, layout.targets, -1))
    bias = layout.arrange(np.zeros((layout.targets, 1)))
    run_alone(p, layout, window, arriving, extra, state.u, state.v, bias, None, traces, part)
    return traces[0]


def assert_sums(synapse, source, density, *, seed=0, shift=3):
    """Whatever path is taken, the sums are those of the arithmetic."""
    with pytest.MonkeyPatch.context() as patch:
        for path in kernels.PATHS:
            patch.setattr(kernels, "path", path)
            assert_sums_on_this_path(synapse, source, density, seed, shift)


def assert_sums_on_this_path(synapse, source, density, seed=0, shift=3):
    rng = np.random.default_rng(seed)
    target = synapse.output_size(source)
    target = (target,) if isinstance(target, int) else target
    x = (rng.random((3, 2, *source)) < density).astype(np.uint8)
    want = np.stack([synapse_sum(synapse, images.astype(np.int64), target) for images in x]) << shift
    np.testing.assert_array_equal(run_layer([synapse], [x], target, shift), want)
    extra = rng.integers(-(2**20), 2**20, want.shape).astype(np.int32)
    np.testing.assert_array_equal(run_layer([synapse], [x], target, shift, extra), want + extra)
    want[0] = 0
    np.testing.assert_array_equal(run_layer([synapse], [x], target, shift, silent=1), want)


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("density", [0.0, 0.004, 0.1, 1.0])
@pytest.mark.parametrize(("n_in", "n_out"), [(1, 1), (784, 10), (63, 64), (257, 65), (600, 300)])
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
        ((70, 9, 9), (140, 1, 3, 3), {"groups": 70, "padding": 1}),
        ((600, 3, 3), (600, 2, 2, 2), {"groups": 300}),
    ],
)
def test_convolutions_of_any_kind_and_density(source, weight, options, density):
    rng = np.random.default_rng(2)
    assert_sums(Conv2d(rng.integers(-128, 128, weight), **options), source, density)


RANGES = ((0, 255), (-127, 127), (-128, 127), (0, 256), (3, 9), (-9, -3), (-70_000, 4000), (-(2**23), 2**23 - 1))


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize(
    ("source", "weight", "options"),
    [
        ((150,), (70, 150), None),
        ((5,), (300, 5), None),
        ((3, 9, 7), (66, 3, 3, 2), {"padding": (1, 2), "stride": (1, 2)}),
        ((70, 3, 3), (5, 70, 1, 1), {}),
        ((8, 5, 5), (6, 4, 3, 3), {"groups": 2, "padding": 2, "dilation": 2}),
        ((70, 4, 4), (140, 1, 3, 3), {"groups": 70, "padding": 1}),
        ((66, 3, 2), (66,), None),
    ],
)
def test_numbers_of_any_range_are_summed_by_the_kernel(source, weight, options):
    """Constant or a frame at each step, in one to three bytes, after a delay or none, beside spikes or alone."""
    rng = np.random.default_rng(10)
    for low, high in RANGES:
        reach = max(-low, high)
        most = min(127, 2**30 // (reach * math.prod(weight[1:]))) or 1
        values = rng.integers(-most, most + 1, weight)
        synapse = Conv2d(values, **options) if options is not None else (Dense if len(weight) == 2 else Scale)(values)
        out = source if isinstance(synapse, Scale) else synapse.output_size(source)
        target = (out,) if isinstance(out, int) else out
        p = Population(name="p", shape=target, threshold=2**28, dv=100, state_bits=30, fraction_bits=0)
        q = Population(name="q", shape=target, reset="none", state_bits=30, fraction_bits=0)
        net = Network(
            name="graded",
            steps=4,
            input=Input(shape=source, low=low, high=high),
            populations=[p, q],
            connections=[
                Connection(source=INPUT, target="p", synapse=synapse),
                Connection(source=INPUT, target="q", synapse=synapse, delay=2),
                Connection(source="p", target="q", synapse=Scale([0])),
            ],
        )
        frames = rng.integers(low, high + 1, (4, 2, *source))
        frames[0, 0], frames[2, 1] = low, high
        for x in (frames, frames[0], frames[2]):
            want, got = reference(net, x, ["p", "q"]), fast(net, x, ["p", "q"])
            assert want.current["p"].any()
            for name in ("p", "q"):
                np.testing.assert_array_equal(got.current[name], want.current[name])
                np.testing.assert_array_equal(got.v[name], want.v[name])
        assert all(s.compiled and all(c.packed for c in s.prepared) for s in plan_of(net))


@pytest.mark.usefixtures("level")
def test_images_that_do_not_fit_the_event_lists_together():
    """1 MiB of lists per image, twice what is kept at a time, and weights in several blocks."""
    assert_sums_on_this_path(Conv2d(np.random.default_rng(3).integers(-128, 128, (2, 512, 1, 1))), (512, 32, 16), 0.01)
    weight = np.random.default_rng(3).integers(-128, 128, (200, 1024, 3, 2))
    synapse = Conv2d(weight, padding=1)
    assert lay_out(Population(name="p", shape=(200, 3, 4)), [synapse]).blocks > 1
    assert_sums_on_this_path(synapse, (1024, 3, 3), 0.05)


def connections_that_meet(shape):
    """A convolution, one with stride, depthwise and grouped ones and one-to-one connections, all into ``shape``."""
    rng = np.random.default_rng(5)
    c, y, x = shape
    synapses = [
        Scale(rng.integers(-128, 128, c)),
        Conv2d(rng.integers(-128, 128, (c, 20, 3, 3)), padding=1),
        Conv2d(rng.integers(-128, 128, (c, 7, 1, 1)), stride=2),
        Conv2d(rng.integers(-128, 128, (c, 1, 3, 3)), padding=1, groups=c),
        Scale([-128]),
    ]
    sources = [shape, (20, y, x), (7, 2 * y - 1, 2 * x), shape, shape]
    return synapses, [(rng.random((2, 3, *s)) < 0.3).astype(np.uint8) for s in sources]


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("shape", [(3, 5, 4), (64, 4, 4), (130, 9, 8)])
@pytest.mark.parametrize("path", kernels.PATHS)
def test_connections_of_all_kinds_into_one_population(monkeypatch, shape, path):
    monkeypatch.setattr(kernels, "path", path)
    synapses, sources = connections_that_meet(shape)
    want = sum(
        np.stack([synapse_sum(s, frame.astype(np.int64), shape) for frame in x])
        for s, x in zip(synapses, sources, strict=True)
    )
    np.testing.assert_array_equal(run_layer(synapses, sources, shape, 0), want)
    rest = run_layer(synapses[1:], sources[1:], shape, 2)
    np.testing.assert_array_equal(run_layer(synapses[:1], sources[:1], shape, 2) + rest, want << 2)


@pytest.mark.usefixtures("level")
def test_parts_of_a_population_are_left_alone_or_done():
    shape = (300, 5, 4)
    rng = np.random.default_rng(6)
    synapse, x = Conv2d(rng.integers(-128, 128, (300, 16, 3, 3)), padding=1), rng.integers(0, 2, (2, 2, 16, 5, 4))
    x = x.astype(np.uint8)
    layout = lay_out(Population(name="p", shape=shape), [synapse])
    whole = run_layer([synapse], [x], shape, 0)
    assert layout.blocks == 2
    upper = run_layer([synapse], [x], shape, 0, part=kernels.Part((0, 20), (0, 1)))
    np.testing.assert_array_equal(upper[:, :, : layout.block], whole[:, :, : layout.block])
    assert (upper[:, :, layout.block :] == 77).all()
    some = run_layer([synapse], [x], shape, 0, part=kernels.Part((3, 17), (0, 2))).reshape(2, 2, 300, 20)
    np.testing.assert_array_equal(some[..., 3:17], whole.reshape(2, 2, 300, 20)[..., 3:17])
    assert (some[..., :3] == 77).all()
    assert (some[..., 17:] == 77).all()


def test_the_density_of_each_image_chooses_the_path(monkeypatch):
    """Two silent steps, two full ones: two products, and the same membrane on either path."""
    monkeypatch.setitem(kernels.PRODUCTS_FROM, kernels.LEVELS[kernels.level], (0.5, 0.5))
    p = Population(name="p", shape=(5,), threshold=100, reset_amount=90)
    synapse = Dense(np.random.default_rng(8).integers(-128, 128, (5, 9)))
    layout = lay_out(p, [synapse])
    packed = pack(synapse, (9,), (5,), layout)
    assert packed is not None
    x = np.zeros((4, 1, 9), np.uint8)
    x[1::2] = 1
    found = []
    for path, products in (("auto", 2), ("events", 0), ("products", 4)):
        monkeypatch.setattr(kernels, "path", path)
        state, spikes = State.at_rest(p, 1, layout), np.zeros((4, 1, 5), np.uint8)
        bias, arriving = layout.arrange(np.zeros((5, 1))), [kernels.Arriving(packed, x, 0, 0)]
        done = run_alone(p, layout, (4, 1), arriving, None, None, state.v, bias, spikes, None)
        assert done.products == products
        found.append((spikes, state.v))
    for spikes, v in found[1:]:
        np.testing.assert_array_equal(spikes, found[0][0])
        np.testing.assert_array_equal(v, found[0][1])


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
@pytest.mark.parametrize("batch", [1, 23])
@pytest.mark.parametrize("make", ["mlp", "cnn"])
def test_any_number_of_threads_gives_the_same_bits(monkeypatch, n_threads, batch, make):
    used = set()
    original = kernels.run
    monkeypatch.setenv("LAPILLI_THREADS", str(n_threads))
    monkeypatch.setattr(batched, "THREAD_WORK", 0)
    monkeypatch.setattr(kernels, "run", lambda *a: (used.add(threading.get_ident()), original(*a))[1])
    network, x = mlp() if make == "mlp" else cnn()
    x = x[:, :batch]
    want, got = reference(network, x), fast(network, x)
    assert all(s.any() for s in want.spikes.values())
    for name, spikes in want.spikes.items():
        np.testing.assert_array_equal(got.spikes[name], spikes)
        np.testing.assert_array_equal(got.v_final[name], want.v_final[name])
    several = n_threads > 1 and (batch > 1 or make == "cnn")  # a single sample of so few neurons is not cut
    assert (used == {threading.get_ident()}) == (not several)


def cnn():
    """Convolutions and a branch, graded input at every step."""
    rng = np.random.default_rng(7)
    shapes = {"a": (70, 9, 8), "b": (70, 9, 8), "c": (24, 5, 4)}
    populations = [
        Population(
            name=name, shape=shape, threshold=20_000, reset_amount=18_000, dv=40, bias=rng.integers(-99, 99, shape)
        )
        for name, shape in shapes.items()
    ]
    connections = [
        Connection(source=INPUT, target="a", synapse=Conv2d(rng.integers(-90, 100, (70, 3, 3, 3)), padding=1)),
        Connection(source="a", target="b", synapse=Conv2d(rng.integers(-90, 100, (70, 70, 3, 3)), padding=1)),
        Connection(source="a", target="b", synapse=Scale([99]), name="skip"),
        Connection(source="b", target="c", synapse=Conv2d(rng.integers(-9, 10, (24, 70, 3, 3)), padding=1, stride=2)),
    ]
    net = Network(
        name="cnn", steps=5, input=Input(shape=(3, 9, 8), high=9), populations=populations, connections=connections
    )
    return net, rng.integers(0, 10, (5, 23, 3, 9, 8))


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


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.uint8, np.bool_, np.int64, np.float32])
def test_spikes_may_be_given_in_any_type_and_order(dtype, order):
    network, x = mlp()
    want, got = fast(network, x), fast(network, np.asarray(x, dtype, order=order))
    for name, spikes in want.spikes.items():
        np.testing.assert_array_equal(got.spikes[name], spikes)


def test_arrays_that_do_not_fit_are_refused_before_the_kernel():
    p = Population(name="p", shape=(4,))
    layout = lay_out(p, [Dense(np.ones((4, 9)))])
    packed = pack(Dense(np.ones((4, 9))), (9,), (4,), layout)
    assert packed is not None
    x, spikes, v = np.zeros((2, 3, 9), np.uint8), np.zeros((2, 3, 4), np.uint8), np.zeros((3, 1, 1, 16), np.int32)
    extra, bias = np.zeros((2, 3, 1, 1, 16), np.int32), np.zeros((1, 1, 16), np.int32)

    def run(x=x, spikes=spikes, v=v, extra=extra, bias=bias, silent=0, part=None):
        arriving = [kernels.Arriving(packed, x, silent, 0)]
        run_alone(p, layout, (2, 3), arriving, extra, None, v, bias, spikes, None, part)

    run()
    for bad in (
        {"x": x[..., :8]},
        {"x": x.astype(np.int64)},
        {"x": x[..., ::-1]},
        {"x": x.astype(np.int8)},
        {"x": x[0]},
        {"x": x.astype(">i2").view(np.uint8)[..., ::2]},
        {"v": v.astype(">i4")},
        {"x": x[:1]},
        {"silent": 1},
        {"spikes": spikes[:, :2]},
        {"spikes": np.broadcast_to(spikes[..., :1], spikes.shape)},
        {"v": v[:2]},
        {"v": v.astype(np.int64)},
        {"v": v[..., :8]},
        {"extra": extra[..., :3]},
        {"extra": extra.astype(np.int64)},
        {"bias": bias[..., :4]},
        {"part": kernels.Part((0, 1), (0, 2))},
        {"part": kernels.Part((0, 2), (0, 1))},
    ):
        with pytest.raises(AssertionError):
            run(**bad)


def test_calls_that_do_not_fit_are_refused():
    p = Population(name="p", shape=(4,))
    layout, v, bias = lay_out(p, []), np.zeros((3, 1, 1, 16), np.int32), np.zeros((1, 1, 16), np.int32)

    def ready(steps):
        return kernels.prepare(p, layout, (steps, 3), [], None, None, v, bias, np.zeros((steps, 3, 4), np.uint8), None)

    assert [done[:3] for done in kernels.run([ready(2), ready(2)], 5)] == [(0, 0, 0)] * 2
    with pytest.raises(AssertionError):
        kernels.run([ready(2), ready(3)], 1)
    with pytest.raises(AssertionError):
        kernels.run([ready(2)], 0)
    good = ready(2).values
    for error, values in (
        (TypeError, (0, 1)),
        (TypeError, (0, 1, good[:-1])),
        (TypeError, (0, 1, good, (*good, 0))),
        (TypeError, (0, 1, ("x", *good[1:]))),
        (ValueError, (0, 0, good)),
        (ValueError, (99, 1, good)),
    ):
        with pytest.raises(error):
            kernels._compiled.layer_steps(*values)


def test_what_the_kernel_cannot_sum_is_left_to_numpy(monkeypatch):
    """A dense connection into neurons that lie by pixels, and weights whose offsets need more than 32 bits."""
    p = Population(name="p", shape=(2, 3, 3))
    layout = lay_out(p, [Conv2d(np.ones((2, 1, 1, 1))), Dense(np.ones((18, 5)))])
    assert pack(Dense(np.ones((18, 5))), (5,), (2, 3, 3), layout) is None
    monkeypatch.setattr(packing, "MAX_ROWS", 64 * 4)
    assert pack(Dense(np.ones((2, 5))), (5,), (2,), lay_out(p, [])) is None


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
