"""Energy and latency: counted by hand, additive, linear, and silent about what nobody has published."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lapilli.deploy import load_chip, plan
from lapilli.deploy.chip import CostSet, EventCost
from lapilli.errors import DataError
from lapilli.network import INPUT, Connection, Conv2d, Dense, Input, Network, Population
from lapilli.sim import energy, simulate
from lapilli.sim.cost.estimate import Counts, choose, estimate
from lapilli.sim.cost.layout import Layout, Route, one_core_each
from lapilli.sim.cost.model import Range, barrier_time
from lapilli.sim.cost.operations import compare, sparsity, synapses
from lapilli.sim.reference import reference
from lapilli.sim.units import axis_unit, count, percent, si, si_range
from strategies import networks_with_input

COLUMNS = ("low", "typical", "high")


def by_hand():
    """Two inputs, two neurons, one neuron; every number below can be followed with a pencil.

    Per step: a0 gets 1 from x0, a1 gets 1 from x1; both spike whenever they are fed (threshold 0, hard reset).
    b gets 1 from a0 and nothing from a1 (weight 0), and spikes whenever a0 does.
    """
    return Network(
        name="hand",
        steps=3,
        input=Input(shape=(2,)),
        populations=[
            Population(name="a", shape=(2,), threshold=0, reset="zero"),
            Population(name="b", shape=(1,), threshold=0, reset="zero", bias=np.array([64]), v_init=-(2**20)),
        ],
        connections=[
            Connection(source=INPUT, target="a", synapse=Dense([[1, 0], [0, 1]])),
            Connection(source="a", target="b", synapse=Dense([[1, 0]])),
        ],
    )


# Steps x samples x inputs: sample 0 feeds x0 at all three steps, sample 1 feeds x1 at the last.
FRAMES = np.array([[[1, 0], [0, 0]], [[1, 0], [0, 0]], [[1, 0], [0, 1]]])

MODEL = CostSet(
    name="round numbers",
    source="made up for this test",
    events={
        "synop_dense": EventCost(1.0, 0.5),
        "update_active": EventCost(100.0, 4.0),
        "update_inactive": EventCost(10.0, 2.0),
        "spike": EventCost(1000.0, 8.0),
        "message_out": EventCost(10_000.0, 16.0),
        "message_in": EventCost(20_000.0, 32.0),
        "within_tile": EventCost(100_000.0, 1e9),  # hops and tiles cost energy; their time overlaps
    },
    barrier=((1, 64.0),),
    static_power=1e6,
    calibrated=True,
)


def test_a_tiny_network_costs_what_it_costs_by_hand():
    net = by_hand()
    run = simulate(net, FRAMES)
    assert run.synop_totals == {"input->a": 4, "a->b": 3}
    assert run.spike_totals == {"a": 4, "b": 0}

    report = estimate(Counts(net, run, one_core_each(net), frozenset()), [MODEL], "none", "", [])

    into_a, into_b = report.connections
    assert (into_a.synops, into_b.synops) == (2.0, 1.5)
    assert into_a.energy == Range(2.0, 2.0, 2.0)
    a, b = report.populations
    assert (a.updates, a.must_be_active, a.spikes, a.messages) == (6, 2.0, 2.0, 2.0)
    assert (b.updates, b.must_be_active, b.spikes, b.messages) == (3, 3.0, 0.0, 0.0)  # b has a bias
    assert a.update_energy == Range(2 * 100 + 4 * 10, 600.0, 600.0)
    assert a.spike_energy == Range(*[2 * (1000 + 10_000 + 20_000 + 100_000.0)] * 3)
    assert b.update_energy == Range(300.0, 300.0, 300.0)
    assert b.spike_energy == Range(0.0, 0.0, 0.0)

    # At the three steps, mean of both samples: a is fed and spikes 0.5, 0.5 and 1 times, b is fed 0.5 times.
    def core_a(spikes, active):
        return 0.5 * spikes + 4 * active + 2 * (2 - active) + (8 + 16) * spikes

    def core_b(messages):
        return 0.5 * 0.5 + 4 + 32 * messages

    assert report.latency is not None
    slow = np.mean([max(core_a(s, 2), core_b(s)) for s in (0.5, 0.5, 1.0)]) + 64
    fast = np.mean([max(core_a(s, s), core_b(s)) for s in (0.5, 0.5, 1.0)]) + 64
    assert report.latency.step.high == pytest.approx(slow)
    assert report.latency.step.typical == pytest.approx(slow)
    assert report.latency.step.low == pytest.approx(fast)
    assert report.latency.depth == 2
    assert report.latency.inference.typical == pytest.approx(slow * (3 + 2))
    assert report.latency.interval.typical == pytest.approx(slow * 3)
    assert report.static is not None
    assert report.static.typical == pytest.approx(1e6 * 3 * slow)


def test_a_core_that_holds_less_is_faster_and_more_hops_cost_more():
    net = by_hand()
    run = simulate(net, FRAMES)
    together = one_core_each(net)
    hop = replace(
        MODEL, events=MODEL.events | {"hop_horizontal": EventCost(5.0, 0.0), "hop_vertical": EventCost(7.0, 0.0)}
    )
    apart = Layout(
        cores=({"a": 0.5}, {"a": 0.5}, {"b": 1.0}),
        tiles=1,
        chips=1,
        compartments={"a": 1, "b": 1},
        routes={"input->a": Route(1.0), "a->b": Route(0.5, within_tile=0.5, horizontal=2.0, vertical=3.0)},
        source="by hand",
    )
    near, far = (estimate(Counts(net, run, where, frozenset()), [hop], "none", "", []) for where in (together, apart))
    assert far.populations[0].hops == 2.0 * 5
    saved = 0.5 * (10_000 + 20_000 + 100_000)
    assert far.dynamic.typical - near.dynamic.typical == pytest.approx(2.0 * (2 * 5 + 3 * 7 - saved))
    assert far.latency.step.typical < near.latency.step.typical


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(networks_with_input(acyclic=False, delays=True))
def test_synops_are_the_pairs_of_an_event_and_a_nonzero_synapse(case):
    net, x = case
    spikes = reference(net, x).spikes
    frames = x if x.ndim > len(net.input.shape) + 1 else np.broadcast_to(x, (net.steps, *x.shape))
    sent = {INPUT: frames != 0} | {name: s != 0 for name, s in spikes.items()}
    run = simulate(net, x)
    report = energy(net, run, "loihi1")
    for c, cost in zip(net.connections, report.connections, strict=True):
        out = synapses_by_source(net, c)
        events = zip(*np.nonzero(sent[c.source]), strict=True)  # (step, sample, *neuron)
        assert cost.synops == sum(out[event[2:]] for event in events) / run.n_samples


def synapses_by_source(net, connection):
    """Synapses with a non-zero weight that leave each source neuron, enumerated one by one."""
    source, target = net.shape_of(connection.source), net.shape_of(connection.target)
    s = connection.synapse
    found = dict.fromkeys(np.ndindex(*source), 0)
    if isinstance(s, Dense):
        for i, neuron in enumerate(np.ndindex(*source)):
            found[neuron] = sum(int(w != 0) for w in s.weight[:, i])
    elif isinstance(s, Conv2d):
        channels_out, channels_in = s.weight.shape[0] // s.groups, s.weight.shape[1]
        for o, c, i, j in zip(*np.nonzero(s.weight), strict=True):
            for y, x in np.ndindex(*target[1:]):
                row = y * s.stride[0] + i * s.dilation[0] - s.padding[0]
                column = x * s.stride[1] + j * s.dilation[1] - s.padding[1]
                neuron = (o // channels_out * channels_in + c, row, column)
                if neuron in found:  # and not padding
                    found[neuron] += 1
    else:
        for neuron in found:
            found[neuron] = int(s.weight[neuron[0] if len(s.weight) > 1 else 0] != 0)
    return found


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(networks_with_input(), st.sampled_from(["loihi1", "loihi2"]))
def test_layers_and_static_power_sum_to_the_total(case, chip):
    net, x = case
    report = energy(net, simulate(net, x), chip)
    assert report.synops + report.host_synops == pytest.approx(sum(c.synops for c in report.connections))
    if report.energy is None:
        assert all(layer.energy is None for layer in report.layers())
        return
    for column in COLUMNS:
        layers = sum(getattr(layer.energy, column) for layer in report.layers())
        assert getattr(report.dynamic, column) == pytest.approx(layers)
        assert getattr(report.energy, column) == pytest.approx(layers + getattr(report.static, column))
    assert report.energy.low <= report.energy.typical <= report.energy.high
    assert report.latency.step.low <= report.latency.step.typical <= report.latency.step.high


@settings(deadline=None, max_examples=25)
@given(networks_with_input(graded=False), st.integers(2, 4))
def test_more_of_the_same_samples_change_nothing_per_inference(case, times):
    net, x = case
    axis = x.ndim - len(net.input.shape) - 1
    once, again = (energy(net, simulate(net, np.concatenate([x] * n, axis=axis)), "loihi1") for n in (1, times))
    assert again.samples == times * once.samples
    assert again.energy.typical == pytest.approx(once.energy.typical)
    assert again.latency.step.high == pytest.approx(once.latency.step.high)


def test_dynamic_energy_is_linear_in_the_constants():
    net = by_hand()
    run = simulate(net, FRAMES)
    double = replace(MODEL, events={k: EventCost(2 * e.energy, e.time) for k, e in MODEL.events.items()})
    once, twice = (
        estimate(Counts(net, run, one_core_each(net), frozenset()), [m], "", "", []) for m in (MODEL, double)
    )
    assert twice.dynamic.typical == pytest.approx(2 * once.dynamic.typical)
    assert twice.latency.step == once.latency.step


def test_low_and_high_are_whole_models_and_their_stated_error():
    cheap = replace(MODEL, name="cheap", calibrated=False)
    banded = replace(MODEL, name="banded", energy_spread=0.1)
    cost = {"cheap": 5.0, "banded": 10.0}
    chosen = choose([cheap, banded], lambda s: cost[s.model.name] * s.energy_factor)
    assert (chosen["low"].model.name, chosen["typical"].model.name, chosen["high"].model.name) == (
        "cheap",
        "banded",
        "banded",
    )
    assert (chosen["typical"].energy_factor, chosen["high"].energy_factor) == (1.0, 1.1)
    assert chosen["high"].all_active
    assert not chosen["low"].all_active


def test_the_barrier_is_interpolated_between_published_points_and_held_beyond():
    model = replace(MODEL, barrier=((2, 10.0), (4, 30.0)))
    assert [barrier_time(model, tiles) for tiles in (1, 2, 3, 4, 99)] == [10.0, 10.0, 20.0, 30.0, 30.0]
    assert barrier_time(replace(MODEL, barrier=()), 5) == 0.0


def soft_reset_on(low, high):
    return Network(
        name="soft",
        steps=4,
        input=Input(shape=(3,), low=low, high=high),
        populations=[Population(name="a", shape=(2,), threshold=64, reset_amount=64)],
        connections=[Connection(source=INPUT, target="a", synapse=Dense([[1, 2, 0], [3, 0, 4]]))],
    )


def test_soft_reset_takes_two_compartments_on_loihi_1_and_one_on_loihi_2():
    net = soft_reset_on(0, 1)
    run = simulate(net, np.ones((2, 3), np.int64))
    assert energy(net, run, "loihi1").populations[0].updates == 2 * 2 * 4
    assert energy(net, run, "loihi2").populations[0].updates == 2 * 4


def test_loihi_1_leaves_a_graded_input_to_the_host_and_counts_it_apart():
    net = soft_reset_on(0, 16)
    run = simulate(net, np.full((2, 3), 7))
    report = energy(net, run, "loihi1")
    assert report.connections[0].on_host
    assert report.connections[0].energy is None
    assert (report.synops, report.host_synops) == (0.0, 4.0 * 4)
    assert any("host computes" in note for note in report.notes)
    spiking = energy(soft_reset_on(0, 1), simulate(soft_reset_on(0, 1), np.ones((2, 3), np.int64)), "loihi1")
    assert (spiking.synops, spiking.host_synops) == (4.0 * 4, 0.0)
    assert spiking.connections[0].energy.typical == pytest.approx(16 * 35.5e-12)


def test_no_joule_and_no_second_without_a_published_source():
    net = by_hand()
    report = energy(net, simulate(net, FRAMES), "loihi2")
    assert report.energy is report.dynamic is report.static is report.energy_per_step is report.latency is None
    assert all(c.energy is None for c in report.connections)
    assert "published no energy" in report.reason
    assert report.connections[0].synops == 2.0
    assert not report.scenarios


def test_every_column_names_its_source():
    net = by_hand()
    report = energy(net, simulate(net, FRAMES), "loihi1")
    sources = {c.source for c in load_chip("loihi1").costs}
    for scenarios in (report.scenarios, report.latency.scenarios):
        assert set(scenarios) == set(COLUMNS)
        assert all(s.model.source in sources and s.model.source in s.text for s in scenarios.values())


def test_the_run_or_plan_of_another_network_is_refused():
    net, other = by_hand(), soft_reset_on(0, 1)
    run = simulate(net, FRAMES)
    with pytest.raises(DataError, match="not one of network 'soft'"):
        energy(other, run, "loihi1")
    with pytest.raises(DataError, match="plan is for loihi2"):
        energy(net, run, "loihi1", plan(net, "loihi2"))
    with pytest.raises(DataError, match="plan is not one of network 'hand'"):
        energy(net, run, "loihi1", plan(other, "loihi1"))


def test_a_given_plan_and_the_default_plan_agree():
    net = by_hand()
    run = simulate(net, FRAMES)
    assert energy(net, run, "loihi1").to_json() == energy(net, run, "loihi1", plan(net, "loihi1")).to_json()


def test_the_ann_beside_it_and_neurobench_numbers_by_hand():
    weight = np.ones((2, 1, 3, 3), np.int64)
    weight[0, 0, 1, 1] = 0
    net = Network(
        name="conv",
        steps=5,
        input=Input(shape=(1, 4, 4), low=0, high=16),
        populations=[
            Population(name="c", shape=(2, 4, 4), threshold=2**20, reset="zero", bias=np.zeros((2, 1, 1))),
            Population(name="d", shape=(3,), threshold=2**20, reset="zero"),
        ],
        connections=[
            Connection(source=INPUT, target="c", synapse=Conv2d(weight, padding=1), weight_bits=4),
            Connection(source="c", target="d", synapse=Dense(np.ones((3, 32), np.int64))),
        ],
    )
    run = simulate(net, np.ones((1, 1, 4, 4), np.int64))
    ann = compare(net, run)
    # A 3x3 kernel on 4x4 with padding 1: 4 corners see 4 inputs, 8 edges 6, 4 inner ones 9: 100 per channel.
    assert ann.macs == {"input->c": 2 * 100, "c->d": 96}
    assert ann.int8 == pytest.approx(296 * 0.23e-12)
    assert ann.fp32 == pytest.approx(296 * 4.6e-12)
    assert ann.dense == 296 * 5
    assert ann.effective_macs == (200 - 16) * 5  # the zero weight in the middle meets an input at all 16 places
    assert ann.effective_acs == 0
    assert synapses(net, net.connections[0], nonzero=True) == 184
    measured = sparsity(net, run)
    assert measured.activation == 1.0
    assert measured.connection == round(1 / (18 + 96), 4)
    assert measured.footprint_bits == 18 * 4 + 96 * 8 + 24 * (2 + 1)
    assert measured.footprint_neurobench == 4 * (18 + 96 + 2 + 1)


def test_the_table_shows_layers_sources_and_the_host(capsys):
    rich = pytest.importorskip("rich.console")
    net = soft_reset_on(0, 16)
    run = simulate(net, np.full((2, 3), 7))
    for chip in ("loihi1", "loihi2"):
        rich.Console(width=160).print(energy(net, run, chip).render())
    shown = capsys.readouterr().out
    assert "input, on the host" in shown
    assert "SANA-FE" in shown
    assert "No energy in joules" in shown


@pytest.mark.parametrize(
    ("value", "text"),
    [(2.36e-11, "23.6 pJ"), (9.996e-10, "1.00 nJ"), (0.0, "0 J"), (None, "—"), (1.5, "1.50 J"), (-2e-6, "-2.00 µJ")],
)
def test_si_prefixes(value, text):
    assert si(value, "J") == text


def test_ranges_and_axes_share_a_unit():
    assert si_range(4e-7, 1.2e-6, "J") == "0.400–1.20 µJ"
    assert si_range(1e-6, 1e-6, "J") == "1.00 µJ"
    assert axis_unit([2e-9, 5e-7], "J") == (pytest.approx(1e9), "nJ")
    assert count(48_000) == "48,000"
    assert count(3_400_000) == "3.40 M"
    assert percent(None) == "—"


def test_a_report_prints_as_its_tables():
    network = Network(
        name="printed",
        steps=2,
        input=Input(shape=(2,)),
        populations=[Population(name="a", shape=(2,), threshold=64, reset_amount=64)],
        connections=[Connection(source="input", target="a", synapse=Dense([[1, 2], [3, 4]]))],
    )
    text = str(energy(network, simulate(network, np.ones((3, 2), np.int64))))
    assert "printed on loihi1" in text
    assert "synaptic ops" in text
