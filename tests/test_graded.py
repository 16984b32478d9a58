"""Populations that send graded spikes: their meaning, and every executor and tool beside it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lapilli
from lapilli.arithmetic import neuron_step
from lapilli.bounds import lowest_after_reset
from lapilli.deploy import check, plan
from lapilli.deploy.lava import available, run_jobs
from lapilli.deploy.lava.executor import Job
from lapilli.deploy.lava.graph import fits_stock_relu
from lapilli.errors import DescriptionError, UnsupportedError
from lapilli.export.onnx.executors import onnx_reference_executor, onnxruntime_executor
from lapilli.network import INPUT, Connection, Conv2d, Dense, Input, Network, Population, Readout
from lapilli.recording import scores
from lapilli.sim import energy, simulate, trace, verify
from lapilli.sim.engine.batched import fast
from lapilli.sim.inside.figures import raster
from lapilli.sim.inside.trace_files import save_traces
from lapilli.sim.reference import reference

V_MAX = 2**23 - 1


def population(**options):
    return Population(**({"name": "p", "shape": (1,), "payload_max": 15, "payload_shift": 6} | options))


@pytest.mark.parametrize(
    ("charged", "options", "sent", "left"),
    [
        (64 * 5 + 63, {}, 5, 64 * 5 + 63),  # floor(v / 64); without a reset amount the membrane stays
        (64 * 5 + 63, {"reset_amount": 64}, 5, 63),  # what was sent is taken away
        (64 * 5 + 63, {"reset": "zero"}, 5, 0),
        (64 * 99, {"reset_amount": 64}, 15, 64 * 84),  # no more than payload_max
        (1, {"reset_amount": 64}, 1, -63),  # at least 1 where it fires
        (0, {"reset_amount": 64}, 0, 0),  # strictly above the threshold
        (-640, {"reset_amount": 64}, 0, -640),
        (640, {"threshold": 640}, 0, 640),
        (641, {"threshold": 640, "reset_amount": 100}, 10, -359),  # rho need not be 2^g
        (7, {"payload_shift": 0, "reset_amount": 1}, 7, 0),
        (V_MAX, {"payload_max": V_MAX, "payload_shift": 0, "reset_amount": 1}, V_MAX, 0),
        (V_MAX, {"payload_max": 1, "payload_shift": 0, "reset_amount": 9}, 1, V_MAX - 9),  # a plain spike
    ],
)
def test_a_spike_carries_the_charged_membrane_in_units_of_two_to_the_shift(charged, options, sent, left):
    zero = np.zeros((1, 1), np.int64)
    step = neuron_step(population(**options), zero, zero, zero + charged)
    assert (int(step.spikes[0, 0]), int(step.v[0, 0])) == (sent, left)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"payload_max": 0}, "payload_max 0 is outside 1..8388607"),
        ({"payload_max": -3}, "payload_max -3 is outside"),
        ({"payload_max": 2**23, "payload_shift": 0, "state_bits": 32}, "payload_max 8388608 is outside"),
        ({"payload_max": 2.5}, "2.5 is not an integer"),
        ({"payload_max": True}, "True is not an integer"),
        ({"payload_shift": -1}, "payload_shift -1 is outside 0..23"),
        ({"payload_shift": 24}, "payload_shift 24 is outside 0..23"),
        ({"payload_shift": 20}, "payload_max 15 is out of the membrane's reach, 8388607 >> 20 = 7"),
        ({"reset_amount": 2**20}, "a spike of 15 subtracts 15 x 1048576, more than 8388607"),
        ({"reset": "none"}, "reset 'none', which sends nothing"),
        ({"payload_max": 1}, "payload_shift 6 without graded spikes"),
    ],
)
def test_payloads_that_make_no_sense_are_refused(options, line):
    with pytest.raises(DescriptionError, match="population 'p'") as refused:
        population(**options)
    assert line in str(refused.value)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_the_lowest_membrane_after_a_reset_is_found(data):
    reset = data.draw(st.sampled_from(("subtract", "zero")))
    shift = data.draw(st.integers(0, 5))
    payload = data.draw(st.integers(1, 511 >> shift))
    p = population(
        state_bits=10,
        payload_max=payload,
        payload_shift=shift if payload > 1 else 0,
        threshold=data.draw(st.integers(0, 500)),
        reset=reset,
        reset_amount=data.draw(st.integers(0, 511 // payload)) if reset == "subtract" else 0,
        fraction_bits=0,
    )
    charged = np.arange(p.threshold + 1, p.v_max + 1)[None]
    step = neuron_step(replace(p, shape=charged.shape[1:]), 0 * charged, 0 * charged, charged)
    assert step.spikes.min() >= 1
    assert lowest_after_reset(p) == step.v.min()


def counting(name, shape, **options):
    """Neurons without memory that send on how much they are sent."""
    return Population(
        **(
            {"name": name, "shape": shape, "reset": "zero", "dv": 4096, "payload_max": 255, "payload_shift": 6}
            | options
        )
    )


def test_pooling_kept_apart_is_the_network_in_which_it_was_merged():
    """Decision 0004: four spikes of a window are one message, and what follows is the same to the last bit."""
    rng = np.random.default_rng(3)
    pool, kernel = np.ones((3, 1, 2, 2), np.int64), rng.integers(-60, 61, (5, 3, 2, 2))
    before = Population(name="before", shape=(3, 6, 6), threshold=64 * 40, reset_amount=64 * 40, bias=[13])
    after = Population(name="after", shape=(5, 2, 2), threshold=64 * 40, reset_amount=64 * 30)
    first = Connection(source=INPUT, target="before", synapse=Conv2d(np.array([2, 3, 5]).reshape(3, 1, 1, 1)))
    merged = Conv2d(np.kron(kernel, np.ones((2, 2), np.int64)), stride=2)
    apart = Conv2d(kernel)

    def net(populations, connections):
        return Network(
            name="pooled",
            steps=12,
            input=Input(shape=(1, 6, 6), high=15),
            populations=[before, *populations],
            connections=[first, *connections],
            readout=Readout(population="after"),
        )

    one = net([after], [Connection(source="before", target="after", synapse=merged)])
    two = net(
        [counting("pool", (3, 3, 3), payload_max=4), after],
        [
            Connection(source="before", target="pool", synapse=Conv2d(pool, stride=2, groups=3)),
            Connection(source="pool", target="after", synapse=apart),
        ],
    )
    x = rng.integers(0, 16, (7, 1, 6, 6))
    mine, theirs = (simulate(n, x, record={"after": "spikes"}) for n in (one, two))
    np.testing.assert_array_equal(mine.spikes["after"], theirs.spikes["after"])
    assert theirs.spike_totals["after"] > 20
    np.testing.assert_array_equal(mine.scores, theirs.scores)
    assert sum(theirs.synop_totals.values()) < 0.8 * sum(mine.synop_totals.values())
    # Messages are counted as such, and what they carried apart from that.
    assert int(theirs.payloads["pool"].sum()) == theirs.spike_totals["before"]
    assert theirs.mean_payloads["pool"] == theirs.spike_totals["before"] / theirs.spike_totals["pool"] > 1.5
    assert theirs.rates["pool"] <= 1


def test_a_graded_soft_reset_loses_nothing():
    """Integrate and send ``v / 2^g``: all that came in was sent or is still there."""
    p = Population(name="p", shape=(20,), threshold=63, reset_amount=64, payload_max=2**17 - 1, payload_shift=6)
    rng = np.random.default_rng(0)
    w = rng.integers(0, 128, (20, 6))
    n = Network(
        name="sums",
        steps=5,
        input=Input(shape=(6,), high=99),
        populations=[p],
        connections=[Connection(source=INPUT, target="p", synapse=Dense(w), weight_exponent=-5)],
        readout=Readout(population="p"),
    )
    x = rng.integers(0, 100, (3, 6))
    run = reference(n, x)
    total = 5 * 2 * (x @ w.T)
    np.testing.assert_array_equal(64 * scores(n, run) + run.v_final["p"] if "p" in run.v_final else total, total)
    v = reference(n, x, ["p"]).v["p"][-1]
    np.testing.assert_array_equal(64 * scores(n, run) + v, total)
    assert v.min() >= 0
    assert v.max() <= 63


def wide(payload=2**23 - 1, **options):
    """Payloads of all 23 bits over every kind of connection: delayed, recurrent, in groups, dense."""
    rng = np.random.default_rng(7)
    unit = {"payload_max": payload, "payload_shift": 0, "reset": "zero", "dv": 1000}
    return Network(
        name="wide",
        steps=6,
        input=Input(shape=(2, 4, 4), high=1023),
        populations=[
            Population(name="a", shape=(2, 4, 4), **unit),
            Population(name="b", shape=(4, 3, 3), threshold=5, **unit | {"state_bits": 32}),
            Population(name="c", shape=(6,), threshold=2**22, reset_amount=2**21, state_bits=32),
        ],
        connections=[
            Connection(source=INPUT, target="a", synapse=Dense(rng.integers(-20, 128, (32, 32)))),
            Connection(source="a", target="b", synapse=Conv2d(rng.integers(-4, 4, (4, 1, 2, 2)), groups=2)),
            Connection(
                source="a", target="c", synapse=Dense(rng.integers(-2, 2, (6, 32))), delay=2, weight_exponent=-5
            ),
            Connection(source="b", target="c", synapse=Dense(rng.integers(-2, 2, (6, 36))), weight_exponent=-6),
            Connection(source="b", target="b", synapse=Conv2d(rng.integers(-1, 2, (4, 4, 3, 3)), padding=1), delay=1),
        ],
        readout=Readout(population="b", kind="weighted_count", decay=100),
        **options,
    )


@pytest.mark.parametrize("payload", [3, 255, 256, 2**23 - 1])
def test_every_executor_sends_equal_payloads(payload):
    net = wide(payload)
    x = np.random.default_rng(1).integers(0, 1024, (5, 2, 4, 4))
    want = reference(net, x)
    assert want.spikes["b"].max() == payload
    assert want.spikes["b"].dtype == np.int32
    assert want.spikes["c"].dtype == np.uint8
    assert verify(net, x, against=("fast", "torch", "onnxruntime")).equal
    small = x[:2]
    for executor in (onnxruntime_executor, onnx_reference_executor, fast):
        found = executor(net, small)
        for name, spikes in want.spikes.items():
            assert found.spikes[name].dtype == spikes.dtype
            np.testing.assert_array_equal(found.spikes[name], spikes[:, :2])


def test_a_file_of_version_2_is_read_back_and_the_rest_stays_version_1(tmp_path):
    net = wide()
    assert net.format_version == 2
    path = lapilli.save(net, tmp_path / "graded.onnx")
    assert lapilli.load(path) == net
    plain = replace(net, populations=[replace(p, payload_max=1) for p in net.populations])
    assert plain.format_version == plain.structure()["format_version"] == 1
    assert all("payload_max" not in p for p in plain.structure()["populations"])
    assert plain.digest() != net.digest()
    assert lapilli.load(lapilli.save(plain, tmp_path / "plain.onnx")) == plain


def test_what_cannot_say_or_run_graded_spikes_refuses_them_by_name(tmp_path):
    net = Network(
        name="small",
        steps=3,
        input=Input(shape=(2,)),
        populations=[counting("hidden", (3,)), Population(name="out", shape=(2,), reset="none")],
        connections=[
            Connection(source=INPUT, target="hidden", synapse=Dense(np.ones((3, 2)))),
            Connection(source="hidden", target="out", synapse=Dense(np.ones((2, 3)))),
        ],
        readout=Readout(population="out", kind="membrane"),
    )
    for name, options in (("net.nir", {"dt": 1e-3}), ("net.net", {})):
        with pytest.raises(UnsupportedError, match="population 'hidden': graded spikes") as refused:
            lapilli.save(net, tmp_path / name, **options)
        assert "\n" not in str(refused.value)
        assert not (tmp_path / name).exists()
    torch = pytest.importorskip("torch")
    from lapilli.train.bit_true import BitTrueNetwork

    assert torch is not None
    with pytest.raises(UnsupportedError, match="population 'hidden' sends graded spikes"):
        BitTrueNetwork(net)
    with pytest.raises(
        UnsupportedError, match=r"population 'hidden': sends graded spikes, and Intel Loihi 1 .* has binary"
    ):
        plan(net, "loihi1")
    (violation,) = [v for v in check(net, "loihi1") if v.rule == "payloads_fit"]
    assert (violation.where, violation.limit, violation.severity) == (
        "population 'hidden'",
        "spikes are binary",
        "error",
    )
    assert {v.severity for v in check(net, "loihi2")} <= {"note"}
    assert plan(net, "loihi2").cores == 2


def test_costs_count_messages_and_multiplications_and_say_what_is_unknown():
    net = wide(255)
    x = np.random.default_rng(2).integers(0, 1024, (4, 2, 4, 4))
    run = simulate(net, x)
    loihi2, loihi1 = energy(net, run, "loihi2"), energy(net, run, "loihi1")
    assert any("no source says what its payload adds" in note for note in loihi2.notes)
    assert loihi1.energy is None
    assert "population 'a': sends graded spikes, and Intel Loihi 1 (14 nm) has binary ones" in loihi1.reason
    by_name = {c.name: c for c in loihi2.connections}
    sent = reference(net, x).spikes["b"]
    assert by_name["b->c"].synops * 4 == run.synop_totals["b->c"]
    assert run.spike_totals["b"] == np.count_nonzero(sent)
    assert int(run.payloads["b"].sum()) == sent.sum()
    macs = sum(n for name, n in run.synop_totals.items()) / 4
    assert loihi2.comparison.effective_macs == macs  # every connection carries more than 0 and 1
    assert loihi2.comparison.effective_acs == 0


def test_traces_hold_payloads_and_a_raster_shows_them(tmp_path):
    net = wide(255)
    x = np.random.default_rng(2).integers(0, 1024, (2, 2, 4, 4))
    traces = trace(net, x, ["b[1]", "c"], samples=[1])
    sent = reference(net, x).spikes["b"]
    np.testing.assert_array_equal(traces.spikes["b"][:, 0], sent[:, 1].reshape(6, -1)[:, 9:18])
    assert traces.about()["populations"]["b"]["payload_max"] == 255
    with np.load(save_traces(traces, tmp_path / "t.npz")) as saved:
        np.testing.assert_array_equal(saved["b/spikes"], traces.spikes["b"])
    text = raster(traces, tmp_path / "raster.svg").read_text()
    assert f"up to {traces.spikes['b'].max():,}" in text


FAULTS = {
    "its spikes are plain, 1 instead of a payload": {"payload_max": 1, "payload_shift": 0},
    "its payload is the membrane shifted right by 5 instead of 6": {"payload_shift": 5},
    "it does not limit payloads to 15": {"payload_max": 2**17 - 1},
}


@pytest.mark.parametrize("cause", FAULTS)
def test_another_payload_is_named_as_the_cause(cause):
    rng = np.random.default_rng(4)
    p = population(shape=(8,), reset="zero", dv=500, threshold=200)
    net = Network(
        name="faulty",
        steps=8,
        input=Input(shape=(6,), high=40),
        populations=[p],
        connections=[Connection(source=INPUT, target="p", synapse=Dense(rng.integers(-8, 9, (8, 6))))],
        readout=Readout(population="p"),
    )
    other = replace(net, populations=[replace(p, **FAULTS[cause])])

    def wrong(_, x, trace=()):
        found = reference(other, x, trace)
        found.spikes["p"] = found.spikes["p"].astype(np.int32)
        return found

    found = verify(net, rng.integers(0, 41, (9, 6)), against=[("wrong", wrong)])
    assert found.first_divergence is not None
    assert cause in found.first_divergence.causes


def relu(weight=((40, -7),), exponent=0, **options):
    """Neurons without memory behind two inputs of 0..3, in a chain."""
    neurons = {"payload_max": 4 * 120, "threshold": 64 * 9} | options
    return Network(
        name="relu",
        steps=5,
        input=Input(shape=(2,), high=3),
        populations=[counting("a", (1,), **neurons), Population(name="b", shape=(1,), threshold=400, reset_amount=300)],
        connections=[
            Connection(source=INPUT, target="a", synapse=Dense(weight), weight_exponent=exponent),
            Connection(source="a", target="b", synapse=Dense([[3]]), weight_exponent=-6),
        ],
    )


@pytest.mark.parametrize(
    ("options", "fits"),
    [
        ({}, True),
        ({"payload_max": 120}, True),
        ({"payload_max": 119}, False),  # 3 x 40 would be cut
        ({"payload_shift": 5}, False),
        ({"exponent": -1, "payload_shift": 5}, True),
        ({"dv": 4095}, False),
        ({"du": 4095}, False),
        ({"bias": [64]}, False),
        ({"state_bits": 13, "payload_max": 60}, False),  # the membrane saturates at 63 units
        ({"payload_max": 1, "payload_shift": 0}, False),
        ({"reset": "subtract", "reset_amount": 7}, True),  # what is left of it decays at once
    ],
)
def test_the_stock_graded_neuron_is_used_where_it_is_exact(options, fits):
    net = relu(**options)
    assert fits_stock_relu(net, net.population("a")) == fits


@pytest.mark.lava
@pytest.mark.skipif(not available(), reason="lava-nc is not installed")
def test_lava_sends_equal_payloads():
    rng = np.random.default_rng(1)
    nets = [wide(2**12), relu(), relu(threshold=0, exponent=-1, payload_shift=5), relu(dv=4000)]
    jobs = [Job(n, rng.integers(0, n.input.high + 1, (4, *n.input.shape)), ("b",)) for n in nets]
    for job, run in zip(jobs, run_jobs(jobs, timeout=400), strict=True):
        want = reference(job.network, job.x, ["b"])
        assert want.spikes["a"].max() > 1
        assert want.spikes["b"].any()
        for name, spikes in want.spikes.items():
            np.testing.assert_array_equal(run.recording.spikes[name], spikes)
            assert run.recording.spikes[name].dtype == spikes.dtype
        np.testing.assert_array_equal(run.recording.v["b"], want.v["b"])
