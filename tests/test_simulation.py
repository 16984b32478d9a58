"""simulate: counts, operations, recordings and errors."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lapilli.sim
from lapilli.errors import DataError, DescriptionError, MissingDependencyError, UnsupportedError
from lapilli.network import INPUT, Connection, Dense, Input, Network, Population, Readout
from lapilli.recording import at_every_step
from lapilli.sim import executors, simulate
from lapilli.sim.equivalence.synapse_faults import fan_in
from lapilli.sim.reference import reference
from lapilli.sim.simulation import count_dtype
from strategies import networks_with_input


@settings(max_examples=50, deadline=None)
@given(
    networks_with_input(delays=True, acyclic=False),
    st.sampled_from(("fast", "reference")),
    st.sampled_from((1, 2, None)),
)
def test_counts_and_synops_equal_counting_by_hand(case, engine, batch):
    network, x = case
    recording = reference(network, x)
    run = simulate(network, x, engine, batch=batch)
    frames = at_every_step(network, x)
    sent = {INPUT: frames != 0} | {name: s.astype(bool) for name, s in recording.spikes.items()}
    assert (run.steps, run.n_samples) == frames.shape[:2]
    for name, s in recording.spikes.items():
        np.testing.assert_array_equal(run.counts[name], np.count_nonzero(s, axis=0))
        assert run.counts[name].dtype == np.int64
        assert run.rates[name] == pytest.approx((s != 0).mean())
        assert run.spike_totals[name] == run.neuron_updates[name].active == np.count_nonzero(s)
    assert run.payloads.keys() == {p.name for p in network.populations if p.graded}
    for name, sums in run.payloads.items():
        np.testing.assert_array_equal(sums, recording.spikes[name].sum(axis=0, dtype=np.int64))
    for name, s in sent.items():
        np.testing.assert_array_equal(run.events[name], s.sum(axis=(0, 1)))
        np.testing.assert_array_equal(run.events_per_step[name], s.reshape(len(s), -1).sum(axis=1))
    np.testing.assert_array_equal(run.input_events, np.moveaxis(sent[INPUT], 1, 0).reshape(run.n_samples, -1).sum(1))
    for c in network.connections:
        # One target neuron at a time: its synapses with a non-zero weight, times the events that their sources sent.
        by_hand = np.zeros(frames.shape[:2], np.int64)
        target = network.population(c.target)
        events = sent[c.source].reshape(*frames.shape[:2], -1)
        for neuron in range(target.size):
            into = fan_in(c.synapse, network.shape_of(c.source), target.shape, neuron)
            by_hand += events[..., into.sources[into.weights != 0]].sum(axis=2)
        np.testing.assert_array_equal(run.synops[c.name], by_hand.sum(axis=0))
        np.testing.assert_array_equal(run.synops_per_step[c.name], by_hand.sum(axis=1))
        assert run.synop_totals[c.name] == by_hand.sum()
    assert run.neuron_updates["p0"].total == network.population("p0").size * frames.shape[0] * frames.shape[1]


@settings(max_examples=25, deadline=None)
@given(networks_with_input(wild=True), st.sampled_from((1, 3, None)))
def test_recordings_are_the_references(case, batch):
    network, x = case
    names = [p.name for p in network.populations]
    want = reference(network, x, names)
    run = simulate(
        network,
        x,
        record={
            p.name: ("spikes", "u", "v", "current") if p.spikes else ("u", "v", "current") for p in network.populations
        },
        batch=batch,
    )
    for what in ("spikes", "u", "v", "current"):
        for name in getattr(want, what):
            np.testing.assert_array_equal(getattr(run, what)[name], getattr(want, what)[name])
    assert run.wraps == want.wraps
    assert run.saturations == want.saturations


def small(readout="count", **population):
    weight = np.array([[3, 0], [0, 2], [-1, 1]])
    last = Population(name="p", shape=(3,), **({"threshold": 100, "reset_amount": 100} | population))
    return Network(
        name="small",
        steps=4,
        input=Input(shape=(2,), high=15, scale=[1 / 15]),
        populations=(last,),
        connections=(Connection(source=INPUT, target="p", synapse=Dense(weight)),),
        readout=Readout(population="p", kind=readout) if readout else None,
    )


def test_real_values_are_encoded_and_classes_predicted():
    run = simulate(small(), np.array([[0.5, 0.0], [0.0, 1.0]]))
    # 8 x 3 x 64 per step is far above theta; the count is every step. Neuron 2 sums -1 x 8, never fires.
    np.testing.assert_array_equal(run.counts["p"], [[4, 0, 0], [0, 4, 4]])
    np.testing.assert_array_equal(run.scores, run.counts["p"])
    assert run.predictions.tolist() == [0, 1]
    assert run.accuracy([0, 2]) == 0.5
    assert run.input_events.tolist() == [4, 4]
    assert run.synops["input->p"].tolist() == [8, 8]
    assert run.engine == "fast"


@pytest.mark.parametrize(("steps", "size"), [(255, 1), (256, 2), (70_000, 4)])
def test_counts_are_kept_narrow_and_never_wrap(steps, size):
    net = replace(small(), steps=steps)
    run = simulate(net, np.array([[0.5, 0.0]] * 3))
    assert run.counts["p"].tolist() == [[steps, 0, 0]] * 3
    assert run.counts["p"].dtype == np.int64
    assert count_dtype(net).itemsize == size


def test_only_what_is_asked_for_is_kept():
    run = simulate(small(), np.zeros((1, 2)), record={"p": "v"})
    assert run.v["p"].shape == (4, 1, 3)
    assert run.spikes == run.u == run.current == {}


def test_overflows_are_told_by_population():
    run = simulate(small(bias=[2**22, 0, 0], threshold=2**23 - 1, reset_amount=0), np.ones((2, 2)))
    assert run.overflows == {"p": {"wraps": 0, "saturations": 6}}
    assert "saturated 6 times" in run.overflow_text
    assert "no overflow" in simulate(small(), np.ones((1, 2))).overflow_text


def test_the_summary_is_json():
    run = simulate(small(), np.ones((3, 2)))
    summary = json.loads(json.dumps(run.to_json()))
    assert summary["samples"] == 3
    assert summary["synops"] == {"input->p": 48}
    assert summary["neuron_updates"]["p"] == {"total": 36, "active": 36, "inactive": 0} | {
        "active": run.spike_totals["p"],
        "inactive": 36 - run.spike_totals["p"],
    }


def test_progress_counts_samples():
    seen = []
    simulate(small(), np.ones((5, 2)), batch=2, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(2, 5), (4, 5), (5, 5)]


def test_an_executor_can_be_given_itself():
    assert simulate(small(), np.ones((1, 2)), reference).engine == "reference"


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"x": np.ones((3, 5))}, DataError, "does not fit"),
        ({"x": np.float64(1.0)}, DataError, "does not fit"),
        ({"x": np.ones((0, 2))}, DataError, "no sample"),
        ({"x": np.ones((4, 0, 2))}, DataError, "no sample"),
        ({"x": np.ones((3, 2, 2))}, DataError, "runs 4 steps; the input has 3 frames"),
        ({"x": np.full((1, 2), np.nan)}, DataError, "not finite"),
        ({"batch": 0}, DataError, "batch 0"),
        ({"batch": -3}, DataError, "batch -3"),
        ({"engine": "warp"}, UnsupportedError, "no executor 'warp'; lapilli has reference, fast"),
        ({"record": {"q": "v"}}, DescriptionError, "no population 'q'"),
        ({"record": {"p": "w"}}, DescriptionError, "there is no 'w'; choose from spikes, u, v, current"),
        ({"record": {"p": ("v", "x")}}, DescriptionError, "there is no 'x'"),
    ],
)
def test_mistakes_give_one_clear_line(arguments, error, says):
    with pytest.raises(error, match=says) as caught:
        simulate(**({"net": small(), "x": np.ones((3, 2))} | arguments))
    assert "\n" not in str(caught.value)


def test_labels_that_do_not_fit_are_refused():
    run = simulate(small(), np.ones((3, 2)))
    with pytest.raises(DataError, match="one label per sample"):
        run.accuracy([0, 1])
    run = simulate(small(readout=None), np.ones((3, 2)))
    assert run.scores is None
    assert run.predictions is None
    with pytest.raises(DataError, match="no readout"):
        run.accuracy([0, 1, 2])


def test_a_readout_accumulator_cannot_have_its_spikes_recorded():
    with pytest.raises(DescriptionError, match="does not spike"):
        simulate(small("membrane", reset="none", threshold=0, reset_amount=0), np.ones((1, 2)), record={"p": "spikes"})


def test_a_missing_package_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(executors._PLACES, "absent", "no_such_package_here:run")
    with pytest.raises(MissingDependencyError, match="needs the package 'no_such_package_here'"):
        executors.find("absent")


def test_every_executor_name_is_listed():
    assert executors.names() == ("reference", "fast", "torch", "onnxruntime", "onnx-reference", "lava", "netx")


def test_importing_and_simulating_imports_nothing_heavy():
    code = """
import sys, numpy as np, lapilli.sim
from lapilli.network import *
from lapilli.sim import simulate
p = Population(name="p", shape=(1,), threshold=1)
n = Network(name="n", steps=2, input=Input(shape=(1,)), populations=(p,),
            connections=(Connection(source="input", target="p", synapse=Dense([[1]])),))
simulate(n, np.ones((1, 1)))
heavy = {"torch", "onnx", "onnxruntime", "lava", "matplotlib", "sklearn", "pydantic"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_room_names_what_it_has():
    assert {"simulate", "verify", "Run", "Equivalence", "energy", "write_report"} <= set(dir(lapilli.sim))
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = lapilli.sim.nothing_of_the_kind
