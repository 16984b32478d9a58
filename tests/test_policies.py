"""Overflow policies: each is its source's arithmetic, and the simulator names the inputs on which they differ."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from test_chips import SMALL

import lapilli
from lapilli.arithmetic import neuron_step, twos_complement
from lapilli.bounds import policy_gaps, population_bounds
from lapilli.cli import main
from lapilli.deploy import check, load_chip
from lapilli.deploy.chip import parse_chip
from lapilli.errors import ExecutionError, FileFormatError
from lapilli.network import INPUT, Connection, Dense, Input, Network, Population, Readout
from lapilli.overflow import LAVA, OverflowPolicy
from lapilli.sim import compare_policies, verify
from lapilli.sim.reference import reference
from strategies import networks_with_input

LOIHI1 = load_chip("loihi1")
NENGO, BRIAN2 = LOIHI1.others


def one(weight=(127, 127), *, exponent=8, steps=4, connection=(), **neuron):
    """Two inputs to one neuron ``p``; a weight of 127 x 2^8 is 2,080,768 state units, just below 2^21."""
    p = Population(name="p", shape=(1,), **({"threshold": 2**22, "reset": "zero"} | neuron))
    return Network(
        name="one",
        steps=steps,
        input=Input(shape=(2,)),
        populations=(p,),
        connections=(
            Connection(source=INPUT, target="p", synapse=Dense([list(weight)]), weight_exponent=exponent),
            *connection,
        ),
        readout=Readout(population="p"),
    )


# The policies themselves


def test_loihi1_names_lava_and_knows_two_others_with_their_sources():
    assert LOIHI1.policy == LAVA
    assert [p.name for p in LOIHI1.others] == ["nengo-loihi", "brian2-loihi"]
    assert (NENGO.accumulator_bits, NENGO.current, NENGO.biased, NENGO.membrane) == (
        22,
        "twos_complement",
        "twos_complement",
        "saturate",
    )
    assert (BRIAN2.accumulator_bits, BRIAN2.current, BRIAN2.membrane) == (None, "unlimited", "unlimited")
    assert all(len(p.source) > 15 for p in (LAVA, *LOIHI1.others))
    assert (load_chip("loihi2").policy, load_chip("loihi2").others) == (LAVA, ())


def masked(x, bits):
    """Loihi's registers in nengo-loihi: ``bits`` and a sign, by masks."""
    return (x & (2**bits - 1)) - (x & 2**bits)


def shrunk(x, d):
    return (abs(x) * (4096 - d) >> 12) * (1 if x >= 0 else -1)


