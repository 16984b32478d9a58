"""The description: what it refuses, what it keeps, what it means."""

import json

import numpy as np
import pytest
from hypothesis import given, settings

from lapilli.errors import DataError, DescriptionError
from lapilli.network import (
    Connection,
    Conv2d,
    Dense,
    Input,
    Network,
    Population,
    Readout,
    Scale,
    from_structure,
)
from lapilli.recording import Recording, count_weights, decide, scores
from strategies import networks


def small(**changes):
    parts = {
        "name": "small",
        "steps": 3,
        "input": Input(shape=(2,), high=4),
        "populations": [Population(name="a", shape=(3,), threshold=64, reset_amount=64)],
        "connections": [Connection(source="input", target="a", synapse=Dense(np.ones((3, 2), int)))],
        "readout": Readout(population="a"),
    }
    return Network(**{**parts, **changes})


@settings(max_examples=60, deadline=None)
@given(networks(delays=True, acyclic=False, wild=True))
def test_structure_and_tensors_rebuild_the_network(network):
    structure = json.loads(json.dumps(network.structure()))
    again = from_structure(structure, network.tensors(), network.metadata)
    assert again == network
    assert again.digest() == network.digest()


def test_digest_sees_every_part():
    base = small()
    others = [
        small(steps=4),
        small(input=Input(shape=(2,), high=5)),
        small(input=Input(shape=(2,), high=4, scale=np.array([0.5]))),
        small(populations=[Population(name="a", shape=(3,), threshold=65, reset_amount=64)]),
        small(populations=[Population(name="a", shape=(3,), threshold=64, reset_amount=64, bias=np.array([1]))]),
        small(connections=[Connection(source="input", target="a", synapse=Dense(np.array([[1, 1], [1, 1], [1, 2]])))]),
        small(connections=[Connection(source="input", target="a", synapse=Dense(np.ones((3, 2), int)), delay=1)]),
        small(readout=Readout(population="a", kind="weighted_count", decay=200)),
        small(labels=["x", "y", "z"]),
    ]
    assert len({n.digest() for n in [base, *others]}) == len(others) + 1
    assert small(metadata={"note": 1}).digest() == base.digest()
    assert small(metadata={"note": 1}) != base


def population(**options):
    return lambda: Population(**{"name": "p", "shape": (2,), **options})


def connection(synapse, **options):
    return lambda: Connection(**{"source": "input", "target": "a", "synapse": synapse, **options})


