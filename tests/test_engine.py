"""The fast engine gives every bit of the reference: spikes, traces, membranes and overflow counts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lapilli.bounds import population_bounds
from lapilli.errors import DescriptionError
from lapilli.network import INPUT, Connection, Conv2d, Dense, Input, Network, Population, Readout, Scale
from lapilli.sim.engine import batched, kernels, neurons, sums
from lapilli.sim.engine.batched import fast
from lapilli.sim.engine.sums import Synapses, exact_dtype
from lapilli.sim.reference import reference
from strategies import cyclic_networks_with_input, networks_with_input

RUNS = ["numpy", "numpy-integer", *(f"{level}-{path}" for level in kernels.LEVELS for path in ("events", "products"))]


@pytest.fixture(autouse=True, params=RUNS)
def level(request, monkeypatch):
    """Every test here runs on NumPy, its integer products forced or not, and on every instruction set of this machine
    with each path of the sums forced."""
    name, _, path = request.param.partition("-")
    if path == "integer":
        monkeypatch.setattr(sums, "INTEGER_WORK", 0)
    monkeypatch.setattr(kernels, "path", path or "auto")
    wanted = kernels.LEVELS.index(name) if name != "numpy" else -1
    if wanted > kernels.best_level():
        pytest.skip(f"no kernels for {request.param}")
    monkeypatch.setattr(kernels, "level", wanted)
    return request.param


def assert_same(network, x, *, trace=True):
    names = [p.name for p in network.populations] if trace else []
    want, got = reference(network, x, names), fast(network, x, names)
    for what in ("spikes", "current", "u", "v", "v_final"):
        expected, found = getattr(want, what), getattr(got, what)
        assert expected.keys() == found.keys()
        for name in expected:
            assert found[name].dtype == expected[name].dtype, (what, name)
            np.testing.assert_array_equal(found[name], expected[name], f"{what} of {name}")
    assert got.wraps == want.wraps
    assert got.saturations == want.saturations
    return want


@settings(max_examples=30, deadline=None)
@given(networks_with_input(wild=True, delays=True, acyclic=False, max_steps=12))
def test_every_bit_of_wild_networks_with_delays_and_recurrence(case):
    assert_same(*case)


@settings(max_examples=20, deadline=None)
@given(networks_with_input(delays=True), st.booleans())
def test_every_bit_of_acyclic_networks_with_branches_and_delays(case, trace):
    assert_same(*case, trace=trace)


@pytest.mark.parametrize("high", [1, 100, 4095, 2**20])
@pytest.mark.parametrize("frames", [False, True])
def test_input_in_any_order_of_memory(high, frames):
    rng = np.random.default_rng(0)
    conv = Conv2d(rng.integers(-8, 8, (3, 2, 3, 3)), padding=1)
    p = Population(name="p", shape=(3, 5, 4), threshold=min(512 * high, 2**22), reset="zero")
    net_input = Input(shape=(2, 5, 4), low=0 if high == 1 else -high, high=high)
    net = Network(
        name="n",
        steps=3,
        input=net_input,
        populations=[p],
        connections=[Connection(source=INPUT, target="p", synapse=conv)],
    )
    x = rng.integers(net_input.low, high + 1, (*((3,) if frames else ()), 2, 2, 5, 4))
    want = fast(net, x).spikes["p"]
    for other in (np.asfortranarray(x), x[..., ::-1].copy()[..., ::-1], x.swapaxes(-1, -2).copy().swapaxes(-1, -2)):
        assert_same(net, other)
        np.testing.assert_array_equal(fast(net, other).spikes["p"], want)


@settings(max_examples=30, deadline=None)
@given(
    networks_with_input(wild=True, delays=True, acyclic=False, max_steps=12),
    st.sampled_from((1, 300, 1000, 5000)),
)
def test_blocks_of_any_size_give_the_same_bits(case, size):
    whole = batched.BLOCK_BYTES, batched.CACHE_BYTES
    batched.BLOCK_BYTES = batched.CACHE_BYTES = size
    try:
        assert_same(*case)
    finally:
        batched.BLOCK_BYTES, batched.CACHE_BYTES = whole


@settings(max_examples=40, deadline=None)
@given(
    cyclic_networks_with_input(),
    st.booleans(),
    st.sampled_from((1, 2, 5)),
    st.sampled_from((1, 2**14, 2**20, 2**30)),
    st.sampled_from((1, 5000, 2**21)),
)
def test_every_bit_of_cycles_with_any_threads_and_calls_of_any_length(case, trace, n_threads, work, cache):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAPILLI_THREADS", str(n_threads))
        patch.setattr(batched, "THREAD_WORK", 0)
        patch.setattr(batched, "CALL_WORK", work)
        patch.setattr(batched, "CACHE_BYTES", cache)
        assert_same(*case, trace=trace)


def dense_network(population, weight, *, steps=6, low=0, high=1, exponent=0, connections=()):
    weight = np.atleast_2d(weight)
    return Network(
        name="one",
        steps=steps,
        input=Input(shape=(weight.shape[1],), low=low, high=high),
        populations=(population,),
        connections=(
            Connection(source=INPUT, target=population.name, synapse=Dense(weight), weight_exponent=exponent),
            *connections,
        ),
    )


@pytest.mark.parametrize(
    ("high", "exponent", "fraction", "dtype"),
    [(1, 0, 6, "float32"), (2**20, 2, 6, "float64"), (2**22, 20, 6, "int64"), (1, 24, 6, "float32")],
)
def test_each_number_type_is_exact(high, exponent, fraction, dtype):
    rng = np.random.default_rng(5)
    p = Population(
        name="p", shape=(4,), threshold=2**26, reset_amount=2**25, du=700, dv=300, state_bits=32, fraction_bits=fraction
    )
    network = dense_network(p, rng.integers(-128, 128, (4, 9)), high=high, exponent=exponent)
    assert exact_dtype(network, p, list(network.connections)) == np.dtype(dtype)
    x = rng.integers(0, high + 1, (network.steps, 3, 9))
    want = assert_same(network, x)
    if dtype == "int64":
        assert want.wraps["p"] > 0


def test_a_product_just_above_the_float32_limit_goes_to_float64():
    p = Population(name="p", shape=(1,), threshold=2**30, state_bits=32, fraction_bits=0)
    network = dense_network(p, [[127, 1]], high=132_105, steps=1)  # 127 x 132105 + 1 = 2^24 + 120
    assert exact_dtype(network, p, list(network.connections)) == np.float64
    assert_same(network, np.array([[132_105, 1], [132_104, 132_105]]))


@pytest.mark.parametrize("reset", ["subtract", "zero"])
@pytest.mark.parametrize("sign", [1, -1])
def test_wraps_and_saturations_are_counted_where_they_happen(reset, sign):
    p = Population(name="p", shape=(2,), threshold=2**23 - 1, reset=reset, du=0, dv=0, bias=np.array([sign * 2**22, 0]))
    network = dense_network(p, sign * np.array([[127], [1]]), exponent=6, steps=40)
    want = assert_same(network, np.ones((3, 1), np.int64))
    assert want.wraps["p"] > 0
    assert want.saturations["p"] > 0


def test_the_narrow_loop_is_taken_and_exact_up_to_its_limit(monkeypatch):
    """An integrate-and-fire membrane that climbs to within a step of 2^23."""
    taken = []
    monkeypatch.setattr(kernels, "level", -1)
    original = neurons._steps
    monkeypatch.setattr(neurons, "_steps", lambda *a: (taken.append(a[5]), original(*a))[1])
    p = Population(name="p", shape=(3,), threshold=8_300_000, reset_amount=8_299_990, bias=np.array([1, 2, 3]))
    network = dense_network(p, [[127], [126], [125]], exponent=6, steps=16)
    assert not population_bounds(network, p).can_saturate
    want = assert_same(network, np.ones((2, 1), np.int64))
    assert want.spikes["p"].any()
    assert taken == [np.float32]


def test_a_delayed_branch_is_ordered_by_all_connections():
    """The population listed first hears a later one after a delay; no cycle, so all steps run at once."""
    a = Population(name="a", shape=(2,), threshold=63)
    b = Population(name="b", shape=(2,), threshold=63)
    network = Network(
        name="back",
        steps=5,
        input=Input(shape=(2,)),
        populations=(a, b),
        connections=(
            Connection(source="b", target="a", synapse=Dense(np.eye(2)), delay=2, weight_bits=8),
            Connection(source=INPUT, target="b", synapse=Scale([1])),
        ),
    )
    assert [p.name for p in network.flow] == ["b", "a"]
    assert network.steps_at_once == 5
    want = assert_same(network, np.array([[1, 0], [1, 1]]))
    assert want.spikes["a"].any()


def test_a_cycle_runs_as_many_steps_at_once_as_its_delay():
    p = Population(name="p", shape=(3,), threshold=200, reset_amount=150)
    network = dense_network(
        p,
        [[3], [2], [1]],
        steps=11,
        connections=(Connection(source="p", target="p", synapse=Dense(np.full((3, 3), -2)), delay=4),),
    )
    assert network.steps_at_once == 4
    want = assert_same(network, np.ones((2, 1), np.int64))
    assert want.spikes["p"].any()


def ring(sizes=(70, 5, 66), steps=40, delay=1):
    """Input into the first population, each into the next one, the last back into the first; and a readout."""
    rng = np.random.default_rng(12)
    names = [f"p{i}" for i in range(len(sizes))]
    made = [
        Population(name=n, shape=(s,), threshold=9000, reset_amount=9000, du=900, dv=90)
        for n, s in zip(names, sizes, strict=True)
    ]

    def dense(source, target, n_in, n_out, **options):
        return Connection(source=source, target=target, synapse=Dense(rng.integers(-90, 92, (n_out, n_in))), **options)

    return Network(
        name="ring",
        steps=steps,
        input=Input(shape=(30,)),
        populations=[Population(name="out", shape=(4,), reset="none"), *made],
        connections=[
            dense(INPUT, names[0], 30, sizes[0]),
            *(dense(names[i], names[i + 1], sizes[i], sizes[i + 1]) for i in range(len(names) - 1)),
            dense(names[-1], names[0], sizes[-1], sizes[0], delay=delay),
            dense(names[-1], "out", sizes[-1], 4, delay=2),
        ],
        readout=Readout(population="out", kind="membrane"),
    )


@pytest.mark.parametrize("n_threads", [1, 2])
def test_a_cycle_is_one_call_of_the_kernel_and_what_follows_is_another(monkeypatch, level, n_threads):
    if level.startswith("numpy"):
        pytest.skip("without kernels there are no calls to count")
    monkeypatch.setenv("LAPILLI_THREADS", str(n_threads))
    calls, original = [], kernels.run

    def run(layers, stride=None):
        calls.append((len(layers), stride, layers[0].window))
        return original(layers, stride)

    monkeypatch.setattr(kernels, "run", run)
    network, x = ring(), np.random.default_rng(0).integers(0, 2, (40, 1, 30))
    want = assert_same(network, x, trace=False)
    assert all(s.any() and not s.all() for s in want.spikes.values())
    assert calls == [(3, 1, (40, 1)), (1, None, (40, 1))]
    calls.clear()
    monkeypatch.setattr(batched, "CALL_WORK", 1)
    assert_same(network, x, trace=False)
    assert calls == [(3, 1, (1, 1))] * 40 + [(1, None, (40, 1))]


def test_a_cycle_whose_neurons_are_cut_into_parts_is_stepped(monkeypatch):
    """One sample, two threads and many neurons: every step is shared, which one call cannot do."""
    monkeypatch.setenv("LAPILLI_THREADS", "2")
    monkeypatch.setattr(batched, "THREAD_WORK", 100)
    used, original = [], batched._advance_in_turn
    monkeypatch.setattr(batched, "_advance_in_turn", lambda *a: (used.append(a[1]), original(*a))[1])
    assert_same(ring((600, 20), steps=9, delay=3), np.ones((1, 30), np.int64), trace=False)
    assert used == [3, 9]


def test_the_last_few_steps_of_a_cycle_may_cut_the_samples_otherwise(monkeypatch):
    """11 steps, 4 at a time: the last 3 leave room for more samples in a block; the constant current must follow."""
    p = Population(name="p", shape=(3,), threshold=200, reset_amount=150)
    back = Connection(source="p", target="p", synapse=Dense(np.full((3, 3), -2)), delay=4)
    network = dense_network(p, [[3], [2], [1]], steps=11, high=7, connections=(back,))
    monkeypatch.setattr(batched, "BLOCK_BYTES", 12 * Synapses(network, p).bytes_per_row)
    assert_same(network, np.random.default_rng(0).integers(0, 8, (50, 1)))


def test_convolutions_of_every_kind_beside_each_other():
    rng = np.random.default_rng(3)
    synapses = {
        "plain": Conv2d(rng.integers(-128, 128, (6, 4, 3, 2)), stride=(2, 3), padding=(1, 2)),
        "pool": Conv2d(np.ones((4, 1, 2, 2)), stride=(2, 3), padding=(0, 1), groups=4),
        "grouped": Conv2d(
            rng.integers(-128, 128, (6, 2, 2, 2)), stride=(2, 3), padding=(1, 1), dilation=(2, 1), groups=2
        ),
        "twice": Conv2d(
            rng.integers(-128, 128, (8, 1, 3, 3)), stride=(2, 3), padding=(1, 2), groups=4, dilation=(1, 2)
        ),
    }
    made, connections = [], []
    for name, synapse in synapses.items():
        made.append(Population(name=name, shape=synapse.output_size((4, 10, 9)), threshold=900, reset_amount=800))
        connections.append(Connection(source=INPUT, target=name, synapse=synapse))
    network = Network(
        name="convs", steps=4, input=Input(shape=(4, 10, 9), high=15), populations=made, connections=connections
    )
    want = assert_same(network, rng.integers(0, 16, (4, 3, 4, 10, 9)))
    assert all(s.any() for s in want.spikes.values())


def test_tracing_an_unknown_population_names_it():
    network = dense_network(Population(name="p", shape=(1,)), [[1]])
    with pytest.raises(DescriptionError, match="'q'"):
        fast(network, np.ones((1, 1), np.int64), ["q"])


def test_wrong_number_of_frames_is_refused():
    network = dense_network(Population(name="p", shape=(1,)), [[1]])
    with pytest.raises(DescriptionError, match="runs 6 steps"):
        fast(network, np.ones((5, 1, 1), np.int64))
