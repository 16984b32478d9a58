"""The executor torch gives every bit of the reference, for every description, on every device and in every memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lapilli.errors import ExecutionError, UnsupportedError
from lapilli.network import INPUT, Connection, Conv2d, Dense, Input, Network, Population, Readout
from lapilli.recording import scores
from lapilli.sim import simulate
from lapilli.sim.executors import find, for_device
from lapilli.sim.reference import reference
from lapilli.train import executor, integer_forward
from lapilli.train.executor import torch_executor
from strategies import networks_with_input

WILD = {"wild": True, "delays": True, "acyclic": False, "max_steps": 12}


def assert_same(network, x, execute=torch_executor):
    names = [p.name for p in network.populations]
    want, got = reference(network, x, names), execute(network, x, names)
    for what in ("spikes", "v_final", "current", "u", "v"):
        expected, found = getattr(want, what), getattr(got, what)
        assert expected.keys() == found.keys(), what
        for name in expected:
            assert found[name].dtype == expected[name].dtype
            np.testing.assert_array_equal(found[name], expected[name], err_msg=f"{what} of {name}")
    assert got.wraps == want.wraps
    assert got.saturations == want.saturations
    if network.readout is not None:
        np.testing.assert_array_equal(scores(network, got), scores(network, want))
    return want


@settings(max_examples=60, deadline=None)
@given(networks_with_input(delays=True, acyclic=False), st.sampled_from([1, 2**24]))
def test_every_bit_whatever_number_of_steps_is_taken_at_once(case, chunk):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(integer_forward, "CHUNK_ELEMENTS", chunk)
        assert_same(*case)


@settings(max_examples=60, deadline=None)
@given(networks_with_input(**WILD))
def test_every_bit_where_states_overflow(case):
    assert_same(*case)


@settings(max_examples=60, deadline=None)
@given(networks_with_input(**WILD), st.booleans())
def test_every_bit_of_the_way_accelerators_take(case, float64):
    """Convolutions as matrix products, and, without float64, int64 states and products of a few bits at a time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(integer_forward, "_by_matrices", lambda _device: True)
        patch.setattr(integer_forward, "_has_float64", lambda _device: float64)
        assert_same(*case)


@pytest.mark.parametrize("float64", [True, False])
@pytest.mark.parametrize("state_bits", [8, 24])
@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 255), (0, 2**23 - 1), (-(2**23), 2**23 - 1)])
@pytest.mark.parametrize("dv", [0, 200])
def test_sums_at_the_edge_of_every_number_type(float64, state_bits, low, high, dv, monkeypatch):
    """Worst-case weights: float32, float64, int64, sums of digits, and the wrap of each."""
    monkeypatch.setattr(integer_forward, "_has_float64", lambda _device: float64)
    rng = np.random.default_rng(0)
    weight = np.where(rng.random((6, 800)) < 0.99, 127, -128)
    network = Network(
        name="edge",
        steps=4,
        input=Input(shape=(800,), low=low, high=high),
        populations=[
            Population(
                name="a", shape=(6,), threshold=100, reset_amount=90, dv=dv, state_bits=state_bits, fraction_bits=6
            )
        ],
        connections=[Connection(source=INPUT, target="a", synapse=Dense(weight))],
        readout=Readout(population="a"),
    )
    x = np.where(rng.random((3, 800)) < 0.9, high, rng.integers(low, high + 1, (3, 800)))
    x[2] = low
    want = assert_same(network, x)
    assert want.saturations["a"] or want.wraps["a"] or high == 1


def test_sums_beyond_float64_are_exact():
    p = Population(name="a", shape=(2,), threshold=10, reset_amount=10, fraction_bits=20, du=700, state_bits=32)
    feed = Connection(source=INPUT, target="a", synapse=Dense([[127, -128, 1], [-3, 2, 99]]), weight_exponent=24)
    network = Network(
        name="wide", steps=3, input=Input(shape=(3,), high=2**23 - 1), populations=[p], connections=[feed],
        readout=Readout(population="a"),
    )  # fmt: skip
    want = assert_same(network, np.array([[2**23 - 1, 2**23 - 1, 5], [1, 2, 3]]))
    assert want.wraps["a"] > 0