REFUSED = {
    "name": (population(name="1 bad"), "starts with a letter"),
    "reserved name": (population(name="input"), "reserved"),
    "shape": (population(shape=(0,)), "axis below 1"),
    "huge shape": (population(shape=(2**20, 2**20)), "more than"),
    "threshold": (population(threshold=-1), "threshold -1"),
    "wide threshold": (population(threshold=2**23), "outside 0"),
    "decay": (population(dv=4097), "dv 4097"),
    "fractional decay": (population(dv=0.5), "not an integer"),
    "reset": (population(reset="soft"), "subtract, zero or none"),
    "reset amount": (population(reset="zero", reset_amount=5), "belongs to 'subtract'"),
    "bias shape": (population(bias=np.zeros((3,))), "does not broadcast"),
    "bias fraction": (population(bias=np.array([0.5])), "not made of integers"),
    "bias nan": (population(bias=np.array([np.nan])), "outside"),
    "bias lowest": (population(bias=np.array([-(2**63)])), "outside"),
    "weights": (lambda: Dense([[0.5]]), "not made of integers"),
    "wide weights": (lambda: Dense([[200]]), "-128..127"),
    "weight bits": (connection(Dense([[9]]), weight_bits=4), "do not fit 4"),
    "groups": (lambda: Conv2d(np.ones((3, 1, 1, 1)), groups=2), "in 2 groups"),
    "stride": (lambda: Conv2d(np.ones((3, 1, 1, 1)), stride=0), "below 1"),
    "delay": (connection(Dense([[1]]), delay=63), "outside 0..62"),
    "unknown source": (
        lambda: small(connections=[connection(Dense(np.ones((3, 2))), source="b")()]),
        "no population 'b'",
    ),
    "misfit": (lambda: small(connections=[connection(Dense(np.ones((4, 2))))()]), "produces 4"),
    "misfit input": (lambda: small(connections=[connection(Dense(np.ones((3, 5))))()]), "takes 5 inputs"),
    "twice": (lambda: small(connections=[connection(Dense(np.ones((3, 2))))()] * 2), "give each its own name"),
    "cycle": (
        lambda: small(connections=[connection(Dense(np.ones((3, 3))), source="a", target="a")()]),
        "cycle without delay",
    ),
    "exponent": (
        lambda: small(connections=[connection(Dense(np.ones((3, 2))), weight_exponent=-7)()]),
        "fraction bits",
    ),
    "readout": (lambda: small(readout=Readout(population="z")), "no population 'z'"),
    "readout of a membrane": (lambda: small(readout=Readout(population="a", kind="membrane")), "reset 'subtract'"),
    "labels": (lambda: small(labels=["only one"]), "1 labels for 3"),
    "steps": (lambda: small(steps=0), "steps 0"),
    "metadata": (lambda: small(metadata={"x": object()}), "not JSON"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_the_reason(case):
    make, reason = REFUSED[case]
    with pytest.raises(DescriptionError) as caught:
        make()
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_silent_population_cannot_send():
    accumulator = Population(name="r", shape=(3,), reset="none")
    with pytest.raises(DescriptionError, match="sends no spikes"):
        small(
            populations=[*small().populations, accumulator],
            connections=[*small().connections, Connection(source="r", target="a", synapse=Scale([1]))],
        )


@pytest.mark.parametrize("damage", ["version", "missing", "extra", "kind", "key"])
def test_from_structure_refuses(damage):
    network = small()
    structure, tensors = json.loads(json.dumps(network.structure())), network.tensors()
    if damage == "version":
        structure["format_version"] = 99
    if damage == "missing":
        tensors.pop("a/bias")
    if damage == "extra":
        tensors["b/bias"] = np.zeros(1)
    if damage == "kind":
        structure["connections"][0]["synapse"]["kind"] = "telepathy"
    if damage == "key":
        structure["populations"][0]["mood"] = "good"
    with pytest.raises(DescriptionError):
        from_structure(structure, tensors)


def test_arrays_are_private_and_frozen():
    weight = np.ones((3, 2), np.int8)
    network = small(connections=[Connection(source="input", target="a", synapse=Dense(weight))])
    weight[0, 0] = 5
    assert network.connections[0].synapse.weight[0, 0] == 1
    with pytest.raises(ValueError, match="read-only"):
        network.connections[0].synapse.weight[0, 0] = 2


def test_order_follows_connections_not_the_list():
    a, b = Population(name="a", shape=(1,), threshold=1), Population(name="b", shape=(1,), threshold=1)
    one = Scale([1])
    network = small(
        input=Input(shape=(1,)),
        populations=[b, a],
        connections=[
            Connection(source="a", target="b", synapse=one),
            Connection(source="input", target="a", synapse=one),
            Connection(source="b", target="a", synapse=one, delay=1),
        ],
        readout=None,
    )
    assert [p.name for p in network.order] == ["a", "b"]
    assert not network.acyclic
    assert small().acyclic


def test_stages_are_the_cycles_in_the_order_in_which_spikes_flow():
    def connected(*pairs):
        return small(
            input=Input(shape=(1,)),
            populations=[Population(name=n, shape=(1,), threshold=1) for n in "edcba"],
            connections=[
                Connection(source="input" if s == "-" else s, target=t, synapse=Scale([1]), delay=int(d))
                for s, t, d in pairs
            ],
            readout=None,
        )

    net = connected("-a0", "aa3", "ab0", "bc2", "cb4", "cd5", "de0", "be1")
    assert [[p.name for p in stage] for stage in net.stages] == [["a"], ["c", "b"], ["d"], ["e"]]
    assert net.strides == (3, 2, net.steps, net.steps)
    assert net.steps_at_once == 2
    assert [p.name for p in net.flow] == [*"acbde"]
    net = connected("-b0", "be0", "ec0", "cb6", "-d0", "da0", "ad1")
    assert sorted([p.name for p in stage] for stage in net.stages) == [["b", "e", "c"], ["d", "a"]]
    assert net.steps_at_once == 1


class TestEncode:
    graded = Input(shape=(2,), low=-3, high=4, scale=np.array([0.5]), zero=np.array([0.25]))

    def test_rounds_half_to_even_and_clips(self):
        # (0.5 - 0.25) / 0.5 = 0.5 -> 0; (1 - 0.25) / 0.5 = 1.5 -> 2; -9 and 9 clip
        np.testing.assert_array_equal(self.graded.encode([[0.5, 1.0], [-9.0, 9.0]]), [[0, 2], [-3, 4]])

    def test_integers_are_taken_as_they_are(self):
        np.testing.assert_array_equal(self.graded.encode(np.array([[1, -3]])), [[1, -3]])

    @pytest.mark.parametrize(
        ("x", "reason"),
        [
            (np.array([[5, 0]]), "outside the network's -3..4"),
            (np.zeros((1, 3)), "does not fit"),
            (np.zeros(2), "does not fit"),
            (np.array([[np.nan, 0]]), "not finite"),
            (np.array([["a", "b"]]), "dtype"),
        ],
    )
    def test_refuses(self, x, reason):
        with pytest.raises(DataError, match=reason):
            self.graded.encode(x)


class TestScores:
    spikes = np.array([[[1, 0, 1]], [[0, 1, 1]], [[0, 1, 0]]], np.uint8)  # [T=3, B=1, 3]

    def test_counts_and_the_first_on_a_tie(self):
        got = scores(small(), Recording(spikes={"a": self.spikes}))
        np.testing.assert_array_equal(got, [[1, 2, 2]])
        np.testing.assert_array_equal(decide(got), [1])

    def test_weighted_counts_favour_late_spikes(self):
        network = small(readout=Readout(population="a", kind="weighted_count", decay=2048))
        np.testing.assert_array_equal(count_weights(network), [2**18, 2**19, 2**20])
        np.testing.assert_array_equal(
            scores(network, Recording(spikes={"a": self.spikes})), [[2**18, 2**19 + 2**20, 2**18 + 2**19]]
        )

    def test_membrane(self):
        network = small(
            populations=[Population(name="a", shape=(3,), reset="none")],
            readout=Readout(population="a", kind="membrane"),
        )
        np.testing.assert_array_equal(scores(network, Recording(v_final={"a": np.array([[5, 7, 6]])})), [[5, 7, 6]])