def after_reset(p, v):
    return 0 if p.reset == "zero" else v - p.reset_amount * min(max(v // 2**p.payload_shift, 1), p.payload_max)


def nengo_loihi(p, bias, drives):
    """One neuron after the text of nengo-loihi's emulator, without noise and refractory time."""
    u, v, out = 0, p.v_init, []
    for q0 in drives:
        u = masked(shrunk(u, p.du) + masked(q0, 21), 23)
        v = min(max(shrunk(v, p.dv) + masked(u + bias, 23), -(2**23 - 1)), 2**23 - 1)
        yield_u, fired = u, p.spikes and v > p.threshold
        v = after_reset(p, v) if fired else v
        out.append((yield_u, v))
    return out


def brian2_loihi(p, bias, drives):
    """One neuron after brian2_loihi's equations: what decays is rounded away from zero, nothing is limited."""

    def lost(x, d):
        return -(-abs(x) * d // 4096) * (1 if x >= 0 else -1)

    u, v, out = 0, p.v_init, []
    for drive in drives:
        u = u - lost(u, p.du) + drive
        v = v - lost(v, p.dv) + u + bias
        fired = p.spikes and v > p.threshold
        v = after_reset(p, v) if fired else v
        out.append((u, v))
    return out


@settings(max_examples=30, deadline=None)
@given(
    networks_with_input(wild=True, delays=True, acyclic=False, max_steps=10),
    st.sampled_from(((NENGO, nengo_loihi), (BRIAN2, brian2_loihi))),
)
def test_each_policy_is_the_arithmetic_of_its_source(case, policy_and_source):
    policy, source = policy_and_source
    net, x = case
    names = [p.name for p in net.populations]
    run = reference(net, x, names, policy)
    for p in net.populations:
        steps, batch = run.u[p.name].shape[:2]
        current, u, v = (a[p.name].reshape(steps, batch, -1) for a in (run.current, run.u, run.v))
        bias = np.broadcast_to(p.bias, p.shape).ravel()
        for sample, neuron in np.ndindex(batch, p.size):
            want = source(p, int(bias[neuron]), current[:, sample, neuron].tolist())
            assert list(zip(u[:, sample, neuron].tolist(), v[:, sample, neuron].tolist(), strict=True)) == want


@given(st.integers(-(2**40), 2**40), st.integers(2, 40))
def test_twos_complement_is_what_a_register_holds(x, bits):
    assert int(twos_complement(np.array(x), bits)) == masked(x, bits - 1)


def test_a_state_without_limit_stops_before_it_would_be_wrong():
    p = Population(name="p", shape=(1,), reset="none")
    huge = np.full((1, 1), 2**50, np.int64)
    assert neuron_step(p, 0 * huge, 0 * huge, huge, BRIAN2).u == 2**50
    with pytest.raises(ExecutionError, match="beyond"):
        neuron_step(p, 0 * huge, 0 * huge, -huge - 1, BRIAN2)


# Bounds


@settings(max_examples=30, deadline=None)
@given(networks_with_input(wild=True, delays=True, acyclic=False, max_steps=10), st.sampled_from((NENGO, BRIAN2)))
def test_without_a_gap_the_policy_runs_as_the_description_does(case, policy):
    net, x = case
    names = [p.name for p in net.populations]
    mine, other = reference(net, x, names), reference(net, x, names, policy)
    same = {
        p.name: np.array_equal(mine.u[p.name], other.u[p.name]) and np.array_equal(mine.v[p.name], other.v[p.name])
        for p in net.populations
    }
    gaps = [p.name for p in net.populations if policy_gaps(p, population_bounds(net, p), policy)]
    assert gaps or all(same.values())


@pytest.mark.parametrize(
    ("net", "policy", "says"),
    [
        (one((127, 0)), NENGO, None),
        (one((127, 1)), NENGO, "the input of one step can reach 0..2,097,152, and nengo-loihi wraps it beyond -2,"),
        (one((127, 127), steps=2), BRIAN2, None),
        (
            one((64, 0), exponent=11, du=0),
            NENGO,
            "the current can be 8,388,608, which nengo-loihi turns into",
        ),
        (one((127, 0), bias=[6291456]), NENGO, None),
        (
            one((127, 0), bias=[6324224]),
            NENGO,
            "current and bias together can reach 6,324,224..8,404,992",
        ),
        (one((127, 0), du=0, steps=9), BRIAN2, "the current can wrap, and brian2-loihi does not limit it"),
        (one((-128, 0), steps=9), BRIAN2, "the membrane can saturate, and brian2-loihi does not limit it"),
    ],
)
def test_the_gap_says_what_can_reach_where(net, policy, says):
    p = net.population("p")
    gaps = policy_gaps(p, population_bounds(net, p), policy)
    assert gaps == () if says is None else any(gap.startswith(says) for gap in gaps), gaps


# The watch


def samples_that_differ(net, x, policy):
    """By brute force: whole runs under both, every u, v and spike."""
    names = [p.name for p in net.populations]
    mine, other = reference(net, x, names), reference(net, x, names, policy)
    differ = np.zeros(mine.v_final[names[0]].shape[0], bool)
    for what in ("u", "v", "spikes"):
        for name, a in getattr(mine, what).items():
            axes = (0, *range(2, a.ndim))
            differ |= (a != getattr(other, what)[name]).any(axis=axes)
    return np.flatnonzero(differ).tolist(), mine, other


@settings(max_examples=50, deadline=None)
@given(networks_with_input(wild=True, delays=True, acyclic=False, max_steps=10), st.sampled_from(("fast", "reference")))
def test_the_samples_reported_are_those_in_which_whole_runs_differ(case, engine):
    net, x = case
    report = compare_policies(net, x, "loihi1", engine, follow=2, limit=10**6)
    for c in report.comparisons:
        want, mine, other = samples_that_differ(net, x, c.policy)
        assert c.samples.tolist() == want
        assert len(c.differences) == c.places
        assert c.differences == sorted(c.differences, key=lambda d: (d.sample, d.step, rank(net, d), d.neuron))
        for sample in want:
            first = next(d for d in c.differences if d.sample == sample)
            for d in (
                d for d in c.differences if (d.sample, d.step, d.population) == (sample, first.step, first.population)
            ):
                for pair, what in ((d.u, "u"), (d.v, "v")):  # the first is a difference of the policy's own run
                    values = [getattr(r, what)[d.population][d.step, sample].ravel()[d.neuron] for r in (mine, other)]
                    assert list(pair) == values
        assert [o.sample for o in c.outcomes] == want[:2]
        for o in c.outcomes:
            spikes = sum((a[:, o.sample] != other.spikes[n][:, o.sample]).sum() for n, a in mine.spikes.items())
            assert o.spikes == spikes


def rank(net, difference):
    return [p.name for p in net.order].index(difference.population)


def test_the_accumulator_decides_where_peers_part():
    """130 spikes of weight 254 in one step: nengo-loihi wraps them at 2^21, Lava does not."""
    p = Population(name="p", shape=(1,), threshold=64 * 20000, reset="zero")
    net = Network(
        name="many",
        steps=2,
        input=Input(shape=(140,)),
        populations=(p,),
        connections=(Connection(source=INPUT, target="p", synapse=Dense(np.full((1, 140), 127)), weight_exponent=1),),
        readout=Readout(population="p"),
    )
    x = np.array([[1] * n + [0] * (140 - n) for n in (128, 129, 130, 140)])
    nengo, brian2 = compare_policies(net, x, "loihi1", follow=9).comparisons
    assert 254 * 64 * 129 < 2**21 <= 254 * 64 * 130
    assert nengo.samples.tolist() == [2, 3]
    first = nengo.differences[0]
    assert (first.sample, first.step, first.neuron, first.drive) == (2, 0, 0, 254 * 64 * 130)
    assert first.u == (254 * 64 * 130, 254 * 64 * 130 - 2**22)
    assert first.spike == (1, 0)
    assert [o.spikes for o in nengo.outcomes] == [2, 2]
    assert brian2.gaps == {}
    assert brian2.samples.size == 0


def test_batches_and_limits_change_nothing_but_what_is_kept(monkeypatch):
    net = one((127, 127))
    x = np.array([[1, 0], [1, 1], [0, 0], [1, 1], [1, 1]])
    whole = compare_policies(net, x, "loihi1").comparisons[0]
    assert whole.samples.tolist() == [1, 3, 4]
    monkeypatch.setattr("lapilli.sim.inside.policies.batch_size", lambda *_: 2)
    seen = []
    cut = compare_policies(net, x, "loihi1", limit=6, progress=lambda *done: seen.append(done)).comparisons[0]
    assert cut.samples.tolist() == [1, 3, 4]
    assert cut.places == whole.places == 12
    assert cut.differences == whole.differences[:6]
    assert seen == [(2, 5), (4, 5), (5, 5)]


def test_where_bounds_prove_everything_nothing_is_run():
    net = one((1, 1), exponent=0)
    report = compare_policies(net, np.ones((2, 2), int), "loihi1", engine=lambda *_: pytest.fail("run"))
    assert [c.gaps for c in report.comparisons] == [{}, {}]
    assert sum("equal on any input" in line for line in report.lines()) == 2


def test_a_batch_is_traced_only_where_the_counts_leave_a_doubt():
    """Four times -128 x 2^14 is -2^23: the membrane saturates, and only there does a policy without limits differ."""
    net, seen = one((-128, 0), steps=9), []

    def watching(network, x, trace=()):
        seen.append(tuple(trace))
        return reference(network, x, trace)

    for x, runs, samples in (([[0, 1]], [()], []), ([[0, 1], [1, 0]], [(), ("p",)], [1])):
        seen.clear()
        _, brian2 = compare_policies(net, np.array(x), "loihi1", watching).comparisons
        assert list(brian2.gaps) == ["p"]
        assert (seen, brian2.samples.tolist()) == (runs, samples)
    assert brian2.differences[0].step == 3


def test_a_policy_is_an_executor_too():
    net = one((127, 127))
    proof = verify(net, np.array([[1, 0], [1, 1]]), against=[("nengo", partial(reference, policy=NENGO))])
    assert not proof.equal
    assert proof.first_divergence.sample == 1


# Profiles and commands

PROFILE = (
    SMALL
    + """
[overflow]
policy = "mine"
[[overflow.policies]]
name = "mine"
accumulator_bits = 20
biased = "twos_complement"
source = "paper"
"""
)


def test_users_name_a_policy_of_their_own():
    chip = parse_chip(PROFILE, "mine.toml")
    mine = OverflowPolicy(name="mine", accumulator_bits=20, biased="twos_complement", source="A paper, 2024")
    assert chip.others == (mine,)
    assert chip.policy == mine
    lines = compare_policies(one(), np.ones((1, 2), int), chip).lines()
    assert lines[0] == "overflow policies of small (its profile names mine, what ran was lava):"
    assert "mine: differs in 1 of 1 samples (0)" in lines[1]
    [violation] = [v for v in check(one(), chip) if v.rule == "overflow_policies_agree"]
    assert "this simulator does as Lava does, small as mine" in violation.message


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('policy = "mine"', 'policy = "yours"', "no policy 'yours'; known are lava, mine"),
        ('name = "mine"', 'name = "lava"', "two policies are named 'lava'"),
        ('name = "mine"', "", "policy 1: name is missing"),
        ("accumulator_bits = 20", "accumulator_bits = 1", "accumulator_bits is 1; give 2 to 48"),
        ("accumulator_bits = 20", "accumulators = 1", "unknown key 'accumulators'"),
        ('biased = "twos_complement"', 'biased = "wrap"', "biased is 'wrap'; choose from unlimited, twos_complement"),
        ("[[overflow.policies]]", "[overflow.policies]", r"write \[\[overflow.policies\]\]"),
        ('twos_complement"\nsource = "paper"', 'twos_complement"', "the source is missing"),
    ],
)
def test_wrong_policies_are_refused_by_key(old, new, says):
    assert old in PROFILE
    with pytest.raises(FileFormatError, match=f"mine.toml.*{says}"):
        parse_chip(PROFILE.replace(old, new), "mine.toml")


def test_the_command_names_the_inputs(tmp_path):
    lapilli.save(one(steps=2), tmp_path / "net.onnx")
    np.savez(tmp_path / "x.npz", x=np.array([[1, 0], [1, 1]]))
    arguments = ["sim", str(tmp_path / "net.onnx"), str(tmp_path / "x.npz"), "--policies", "loihi1", "--follow", "1"]
    shown = CliRunner().invoke(main, [*arguments, "--events", "1"])
    assert shown.exit_code == 0, shown.output
    for line in (
        "nengo-loihi: differs in 1 of 2 samples (1), at 2 places",
        "sample 1, step 0, p[0]: input 4,161,536, u 4,161,536 or -32,768, v 4,161,536 or -32,768",
        "brian2-loihi: equal on any input (worst case)",
        "sample 1 to its end: ",
    ):
        assert line in shown.output
    document = json.loads(CliRunner().invoke(main, [*arguments, "--json"]).stdout)["policies"]
    assert document["chip"] == "loihi1"
    assert document["others"][0]["samples"] == [1]
    assert document["others"][0]["differences"][0]["u"] == [4161536, -32768]
    wrong = CliRunner().invoke(main, [*arguments[:3], "--policies", "loihi9"])
    assert wrong.exit_code == 2
    assert "there is no chip 'loihi9'" in wrong.stderr
