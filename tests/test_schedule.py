"""The chip's timetable, without Lava."""

import numpy as np
import pytest
from hypothesis import given, settings

from lapilli.arithmetic import neuron_step, synapse_sum
from lapilli.deploy.schedule import Schedule, make_schedule
from lapilli.errors import UnsupportedError
from lapilli.network import INPUT, Connection, Dense, Input, Network, Population
from lapilli.recording import at_every_step
from lapilli.sim.reference import reference
from strategies import networks, networks_with_input


def net(*connections, steps=4):
    """Populations of one neuron joined by (source, target, delay)."""
    names = sorted({name for c in connections for name in c[:2]} - {INPUT})
    return Network(
        name="n",
        steps=steps,
        input=Input(shape=(1,)),
        populations=[Population(name=n, shape=(1,), threshold=64, reset_amount=64) for n in names],
        connections=[
            Connection(source=s, target=t, synapse=Dense([[2]]), delay=d, name=f"{s}->{t}") for s, t, d in connections
        ],
    )


def run_pipelined(network, x, plan):
    """What a chip does: one chip step per connection, back to back samples, state set at each window's first step."""
    frames = at_every_step(network, x).swapaxes(0, 1)
    samples = len(frames)
    total = plan.total_steps(samples)
    stream = frames.reshape(-1, *network.input.shape)
    sent = {name: np.zeros((total + 1, 1, *network.shape_of(name)), np.int64) for name in plan.depth}
    sent[INPUT][1 : len(stream) + 1, 0] = stream
    state = {
        p.name: (np.zeros((1, *p.shape), np.int64), np.zeros((1, *p.shape), np.int64)) for p in network.populations
    }
    for t in range(1, total + 1):
        for p in network.populations:
            u, v = state[p.name]
            if (t - plan.first_step(p.name)) % plan.interval == 0:
                u, v = np.zeros_like(u), np.full_like(v, p.v_init)
            drive = np.zeros_like(u)
            for c in network.incoming(p.name):
                then = t - 1 - plan.extra_delay[c.name]
                in_window = then - plan.first_step(c.source)
                if then >= 1 and (
                    c.delay == 0 or (in_window >= 0 and in_window % plan.interval < plan.open_steps[c.name])
                ):
                    drive += synapse_sum(c.synapse, sent[c.source][then], p.shape) << (
                        p.fraction_bits + c.weight_exponent
                    )
            step = neuron_step(p, u, v, drive)
            state[p.name] = (step.u, step.v)
            sent[p.name][t] = step.spikes
    return {
        p.name: plan.by_sample(sent[p.name][plan.first_step(p.name) :][: samples * plan.interval, 0])
        for p in network.populations
        if p.spikes
    }


def runnable(network):
    try:
        return make_schedule(network)
    except UnsupportedError:
        return None


def equal(a, b):
    return all(np.array_equal(a[name], b[name]) for name in b)


@given(networks_with_input(delays=True, acyclic=False))
@settings(max_examples=60, deadline=None)
def test_a_pipelined_chip_emits_the_spikes_of_the_description(case):
    network, x = case
    plan = runnable(network)
    if plan is not None:
        assert equal(run_pipelined(network, x, plan), reference(network, x).spikes)


@pytest.mark.parametrize("part", ["depth", "extra_delay", "open_steps"])
def test_a_wrong_timetable_is_noticed(part):
    network = net((INPUT, "a", 0), ("a", "b", 0), (INPUT, "b", 0), ("b", "c", 2), steps=5)
    network = Network(**{**vars_of(network), "populations": [biased(p, 20) for p in network.populations]})
    x = np.random.default_rng(3).integers(0, 2, (5, 6, 1))
    plan = make_schedule(network)
    assert equal(run_pipelined(network, x, plan), reference(network, x).spikes)
    changes = {"depth": {"b": 1}, "extra_delay": {"input->b": -1}, "open_steps": {"b->c": 2}}[part]
    table = {k: v + changes.get(k, 0) for k, v in getattr(plan, part).items()}
    wrong = Schedule(
        **{f: getattr(plan, f) for f in ("interval", "depth", "extra_delay", "open_steps")} | {part: table}
    )
    assert not equal(run_pipelined(network, x, wrong), reference(network, x).spikes)


def vars_of(network):
    return {f: getattr(network, f) for f in ("name", "steps", "input", "populations", "connections")}


def biased(p, bias):
    return Population(name=p.name, shape=p.shape, threshold=64, reset_amount=64, bias=np.array([bias]))


def test_depth_is_the_longest_path_and_branches_wait():
    plan = make_schedule(net((INPUT, "a", 0), ("a", "b", 0), ("b", "c", 0), ("a", "c", 0), (INPUT, "c", 0), steps=7))
    assert plan.depth == {INPUT: 0, "a": 1, "b": 2, "c": 3}
    assert plan.extra_delay == {"input->a": 0, "a->b": 0, "b->c": 0, "a->c": 1, "input->c": 2}
    assert plan.latency == 3
    assert plan.total_steps(5) == 38
    assert plan.first_step("c") == 4


def test_a_delay_of_the_description_is_time_the_chip_need_not_add():
    plan = make_schedule(net((INPUT, "a", 0), ("a", "b", 3), ("a", "a", 1)))
    assert plan.depth["b"] == 0
    assert plan.extra_delay == {"input->a": 0, "a->b": 1, "a->a": 0}
    assert plan.open_steps == {"input->a": 4, "a->b": 1, "a->a": 3}


def test_a_cycle_needs_as_much_delay_as_connections():
    make_schedule(net((INPUT, "a", 0), ("a", "b", 0), ("b", "a", 2)))
    with pytest.raises(UnsupportedError, match=r"'(a->b|b->a)' lies on a cycle"):
        make_schedule(net((INPUT, "a", 0), ("a", "b", 0), ("b", "a", 1)))


@given(networks(delays=True))
@settings(max_examples=50, deadline=None)
def test_without_cycles_there_is_always_a_timetable(network):
    plan = make_schedule(network)
    assert min(plan.extra_delay.values()) >= 0
    assert min(plan.depth.values()) >= 0


def test_records_are_sorted_by_sample():
    plan = make_schedule(net((INPUT, "a", 0), steps=3))
    assert plan.by_sample(np.arange(6)).tolist() == [[0, 3], [1, 4], [2, 5]]
