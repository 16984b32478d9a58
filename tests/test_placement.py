"""Plans: every neuron on one core, within every limit, with traffic counted from the synapses."""

import io
import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings

from lapilli.arithmetic import fan_out, synapse_sum
from lapilli.deploy import load_chip, plan
from lapilli.deploy.chip import Quantity
from lapilli.deploy.fan_in import synapses_into
from lapilli.deploy.placement import tile_of
from lapilli.errors import UnsupportedError
from lapilli.network import INPUT, Connection, Conv2d, Dense, Input, Network, Population
from strategies import networks


def chip_with(base="loihi1", **limits):
    chip = load_chip(base)
    found = {f"limits.{k}": Quantity(v, v, v, source="test") for k, v in limits.items()}
    return replace(chip, quantities={**chip.quantities, **found})


TIGHT = chip_with(neurons_per_core=7, synaptic_memory=4096, input_axons=200, output_axons=12)


def two_layers(n_in, n_out, reset="zero"):
    return Network(
        name="two",
        steps=2,
        input=Input(shape=(n_in,)),
        populations=[
            Population(name="a", shape=(n_in,), threshold=64, reset=reset),
            Population(name="b", shape=(n_out,), threshold=64, reset=reset),
        ],
        connections=[
            Connection(source=INPUT, target="a", synapse=Dense(np.eye(n_in))),
            Connection(source="a", target="b", synapse=Dense(np.ones((n_out, n_in)))),
        ],
    )


@given(networks(delays=True, acyclic=False))
@settings(max_examples=60, deadline=None)
def test_every_neuron_has_one_core_within_every_limit(network):
    for chip in (load_chip("loihi1"), load_chip("loihi2"), TIGHT):
        try:
            made = plan(network, chip)
        except UnsupportedError:
            assert chip is TIGHT or (chip.name == "loihi1" and network.format_version == 2)  # graded spikes
            continue
        assert [s.core for s in made.shards] == list(range(made.cores))
        for p in network.populations:
            shards = made.shards_of(p.name)
            assert [s.first for s in shards] == [0, *(s.stop for s in shards[:-1])]
            assert shards[-1].stop == p.size
        for shard in made.shards:
            assert all(used is None or used <= 1 for used in made.utilization(shard).values())
            assert shard.compartments == shard.neurons * chip.compartments(network.population(shard.population).reset)
        json.dumps(made.to_json(), allow_nan=False)