def test_more_synapses_than_float32_sums_are_refused_by_name(monkeypatch):
    monkeypatch.setattr(integer_forward, "_has_float64", lambda _device: False)
    wide = Dense(np.full((1, 2**17), -128, np.int8))
    network = Network(
        name="wide",
        steps=1,
        input=Input(shape=(2**17,)),
        populations=[Population(name="a", shape=(1,), threshold=10, reset_amount=10)],
        connections=[Connection(source=INPUT, target="a", synapse=wide)],
    )
    with pytest.raises(UnsupportedError, match=r"'input->a': 131072 synapses"):
        torch_executor(network, np.ones((1, 2**17), np.int64))


@pytest.mark.parametrize("high", [255, 1000])
def test_autocast_and_low_precision_do_not_touch_the_integers(high):
    rng = np.random.default_rng(1)
    network = Network(
        name="conv",
        steps=2,
        input=Input(shape=(8, 12, 12), high=high),
        populations=[
            Population(name="a", shape=(8, 12, 12), threshold=1000, reset_amount=1000),
            Population(name="b", shape=(40,), threshold=1000, reset_amount=1000),
        ],
        connections=[
            Connection(source=INPUT, target="a", synapse=Conv2d(rng.integers(-128, 128, (8, 8, 3, 3)), padding=1)),
            Connection(source=INPUT, target="b", synapse=Dense(rng.integers(-128, 128, (40, 8 * 12 * 12)))),
        ],
        readout=Readout(population="a"),
    )
    x = rng.integers(0, high + 1, (20, 8, 12, 12))
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert_same(network, x)
    finally:
        torch.set_float32_matmul_precision(precision)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@settings(max_examples=40, deadline=None)
@given(networks_with_input(**WILD))
def test_cuda_equals_the_reference(case):
    assert_same(*case, execute=find("torch:cuda"))


@settings(max_examples=20, deadline=None)
@given(networks_with_input(**WILD), st.integers(1, 3))
def test_samples_that_do_not_fit_into_memory_run_in_parts(case, room):
    network, x = case
    real, seen = integer_forward.run, []

    def small_device(net, part, *args, **options):
        seen.append(part.shape[part.ndim - len(net.input.shape) - 1])
        if seen[-1] > room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return real(net, part, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(executor, "run", small_device)
        assert_same(network, x)
        assert min(seen) <= room
        room = 0
        with pytest.raises(ExecutionError, match="'cpu' has not enough memory for one sample of network 'random'"):
            torch_executor(network, x)


def test_other_failures_of_torch_pass_through(monkeypatch):
    def broken(*_args, **_options):
        raise RuntimeError("illegal instruction")

    monkeypatch.setattr(executor, "run", broken)
    network = Network(
        name="one",
        steps=1,
        input=Input(shape=(1,)),
        populations=[Population(name="a", shape=(1,), threshold=1)],
        connections=[Connection(source=INPUT, target="a", synapse=Dense([[1]]))],
    )
    with pytest.raises(RuntimeError, match="illegal"):
        torch_executor(network, np.ones((2, 1), np.int64))


def test_a_device_is_part_of_the_name():
    assert for_device("torch", "cuda:1") == for_device(None, "cuda:1") == "torch:cuda:1"
    assert [for_device(None, None), for_device(None, "cpu"), for_device("torch", "cpu")] == ["fast", "fast", "torch"]
    with pytest.raises(UnsupportedError, match="'fast' does not run on device 'cuda'"):
        for_device("fast", "cuda")
    network = Network(
        name="one",
        steps=2,
        input=Input(shape=(1,)),
        populations=[Population(name="a", shape=(1,), threshold=1)],
        connections=[Connection(source=INPUT, target="a", synapse=Dense([[2]]))],
    )
    run = simulate(network, np.ones((3, 1), np.int64), engine="torch:cpu")
    assert run.engine == "torch:cpu"
    np.testing.assert_array_equal(run.counts["a"], [[2], [2], [2]])


@pytest.mark.parametrize("name", ["torch:cuda:99", "torch:abacus", "torch:meta", "torch:", "fast:cuda"])
def test_a_device_that_is_absent_is_one_line(name):
    with pytest.raises(UnsupportedError) as caught:
        find(name)
    assert name.partition(":")[2] in str(caught.value)
    assert "\n" not in str(caught.value)
