"""Each design rule has a network that keeps it and one that breaks it."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from lapilli.deploy import check, load_chip
from lapilli.deploy.chip import Quantity
from lapilli.deploy.rules import RULES, representable
from lapilli.network import INPUT, Connection, Dense, Input, Network, Population
from strategies import networks


def net(*, weight=((3, -4),), source=None, steps=4, connection=None, more=(), **population):
    """Two inputs onto one neuron that every chip can hold; keywords change it."""
    p = {"name": "p", "shape": (1,), "threshold": 640, "reset": "zero", **population}
    return Network(
        name="n",
        steps=steps,
        input=source or Input(shape=(2,)),
        populations=[Population(**p)],
        connections=[
            Connection(source=INPUT, target="p", synapse=Dense(np.array(weight)), **(connection or {})),
            *more,
        ],
    )


def chain(length, skip):
    """A chain of neurons, and a branch from the first to the last one."""
    names = [f"p{i}" for i in range(length)]
    return Network(
        name="chain",
        steps=2,
        input=Input(shape=(1,)),
        populations=[Population(name=n, shape=(1,), threshold=64, reset="zero") for n in names],
        connections=[
            Connection(source=a, target=b, synapse=Dense([[2]])) for a, b in zip([INPUT, *names], names, strict=False)
        ]
        + ([Connection(source=INPUT, target=names[-1], synapse=Dense([[2]]), name="branch")] if skip else []),
    )


def chip_with(base="loihi1", **quantities):
    chip = load_chip(base)
    found = {k.replace("__", "."): Quantity(v, v, v, source="test") for k, v in quantities.items()}
    return replace(chip, quantities={**chip.quantities, **found})


def many(neurons, inputs=1):
    return Network(
        name="many",
        steps=2,
        input=Input(shape=(inputs,)),
        populations=[Population(name="p", shape=(neurons,), threshold=64 * 300, reset="zero")],
        connections=[Connection(source=INPUT, target="p", synapse=Dense(np.ones((neurons, inputs))))],
    )


FOUR_BITS = chip_with(synapses__weight_bits=4)
FIVE_BIT_SPIKES = chip_with("loihi2", neurons__graded_spikes=5)
TWO_CORES = chip_with(geometry__cores_per_chip=2)
GRADED = Input(shape=(2,), low=0, high=255, scale=np.array([1 / 255]))
cycle = Connection(source="p", target="p", synapse=Dense([[1]]), delay=1)

# rule: (chip, kept by, broken by, place, part of the message, severity)
CASES = {
    "weights_fit": (FOUR_BITS, net(weight=[[7, -8]]), net(weight=[[8, 0]]), "'input->p'", "4 bits", "error"),
    "weight_exponent_fits": (
        "loihi1",
        net(connection={"weight_exponent": 8}),
        net(connection={"weight_exponent": 9}),
        "'input->p'",
        "-7..7",
        "error",
    ),
    "weights_keep_low_bits": (
        "loihi1",
        net(weight=[[4, -8]], connection={"weight_exponent": -2}),
        net(weight=[[4, -6]], connection={"weight_exponent": -2}),
        "'input->p'",
        "2^-2",
        "error",
    ),
    "effective_weight_fits": (
        "loihi1",
        net(weight=[[127, 0]], connection={"weight_exponent": 8}),
        net(weight=[[-128, 0]], connection={"weight_exponent": 8}),
        "'input->p'",
        "2097152 state units",
        "error",
    ),
    "threshold_fits": ("loihi1", net(), net(threshold=641), "'p'", "use 640 or 704", "error"),
    "bias_fits": (
        "loihi2",
        net(bias=np.array([4095 * 128])),
        net(bias=np.array([4097])),
        "'p'",
        "1 of 1 biases, such as 4097",
        "error",
    ),
    "decays_fit": ("loihi1", net(du=1, dv=4095), net(du=0), "'p'", "du = 0", "error"),
    "state_width_fits": ("loihi2", net(), net(state_bits=20), "'p'", "state_bits = 20", "error"),
    "initial_membrane_fits": ("loihi1", net(), net(v_init=64), "'p'", "v_init = 64", "error"),
    "soft_reset_is_available": (
        "loihi1",
        net(),
        net(reset="subtract", reset_amount=640),
        "'p'",
        "2 compartments",
        "note",
    ),
    "states_cannot_overflow": (
        "loihi2",
        net(),
        net(weight=[[-127, -127]], connection={"weight_exponent": 8}),
        "'p'",
        "can saturate",
        "note",
    ),
    "overflow_policies_agree": (
        "loihi1",
        net(weight=[[127, -128]], connection={"weight_exponent": 7}),
        net(weight=[[127, 127]], connection={"weight_exponent": 8}),
        "'p'",
        "nengo-loihi wraps it beyond -2,097,152..2,097,151",
        "note",
    ),
    "input_is_binary": ("loihi1", net(), net(source=GRADED), "input", "write the current of p as bias", "note"),
    "payloads_fit": ("loihi1", net(), net(payload_max=15, payload_shift=6), "'p'", "spikes are binary", "error"),
    "delays_fit": ("loihi1", chain(60, skip=False), chain(66, skip=True), "'branch'", "65 steps", "error"),
    "neurons_fit_cores": ("loihi1", many(4, 4000), many(4, 5000), "'p'", "input axons: 5000 > 4096", "error"),
    "network_fits_one_chip": (TWO_CORES, many(2048), many(2049), "network", "3 cores, 2 chips", "note"),
}


def broken(rule, chip, network):
    return [v for v in check(network, chip) if v.rule == rule]


@pytest.mark.parametrize("rule", CASES)
def test_a_network_that_keeps_the_rule(rule):
    chip, kept, *_ = CASES[rule]
    assert broken(rule, chip, kept) == []


@pytest.mark.parametrize("rule", CASES)
def test_a_network_that_breaks_the_rule_is_told_where_and_why(rule):
    chip, _, bad, place, message, severity = CASES[rule]
    (violation,) = broken(rule, chip, bad)
    assert place in violation.where
    assert message in violation.message
    assert violation.severity == severity
    assert violation.remedy
    assert violation.source
    assert violation.to_json()["message"] == violation.message


def test_every_rule_has_its_case():
    assert {rule.__name__ for rule in RULES} == set(CASES)


def test_a_wide_payload_is_refused_where_spikes_are_graded():
    (note,) = broken("payloads_fit", FIVE_BIT_SPIKES, net(payload_max=31, payload_shift=6))
    assert (note.severity, "program of their own" in note.limit) == ("note", True)
    (violation,) = broken("payloads_fit", FIVE_BIT_SPIKES, net(payload_max=32, payload_shift=6))
    assert broken("payloads_fit", FIVE_BIT_SPIKES, net(payload_max=31, payload_shift=6, dv=4096)) == []
    assert (violation.found, violation.limit) == ("graded spikes up to 32, 6 bits", "a spike's payload has 5")
    assert violation.severity == "error"
    assert broken("neurons_fit_cores", "loihi1", net(payload_max=15)) == []  # said once
    assert broken("input_is_binary", "loihi2", net(source=GRADED)) == []
    (violation,) = broken("input_is_binary", FIVE_BIT_SPIKES, net(source=GRADED))
    assert "needs 8 bits" in violation.message
    assert violation.severity == "error"


def test_a_threshold_beyond_the_mantissa_is_refused():
    (violation,) = broken("threshold_fits", "loihi1", net(threshold=131072 * 64, state_bits=25))
    assert "mantissa 131072" in violation.message


def test_an_unrunnable_cycle_is_a_violation():
    two = Network(
        name="two",
        steps=2,
        input=Input(shape=(1,)),
        populations=[Population(name=n, shape=(1,), threshold=64, reset="zero") for n in "ab"],
        connections=[
            Connection(source=s, target=t, synapse=Dense([[1]]), delay=d)
            for s, t, d in ((INPUT, "a", 0), ("a", "b", 0), ("b", "a", 1))
        ],
    )
    (violation,) = broken("delays_fit", "loihi1", two)
    assert "cycle" in violation.message
    assert broken("delays_fit", "loihi1", net(more=[cycle])) == []


def test_long_delays_have_a_price():
    (violation,) = broken("delays_fit", "loihi1", chain(12, skip=True))
    assert (violation.severity, violation.found) == ("note", "11 steps of delay on the chip")


def test_errors_come_before_notes():
    severities = [v.severity for v in check(net(reset="subtract", reset_amount=64, threshold=641, du=0), "loihi1")]
    assert severities == sorted(severities)
    assert set(severities) == {"error", "note"}


def test_representable_biases_are_found_exactly():
    every = np.arange(-300, 301)
    for mantissa, exponent in ((15, 3), (7, 2), (31, 0)):
        expected = {m << e for m in range(-mantissa, mantissa + 1) for e in range(exponent + 1)}
        assert set(every[representable(every, mantissa, exponent)]) == expected & set(every.tolist())


@given(networks(stock=True, resets=("zero",), max_steps=3))
@settings(max_examples=40, deadline=None)
def test_what_the_stock_neuron_holds_breaks_no_register_rule(network):
    registers = {"weights_fit", "threshold_fits", "bias_fits", "state_width_fits", "initial_membrane_fits"}
    assert not [v for v in check(network, "loihi2") if v.rule in registers]
