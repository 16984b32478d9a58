"""verify: equal executors are equal; one flipped bit is found at the right place, with its cause."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from lapilli import arithmetic
from lapilli.errors import DataError, ExecutionError, UnsupportedError
from lapilli.network import INPUT, Connection, Conv2d, Dense, Input, Network, Population, Readout
from lapilli.recording import Recording, at_every_step
from lapilli.sim import verify
from lapilli.sim.engine.batched import fast
from lapilli.sim.reference import reference
from strategies import networks_with_input


def first_by_brute_force(network, mine, theirs):
    """(sample, step, population, neuron) of the first differing spike, by looking at every spike in order."""
    for sample in range(next(iter(mine.spikes.values())).shape[1]):
        for step in range(network.steps):
            for p in network.order:
                if p.spikes:
                    a, b = mine.spikes[p.name][step, sample].ravel(), theirs.spikes[p.name][step, sample].ravel()
                    for neuron in range(p.size):
                        if a[neuron] != b[neuron]:
                            return sample, step, p.name, neuron
    return None


def with_population(network, name, **changes):
    return replace(network, populations=[replace(p, **changes) if p.name == name else p for p in network.populations])


def with_weight(network, name, place, value):
    connections = []
    for c in network.connections:
        if c.name == name:
            weight = c.synapse.weight.copy()
            weight[place] = value
            c = replace(c, synapse=replace(c.synapse, weight=weight), weight_bits=8)
        connections.append(c)
    return replace(network, connections=connections)


def running(changed):
    """An executor that runs another network than it is given."""
    return lambda network, x, trace=(): reference(changed, x, trace)


def floor_decay(x, d):
    return x * (4096 - d) // 4096


def rounding_down(network, x, trace=()):
    original = arithmetic.decay
    arithmetic.decay = floor_decay
    try:
        return reference(network, x, trace)
    finally:
        arithmetic.decay = original


def leaking_state(network, x, trace=()):
    """Runs the batch back to back without a reset in between."""
    frames = at_every_step(network, x)
    steps, batch = frames.shape[:2]
    long = replace(network, steps=steps * batch)
    out = reference(long, np.moveaxis(frames, 1, 0).reshape(steps * batch, 1, *frames.shape[2:]), trace)

    def apart(values):
        return {k: np.moveaxis(v.reshape(batch, steps, *v.shape[2:]), 0, 1) for k, v in values.items()}

    v = apart(out.v)
    return Recording(apart(out.spikes), {k: a[-1] for k, a in v.items()}, apart(out.current), apart(out.u), v)


def blind(executor):
    """The same executor, unable to show what is inside."""

    def run(network, x, trace=()):
        out = executor(network, x)
        return Recording(out.spikes, out.v_final)

    return run


def assert_found(network, x, executor, **options):
    """Verify and hold the place to brute force; the divergence, or None if the executor happens to agree."""
    result = verify(network, x, [("other", executor)], **options)
    place = first_by_brute_force(network, reference(network, x), executor(network, x))
    divergence = result.executors["other"].first_divergence
    if place is None:
        assert result.executors["other"].spikes_differing == 0
        return None
    assert not result.equal
    assert (divergence.sample, divergence.step, divergence.population, divergence.neuron) == place
    assert divergence == result.first_divergence
    assert divergence.causes
    return divergence


def layered(*, steps=12, reset="subtract", du=4096, dv=300, bias=True, seed=1, low=-60, threshold=100_000):
    """Convolution, then dense: enough activity for a flipped bit to show."""
    rng = np.random.default_rng(seed)
    conv = Conv2d(rng.integers(low, 90, (4, 2, 3, 3)), padding=1)
    common = {"reset": reset, "du": du, "dv": dv, "reset_amount": 100_000 if reset == "subtract" else 0}
    biases = 64 * rng.integers(-5, 6, (4, 1, 1)) * bias
    a = Population(name="a", shape=(4, 5, 6), threshold=threshold, bias=biases, **common)
    b = Population(name="b", shape=(7,), threshold=80_000, **common)
    return Network(
        name="layered",
        steps=steps,
        input=Input(shape=(2, 5, 6), high=3, scale=[1 / 3]),
        populations=(a, b),
        connections=(
            Connection(source=INPUT, target="a", synapse=conv),
            Connection(source="a", target="b", synapse=Dense(rng.integers(-60, 90, (7, 120)))),
        ),
        readout=Readout(population="b"),
    )


def layered_input(network, *, samples=5, seed=2):
    return np.random.default_rng(seed).integers(0, 4, (samples, *network.input.shape))


@settings(max_examples=25, deadline=None)
@given(networks_with_input(wild=True, delays=True, acyclic=False))
def test_equal_executors_are_equal(case):
    network, x = case
    result = verify(network, x, ["fast", ("itself", reference)], batch=2)
    assert result.equal
    assert result.first_divergence is None
    for r in result.executors.values():
        assert r.status == "equal"
        assert r.predictions_equal
        spiking = sum(p.size for p in network.populations if p.spikes)
        assert r.spikes_compared == spiking * network.steps * result.n_samples
        assert r.spikes_differing == 0


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(networks_with_input(delays=True, acyclic=False), st.data())
def test_one_flipped_weight_bit_is_found_and_named(case, data):
    network, x = case
    c = data.draw(st.sampled_from(network.connections))
    place = tuple(data.draw(st.integers(0, n - 1)) for n in c.synapse.weight.shape)
    old = int(c.synapse.weight[place])
    new = int(np.int8(np.uint8(old % 256) ^ np.uint8(1 << data.draw(st.integers(0, 7)))))
    assume(any(p.spikes for p in network.populations))
    divergence = assert_found(network, x, running(with_weight(network, c.name, place, new)), batch=2)
    assume(divergence is not None)
    assert divergence.reproduced
    where = ", ".join(map(str, place))
    named = f"weight [{where}] of {c.name!r} acts as {new} instead of {old}"
    alike = f"other weights of {c.name!r} whose sources are active at the same steps"
    assert named in divergence.causes or any(alike in cause for cause in divergence.causes)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(networks_with_input(delays=True, acyclic=False, max_steps=12), st.data())
def test_one_changed_constant_of_a_population_is_found(case, data):
    network, x = case
    p = data.draw(st.sampled_from([q for q in network.populations if q.spikes] or [None]))
    assume(p is not None)
    by = 1 << data.draw(st.integers(6, 12))
    what = data.draw(st.sampled_from(("threshold", "bias", "v_init")))
    changed = with_population(network, p.name, **{what: getattr(p, what) + by})
    divergence = assert_found(network, x, running(changed))
    assume(divergence is not None)
    assert divergence.population == p.name
    word = {"threshold": "threshold", "bias": "bias is", "v_init": "starts the window"}[what]
    # After a hard reset, nothing tells by how much the membrane was over the threshold.
    if what == "threshold" or (p.reset == "subtract" and p.dv < 4096):
        assert any(word in cause for cause in divergence.causes), str(divergence)


def test_sides_show_what_happened():
    network = layered()
    divergence = assert_found(
        network, layered_input(network), running(with_weight(network, "input->a", (2, 1, 0, 1), 99))
    )
    assert divergence.population == "a"
    assert divergence.coordinates["channel"] == 2
    flat = (divergence.coordinates["channel"] * 5 + divergence.coordinates["row"]) * 6 + divergence.coordinates[
        "column"
    ]
    assert flat == divergence.neuron
    want = reference(network, layered_input(network), ["a"])
    at = (divergence.step, divergence.sample)
    for what in ("current", "u", "v"):
        assert getattr(divergence.baseline, what) == getattr(want, what)["a"][at].ravel()[divergence.neuron]
    assert divergence.baseline.spike != divergence.other.spike
    assert divergence.theta == 100_000
    assert "weight [2, 1, 0, 1] of 'input->a' acts as 99" in str(divergence)


@pytest.mark.parametrize("reset", ["subtract", "zero"])
@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"threshold": 99_000}, "threshold is at least"),
        ({"threshold": 101_000}, "threshold is at least"),
        ({"v_init": 5000}, "membrane starts the window at about (4999|5000) instead of v_init = 0"),
        ({"dv": 301}, "decays with dv = 301 instead of 300"),
        ({"bias": np.full((1,), 64)}, "its bias is 64 instead of"),
        ({"reset": "other"}, "resets to zero instead of|subtracts the threshold at a spike"),
    ],
)
def test_causes_are_named(change, cause, reset):
    network = layered(reset=reset)
    if "reset" in change:
        change = {"reset": "zero", "reset_amount": 0}
        if reset == "zero":
            change = {"reset": "subtract", "reset_amount": 100_000}
    executor = running(with_population(network, "a", **change))
    divergence = assert_found(network, layered_input(network, samples=30), executor)
    assert divergence.reproduced
    assert any(re.search(cause, c) for c in divergence.causes), str(divergence)


def test_rounding_down_is_named():
    # As many negative membranes as positive ones, and small ones, so that a difference of 1 soon changes a spike.
    network = layered(dv=300, du=1000, low=-90, threshold=300, bias=False)
    network = with_population(network, "a", fraction_bits=0, reset_amount=300)
    x = np.random.default_rng(3).integers(0, 4, (network.steps, 40, *network.input.shape))
    divergence = assert_found(network, x, rounding_down)
    assert any("rounds decays down" in c for c in divergence.causes), str(divergence)
    assert divergence.origin < divergence.step


def test_firing_at_the_threshold_is_named():
    """An integrate-and-fire neuron that reaches theta exactly at its third step."""
    p = Population(name="p", shape=(2,), threshold=192, reset_amount=192)
    network = Network(
        name="edge",
        steps=5,
        input=Input(shape=(1,)),
        populations=(p,),
        connections=(Connection(source=INPUT, target="p", synapse=Dense([[0], [1]])),),
    )
    divergence = assert_found(network, np.array([[0], [1]]), running(with_population(network, "p", threshold=191)))
    assert (divergence.sample, divergence.step, divergence.neuron) == (1, 2, 1)
    assert divergence.coordinates == {"index": 1}
    assert "fires at v >= theta" in divergence.causes[0]
    assert divergence.baseline.v == 192
    assert (divergence.baseline.spike, divergence.other.spike) == (0, 1)


def test_an_overflow_policy_is_named():
    p = Population(name="p", shape=(1,), threshold=2**23 - 1, reset="zero", bias=[2**22])
    network = Network(
        name="full",
        steps=4,
        input=Input(shape=(1,)),
        populations=(replace(p, threshold=2**22),),
        connections=(Connection(source=INPUT, target="p", synapse=Dense([[127]]), weight_exponent=9),),
    )

    def saturating(network, x, trace=()):
        with pytest.MonkeyPatch.context() as patched:
            patched.setitem(arithmetic._LIMITS, "wrap", arithmetic.saturate)
            return reference(network, x, trace)

    network = with_population(network, "p", du=0)
    divergence = assert_found(network, np.ones((1, 1), np.int64), saturating)
    assert any("saturates the current beyond 24 bits" in c for c in divergence.causes), str(divergence)
    assert any("an overflow precedes it: the current wraps at step" in c for c in divergence.causes)


def test_state_that_leaks_between_samples_is_named():
    network = layered(bias=False)
    divergence = assert_found(network, layered_input(network), leaking_state)
    assert divergence.sample > 0
    assert not divergence.reproduced
    assert "window reset" in divergence.causes[0]
    assert divergence.other.v is None
    assert divergence.baseline.v is not None


def test_an_executor_without_insight_still_gets_place_and_guess():
    network = layered()
    executor = blind(running(with_population(network, "b", threshold=75_000)))
    divergence = assert_found(network, layered_input(network), executor)
    assert (divergence.other.u, divergence.other.v, divergence.other.current) == (None, None, None)
    assert divergence.baseline.v is not None
    assert divergence.origin is None
    assert any("threshold" in c for c in divergence.causes)
    assert "not visible" in str(divergence)


def test_a_delay_and_a_missing_connection_are_named():
    network = layered()
    late = [replace(c, delay=1) if c.source == "a" else c for c in network.connections]
    divergence = assert_found(network, layered_input(network), running(replace(network, connections=late)))
    assert "connection 'a->b' arrives one step late" in divergence.causes
    gone = [c for c in network.connections if c.source != "a"]
    divergence = assert_found(network, layered_input(network), running(replace(network, connections=gone)))
    assert "connection 'a->b' contributes nothing" in divergence.causes


def accumulator():
    network = layered()
    last = Population(name="b", shape=(7,), reset="none")
    return replace(
        network, populations=[network.populations[0], last], readout=Readout(population="b", kind="membrane")
    )


def test_final_membranes_are_compared_and_traced_to_their_first_difference():
    network = accumulator()
    x = layered_input(network)
    neurons_that_hear = reference(network, x).spikes["a"].reshape(network.steps, len(x), -1)
    source = int(neurons_that_hear.sum(axis=(0, 1)).argmax())
    old = int(network.connections[1].synapse.weight[3, source])
    result = verify(network, x, [("other", running(with_weight(network, "a->b", (3, source), old ^ 1)))], batch=2)
    one = result.executors["other"]
    assert one.spikes_differing == 0
    assert one.populations["b"].what == "membranes"
    assert 0 < one.populations["b"].differing <= len(x)
    d = one.first_divergence
    sample = int(neurons_that_hear[:, :, source].any(axis=0).argmax())
    step = int(neurons_that_hear[:, sample, source].argmax())
    assert (d.sample, d.step, d.population, d.neuron) == (sample, step, "b", 3)
    assert f"weight [3, {source}] of 'a->b' acts as {old ^ 1} instead of {old}" in d.causes
    assert one.scores_differing == one.populations["b"].differing
    assert not result.equal


def test_one_executor_that_fails_does_not_stop_the_others():
    def broken(network, x, trace=()):
        raise ExecutionError("worker ended after 3 s")

    def unfit(network, x, trace=()):
        raise UnsupportedError("population 'b': no soft reset here")

    def silent(network, x, trace=()):
        return Recording()

    network = layered()
    x = layered_input(network)
    result = verify(
        network, x, [("broken", broken), ("unfit", unfit), ("silent", silent), "fast"], y=np.zeros(5), batch=2
    )
    assert [r.status for r in result.executors.values()] == ["failed", "failed", "failed", "equal"]
    assert "worker ended" in result.executors["broken"].message
    assert "population 'a'" in result.executors["silent"].message
    assert not result.equal
    assert result.executors["fast"].accuracy == result.accuracy
    assert result.executors["broken"].accuracy is None
    text = str(result)
    assert "failed: worker ended after 3 s" in text
    assert "NOT equal" in text


def test_the_outcome_is_json_and_a_table():
    network = layered()
    x = layered_input(network)
    result = verify(
        network, x, [("other", running(with_population(network, "b", threshold=75_000))), "fast"], engine="fast"
    )
    told = json.loads(json.dumps(result.to_json()))
    assert told["equal"] is False
    assert told["baseline"] == "fast"
    assert told["executors"]["fast"]["equal"] is True
    assert told["executors"]["other"]["populations"]["b"]["differing"] > 0
    assert told["first_divergence"]["population"] == "b"
    assert told["executors"]["other"]["first_divergence"]["coordinates"] == {
        "index": told["first_divergence"]["neuron"]
    }
    assert "first divergence of other" in str(result)


def test_the_baseline_runs_once_per_batch():
    sizes = []

    def counted(network, x, trace=()):
        sizes.append(len(x))
        return fast(network, x, trace)

    network = layered()
    seen = []
    verify(
        network,
        layered_input(network),
        ["fast", ("again", fast)],
        engine=("counted", counted),
        batch=2,
        progress=lambda *at: seen.append(at),
    )
    assert sizes == [2, 2, 1]
    assert seen == [(2, 5), (4, 5), (5, 5)]


def test_mistakes_give_one_clear_line():
    network = layered()
    x = layered_input(network)
    with pytest.raises(UnsupportedError, match="no executor 'warp'"):
        verify(network, x, ["warp"])
    with pytest.raises(DataError, match="one label per sample"):
        verify(network, x, ["fast"], y=[1, 2])
    with pytest.raises(DataError, match="no sample"):
        verify(network, x[:0], ["fast"])
    with pytest.raises(DataError, match="does not fit"):
        verify(network, x[:, :1], ["fast"])
