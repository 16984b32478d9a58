"""Worst-case bounds hold on every run, and are reached where they claim to be exact."""

import numpy as np
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