@given(networks())
@settings(max_examples=60, deadline=None)
def test_synapses_of_all_ranges_add_up_to_the_fan_out(network):
    for c in network.connections:
        source, target = network.shape_of(c.source), network.population(c.target)
        cuts = sorted({0, target.size // 3, target.size // 2, target.size})
        total = sum(synapses_into(c.synapse, source, target.shape, a, b) for a, b in pairwise(cuts))
        np.testing.assert_array_equal(total, fan_out(c.synapse, source, target.shape))


@given(networks())
@settings(max_examples=30, deadline=None)
def test_synapses_into_a_range_are_those_that_reach_it(network):
    """Counted the other way round: which outputs one source neuron changes, with every weight made 1 or 0."""
    for c in network.connections:
        source, target = network.shape_of(c.source), network.population(c.target)
        ones = replace(c.synapse, weight=(c.synapse.weight != 0).astype(np.int8))
        size = int(np.prod(source))
        reached = synapse_sum(ones, np.eye(size, dtype=np.int64).reshape(size, *source), target.shape)
        first, stop = target.size // 4, target.size // 2 + 1
        np.testing.assert_array_equal(
            synapses_into(c.synapse, source, target.shape, first, stop).ravel(),
            reached.reshape(size, -1)[:, first:stop].sum(axis=1),
        )


@pytest.mark.parametrize(
    ("limits", "cores", "cut_by"),
    [
        ({}, 1, "the population's size"),
        ({"neurons_per_core": 30}, 4, "neurons per core"),
        # room for two words per source, 128 bits: 14 synapses of 8 bits and a header of 10 bits
        ({"synaptic_memory": 8 * 64 * 2}, 8, "synaptic memory"),
    ],
)
def test_the_limit_that_cuts_is_named(limits, cores, cut_by):
    made = plan(two_layers(8, 100), chip_with(**limits))
    shards = made.shards_of("b")
    assert (len(shards), shards[0].cut_by) == (cores, cut_by)


def test_output_axons_cut_the_source():
    """With b on 4 cores each neuron of a has 4 axons out, so a core with 12 holds 3 of its 8 neurons."""
    made = plan(two_layers(8, 100), chip_with(neurons_per_core=25, output_axons=12))
    assert [s.neurons for s in made.shards_of("a")] == [3, 3, 2]
    assert [s.axons_out for s in made.shards_of("a")] == [12, 12, 8]
    assert made.shards_of("a")[0].cut_by == "output axons"


def test_memory_is_counted_in_blocks_and_words():
    """100 dense synapses of 8 bits: blocks of 64 (522 bits, 9 words) and 36 (298 bits, 5 words), from 8 sources."""
    (shard,) = plan(two_layers(8, 100), "loihi1").shards_of("b")
    assert shard.memory_bits == 8 * (9 + 5) * 64
    assert (shard.synapses, shard.axons_in) == (800, 8)


def test_a_kernel_is_stored_once_where_the_chip_shares_it():
    rng = np.random.default_rng(0)
    network = Network(
        name="conv",
        steps=2,
        input=Input(shape=(3, 8, 8)),
        populations=[Population(name="a", shape=(4, 8, 8), threshold=64)],
        connections=[Connection(source=INPUT, target="a", synapse=Conv2d(rng.integers(1, 9, (4, 3, 3, 3)), padding=1))],
    )
    (shard,) = plan(network, "loihi2").shards
    assert shard.memory_bits == 4 * 3 * 9 * 8
    assert sum(s.memory_bits for s in plan(network, "loihi1").shards) > 100 * shard.memory_bits


def test_a_soft_reset_takes_two_compartments_on_loihi1():
    assert plan(two_layers(8, 1000, "subtract"), "loihi1").cores == 3
    assert plan(two_layers(8, 1000, "zero"), "loihi1").cores == 2
    assert plan(two_layers(8, 1000, "subtract"), "loihi1").compartments == {"a": 2, "b": 2}


def test_tiles_follow_a_snake_of_neighbours():
    chip = load_chip("loihi1")
    assert tile_of(chip, 0) == tile_of(chip, 3) == (0, 0, 0)
    assert tile_of(chip, 31) == (0, 7, 0)
    assert tile_of(chip, 32) == (0, 7, 1)
    assert tile_of(chip, 128) == (1, 0, 0)
    tiles = [tile_of(chip, core) for core in range(128)]
    assert len(set(tiles)) == 32
    assert all(abs(a[1] - b[1]) + abs(a[2] - b[2]) <= 1 for a, b in pairwise(tiles))


def test_traffic_counts_messages_and_hops():
    """a is core 0 in tile 0; b is cores 1 to 8: three in tile 0, four one tile east, one two tiles east."""
    made = plan(two_layers(8, 80), chip_with(neurons_per_core=10))
    traffic = made.traffic["a->b"]
    assert (traffic.messages, traffic.within_tile, traffic.horizontal, traffic.vertical) == (8, 3, 4 * 1 + 1 * 2, 0)
    assert made.tiles == 3
    assert made.traffic["input->a"].messages == 1
    assert made.traffic["input->a"].horizontal is None
    assert plan(two_layers(8, 80), "loihi2").traffic["a->b"].horizontal is None


def test_ways_between_chips_are_counted_apart():
    chip = load_chip("loihi1")
    two = Quantity(2, 2, 2, source="test")
    chip = replace(chip, quantities={**chip.quantities, "geometry.cores_per_chip": two, "limits.neurons_per_core": two})
    made = plan(two_layers(2, 4), chip)
    assert made.chips == 2
    traffic = made.traffic["a->b"]
    assert (traffic.messages, traffic.within_tile, traffic.between_chips) == (2, 1, 1)


def test_a_graded_input_takes_no_synapses_on_a_chip_with_binary_spikes():
    network = two_layers(8, 8)
    graded = Network(
        name="graded",
        steps=2,
        input=Input(shape=(8,), low=0, high=255),
        populations=network.populations,
        connections=network.connections,
    )
    made = plan(graded, "loihi1")
    assert made.shards_of("a")[0].synapses == 0
    assert any("host" in note for note in made.notes)
    assert plan(network, "loihi1").shards_of("a")[0].synapses == 8
    assert plan(graded, "loihi2").shards_of("a")[0].synapses == 8


def test_a_neuron_too_large_for_a_core_is_named():
    with pytest.raises(UnsupportedError, match=r"population 'b': neuron 0 alone .*input axons: 5000 > 4096"):
        plan(two_layers(5000, 1), "loihi1")


def test_a_plan_prints_as_a_table():
    from rich.console import Console

    console = Console(width=140, record=True, file=io.StringIO())
    console.print(plan(two_layers(8, 100), "loihi1"))
    text = console.export_text()
    assert "two on Intel Loihi 1 (14 nm): 2 cores, 1 chip" in text
    assert "the population's size" in text
