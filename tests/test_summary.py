"""What `lapilli inspect` says is counted right and reads well."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from rich.console import Console

from lapilli.arithmetic import synapse_sum
from lapilli.export import (
    Connection,
    Conv2d,
    Dense,
    Input,
    Network,
    Population,
    Readout,
    Scale,
    Summary,
    render,
    summarize,
)
from strategies import networks


def example(**changes):
    weight = np.zeros((4, 2, 3, 3), np.int8)
    weight[:, :, 1, 1] = 5
    weight[0, 0, 0, 0] = -7
    bias = np.array([64, 0, 0, -64]).reshape(4, 1, 1)
    convolution = Conv2d(weight, padding=1)
    given = {
        "name": "example",
        "steps": 4,
        "input": Input(shape=(2, 4, 6), high=255, scale=[1 / 255]),
        "populations": [
            Population(name="conv", shape=(4, 4, 6), threshold=640, reset_amount=600, dv=128, bias=bias),
            Population(name="out", shape=(3,), reset="none"),
        ],
        "connections": [
            Connection(source="input", target="conv", synapse=convolution, weight_bits=4, weight_exponent=-2),
            Connection(source="conv", target="out", synapse=Dense(np.arange(-144, 144).reshape(3, 96) // 2), delay=3),
        ],
        "readout": Readout(population="out", kind="membrane"),
        "labels": ["cat", "dog", "owl"],
        "metadata": {"test_accuracy": 0.9},
    }
    return Network(**(given | changes))


def text(network, width=100):
    out = io.StringIO()
    Console(file=out, width=width, force_terminal=False).print(render(summarize(network)))
    return out.getvalue()


def test_counts_of_a_small_network():
    s = summarize(example())
    conv, out = s.connections
    assert (conv.kind, conv.weight_shape, conv.weight, conv.parameters) == ("conv2d", (4, 2, 3, 3), (-7, 5), 72)
    assert (conv.nonzero, conv.memory_bits) == (9, 72 * 4)
    assert conv.synapses == 2 * 4 * 24 + 3 * 5  # the corner tap misses one row and one column
    assert (out.parameters, out.nonzero, out.synapses) == (288, 286, 286)
    assert (out.delay, out.stride, out.groups) == (3, None, None)
    assert s.populations[0].bias == (-64, 64)
    assert s.totals.neurons == 99
    assert s.totals.parameters == 72 + 288 + 4
    assert s.totals.synapses == conv.synapses + out.synapses
    assert s.totals.memory_bits == 72 * 4 + 288 * 8
    assert s.digest == example().digest()


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(networks(delays=True))
def test_synapses_are_the_non_zero_entries_of_the_unrolled_weights(network):
    for c, counted in zip(network.connections, summarize(network).connections, strict=True):
        source, target = network.shape_of(c.source), network.shape_of(c.target)
        one_at_a_time = np.eye(int(np.prod(source)), dtype=np.int64).reshape(-1, *source)
        assert counted.synapses == np.count_nonzero(synapse_sum(c.synapse, one_at_a_time, target))


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(networks(delays=True, wild=True))
def test_every_network_renders_in_a_hundred_columns_and_as_json(network):
    shown = text(network)
    assert max(len(line) for line in shown.splitlines()) <= 100
    assert "…" not in shown  # nothing is cut off
    assert all(p.name in shown for p in network.populations)
    assert json.loads(json.dumps(summarize(network).to_json(), allow_nan=False))["steps"] == network.steps


def test_json_has_the_whole_tree():
    found = summarize(example()).to_json()
    assert found.keys() == set(Summary.__dataclass_fields__)
    assert found["connections"][0]["padding"] == [1, 1]
    assert found["readout"] == {"population": "out", "kind": "membrane", "decay": 0}


def test_the_page_says_what_matters():
    shown = text(example())
    for words in (
        "example   4 steps",
        "membrane of out",
        "cat, dog, owl",
        "test_accuracy",
        "subtract 600",
        "conv2d p1",
        "4x2x3x3",
        "4 x2^-2",
        "-64..64",
        "99 neurons",
        "no overflow possible",
        "scale 0.00392157, zero 0",
    ):
        assert words in shown, words
    assert "delay" in shown
    undelayed = example(connections=[example().connections[0]])
    assert "delay" not in text(undelayed)


def test_possible_overflow_is_named():
    narrow = [Population(name="conv", shape=(4, 4, 6), threshold=10, state_bits=8), example().populations[1]]
    shown = text(example(populations=narrow))
    assert "the current may wrap in the worst case of any input: conv" in shown
    assert "the membrane may saturate in the worst case of any input: conv" in shown


@pytest.mark.parametrize("readout", [None, Readout(population="conv", kind="weighted_count", decay=205)])
def test_other_readouts(readout):
    shown = text(example(readout=readout, labels=[]))
    assert ("weighted_count of conv, decay 205/4096 per step" if readout else "none") in shown


def test_escape_sequences_from_a_file_do_not_reach_the_terminal():
    shown = text(example(name="\x1b[2J", labels=["\x1b]0;", "b", "c"], metadata={"\x1bkey": "\x1b[31m"}))
    assert "\x1b" not in shown


def test_scale_connections_and_groups():
    both = example(
        populations=[Population(name="a", shape=(2, 4, 6), threshold=5, reset="zero")],
        connections=[
            Connection(source="input", target="a", name="grouped", synapse=Conv2d(np.ones((2, 1, 1, 1)), groups=2)),
            Connection(source="input", target="a", name="scaled", synapse=Scale([3])),
        ],
        readout=None,
        labels=[],
    )
    assert "conv2d g2" in text(both)
    assert [c.synapses for c in summarize(both).connections] == [48, 48]
