"""Worst-case bounds hold on every run, and are reached where they claim to be exact."""

import numpy as np
import pytest
from hypothesis import given, settings

from lapilli.bounds import largest_sum, population_bounds, synapse_bounds
from lapilli.network import Connection, Conv2d, Input, Network, Population, Scale
from lapilli.sim.reference import reference
from strategies import networks_with_input


@settings(max_examples=100, deadline=None)
@given(networks_with_input(wild=True, delays=True, acyclic=False))
def test_no_run_leaves_its_bounds(case):
    network, x = case
    run = reference(network, x, trace=[p.name for p in network.populations])
    for p in network.populations:
        bounds = population_bounds(network, p)
        assert bounds.drive[0] <= run.current[p.name].min()
        assert run.current[p.name].max() <= bounds.drive[1]
        if not bounds.can_wrap:
            assert run.wraps[p.name] == 0
            assert bounds.current[0] <= run.u[p.name].min()
            assert run.u[p.name].max() <= bounds.current[1]
        if not bounds.can_saturate:
            assert run.saturations[p.name] == 0
            assert bounds.membrane[0] <= run.v[p.name].min()
            assert run.v[p.name].max() <= bounds.membrane[1]


def test_the_synaptic_bound_is_reached():
    weight = np.array([[[[3, -2], [1, 0]]], [[[-5, -5], [-5, -5]]]])
    connection = Connection(source="input", target="a", synapse=Conv2d(weight))
    network = Network(
        name="n",
        steps=1,
        input=Input(shape=(1, 2, 2), low=-1, high=4),
        populations=[Population(name="a", shape=(2, 1, 1))],
        connections=[connection],
    )
    assert synapse_bounds(network, connection) == (-80, 20)  # 4 * (-20); -1 * (-20) beats 4 * 4 - 1 * (-2) = 18
    assert largest_sum(network, connection) == 80
    lowest = reference(network, np.full((1, 1, 2, 2), 4), trace=["a"]).current["a"].min()
    assert lowest == -80 * 64


def test_a_leaking_current_is_bounded_by_the_geometric_series():
    network = Network(
        name="n",
        steps=1000,
        input=Input(shape=(1,)),
        populations=[Population(name="a", shape=(1,), du=2048, dv=4096)],
        connections=[Connection(source="input", target="a", synapse=Scale([1]))],
    )
    bounds = population_bounds(network, network.population("a"))
    run = reference(network, np.ones((1, 1), np.int64), trace=["a"])
    assert bounds.current == (0, int(run.u["a"].max()))


@settings(max_examples=60, deadline=None)
@given(networks_with_input(delays=True, max_steps=12))
def test_no_membrane_is_charged_beyond_its_bound(case):
    """Before fire and reset, where a soft reset tells what it took."""
    network, x = case
    run = reference(network, x, trace=[p.name for p in network.populations])
    for p in network.populations:
        bounds = population_bounds(network, p)
        if p.reset == "subtract" and not p.graded and not bounds.can_saturate:
            assert (run.v[p.name] + p.reset_amount * run.spikes[p.name].astype(np.int64)).max() <= bounds.membrane[1]


@pytest.mark.parametrize(
    ("reset", "rho", "bound"),
    [
        ("subtract", 640, 640 + 256),
        ("subtract", 100, 768 + 997 * 156),
        ("zero", 0, 640 + 256),
        ("none", 0, 256_000),
    ],
)
def test_a_reset_holds_the_membrane_below_what_it_cannot_add_up_to(reset, rho, bound):
    """256 at each of 1000 steps: the threshold and one step more, if the reset takes what arrives."""
    p = Population(name="a", shape=(1,), threshold=640, reset=reset, reset_amount=rho)
    connection = Connection(source="input", target="a", synapse=Scale([4]))
    network = Network(name="n", steps=1000, input=Input(shape=(1,)), populations=[p], connections=[connection])
    assert population_bounds(network, p).membrane[1] == bound
    assert not population_bounds(network, p).can_saturate
    run = reference(network, np.ones((1, 1), np.int64), trace=["a"])
    assert run.v["a"].max() <= bound
