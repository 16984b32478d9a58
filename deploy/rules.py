"""Design rules: what of a network a chip cannot hold, each as a small function that says so by name.

A rule takes a :class:`Case` and yields a :class:`Violation` for everything it finds. Severity "error": the chip cannot
represent it. Severity "note": it can, at a price, or only an unlikely worst case breaks it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from ..bounds import PopulationBounds, policy_gaps, population_bounds
from ..errors import UnsupportedError
from ..network import DECAY_ONE, INPUT, Connection, Network, Population
from ..overflow import LAVA
from .chip import Chip, Quantity, load_chip
from .placement import Plan, plan, without_graded_spikes
from .schedule import Schedule, make_schedule

Severity: TypeAlias = Literal["error", "note"]


@dataclass(frozen=True)
class Violation:
    """One thing that breaks one rule.

    Attributes
    ----------
    rule : str
        The rule function's name.
    where : str
        The population or connection, or the network.
    found, limit : str
    source : str
        Where the limit is from.
    remedy : str
        What would help.
    severity : {"error", "note"}
    """

    rule: str
    where: str
    found: str
    limit: str
    source: str
    remedy: str
    severity: Severity = "error"

    @property
    def message(self) -> str:
        """One line for the reader."""
        return f"{self.found}; {self.limit} [{self.source}]: {self.remedy}"

    def to_json(self) -> dict[str, str]:
        """All fields and the message."""
        return asdict(self) | {"message": self.message}

    def __str__(self) -> str:
        return f"{self.severity}: {self.where}: {self.message} ({self.rule})"


@dataclass
class Case:
    """A network on a chip, with what several rules need."""

    network: Network
    chip: Chip

    @cached_property
    def bounds(self) -> dict[str, PopulationBounds]:
        """Worst case of every population."""
        return {p.name: population_bounds(self.network, p) for p in self.network.populations}

    @cached_property
    def schedule(self) -> Schedule | UnsupportedError:
        """The chip's timetable, or why there is none."""
        try:
            return make_schedule(self.network)
        except UnsupportedError as error:
            return error

    @cached_property
    def plan(self) -> Plan | UnsupportedError:
        """The placement, or why there is none."""
        try:
            return plan(self.network, self.chip)
        except UnsupportedError as error:
            return error


Rule: TypeAlias = Callable[[Case], Iterator[Violation]]
RULES: list[Rule] = []


def rule(function: Rule) -> Rule:
    """Add a rule to those that :func:`check` applies."""
    RULES.append(function)
    return function


def check(network: Network, chip: str | Path | Chip) -> list[Violation]:
    """Apply every design rule, errors first.

    Parameters
    ----------
    network : Network
    chip : name, path of a TOML profile, or Chip
    """
    case = Case(network, load_chip(chip))
    found = [violation for each in RULES for violation in each(case)]
    return sorted(found, key=lambda v: v.severity != "error")


def _population(p: Population) -> str:
    return f"population {p.name!r}"


def _connection(c: Connection) -> str:
    return f"connection {c.name!r}"


# Weights


@rule
def weights_fit(case: Case) -> Iterator[Violation]:
    """Weights have at most the chip's number of bits."""
    q = case.chip.get("synapses.weight_bits")
    for c in case.network.connections:
        limit = 2 ** (int(q.value) - 1) if q else None
        low, high = int(c.synapse.weight.min()), int(c.synapse.weight.max())
        if q and limit and not (-limit <= low and high < limit):
            yield Violation(
                "weights_fit",
                _connection(c),
                f"weights {low}..{high}",
                f"{int(q.value)} bits with sign hold {-limit}..{limit - 1}",
                q.source,
                f"quantize to {int(q.value)} bits",
            )


@rule
def weight_exponent_fits(case: Case) -> Iterator[Violation]:
    """The exponent register holds the exponent; int8 weights are stored doubled, with one exponent less."""
    low, high = case.chip.get("synapses.exponent_low"), case.chip.get("synapses.exponent_high")
    for c in case.network.connections:
        stored = c.weight_exponent - 1
        if low and high and not (low.value <= stored <= high.value):
            yield Violation(
                "weight_exponent_fits",
                _connection(c),
                f"weight exponent {c.weight_exponent}, stored as {stored} with doubled weights",
                f"the register holds {int(low.value)}..{int(high.value)}",
                low.source,
                "scale weights, threshold and bias of the target by a power of two",
            )


@rule
def weights_keep_low_bits(case: Case) -> Iterator[Violation]:
    """A negative exponent must not push weight bits below the current's unit: chip and emulators round there."""
    q = case.chip.get("neurons.fraction_bits")
    for c in case.network.connections:
        if q and c.weight_exponent < 0 and bool(np.any(c.synapse.weight % 2 ** min(-c.weight_exponent, 8))):
            yield Violation(
                "weights_keep_low_bits",
                _connection(c),
                f"weights times 2^{c.weight_exponent} are not integers",
                "a synapse adds whole units of current",
                q.source,
                "use weight_exponent 0 or more, and a larger threshold",
            )


@rule
def effective_weight_fits(case: Case) -> Iterator[Violation]:
    """Weight times its power of two fits the accumulator's input."""
    q = case.chip.get("synapses.effective_weight")
    for c in case.network.connections:
        shift = case.network.population(c.target).fraction_bits + c.weight_exponent
        largest = int(np.abs(c.synapse.weight.astype(np.int64)).max()) << shift
        if q and largest > q.value:
            yield Violation(
                "effective_weight_fits",
                _connection(c),
                f"a weight of {largest} state units",
                f"at most {int(q.value)}",
                q.source,
                "use a smaller weight_exponent, threshold and bias",
            )


# Neuron registers


@rule
def threshold_fits(case: Case) -> Iterator[Violation]:
    """The threshold is a mantissa times a fixed power of two."""
    mantissa, exponent = case.chip.get("neurons.threshold_mantissa"), case.chip.get("neurons.threshold_exponent")
    for p in case.network.populations:
        if not (mantissa and exponent and p.spikes):
            continue
        grid = 2 ** int(exponent.value)
        if p.threshold % grid:
            yield Violation(
                "threshold_fits",
                _population(p),
                f"threshold {p.threshold}",
                f"a multiple of {grid}",
                exponent.source,
                f"use {p.threshold // grid * grid} or {-(-p.threshold // grid) * grid}",
            )
        elif p.threshold // grid > mantissa.value:
            yield Violation(
                "threshold_fits",
                _population(p),
                f"threshold {p.threshold}, mantissa {p.threshold // grid}",
                f"the mantissa is at most {int(mantissa.value)}",
                mantissa.source,
                "scale weights, threshold and bias down",
            )


@rule
def bias_fits(case: Case) -> Iterator[Violation]:
    """A bias is a signed mantissa times a power of two of its own."""
    mantissa, exponent = case.chip.get("neurons.bias_mantissa"), case.chip.get("neurons.bias_exponent")
    for p in case.network.populations:
        if not (mantissa and exponent):
            continue
        wrong = p.bias[~representable(p.bias, int(mantissa.value), int(exponent.value))]
        if wrong.size:
            yield Violation(
                "bias_fits",
                _population(p),
                f"{wrong.size} of {p.bias.size} biases, such as {int(wrong.flat[0])}",
                f"mantissa up to ±{int(mantissa.value)} times 2^0..2^{int(exponent.value)}",
                mantissa.source,
                "round biases to that grid (export does), or scale weights, threshold and bias down",
            )


def representable(bias: np.ndarray, mantissa: int, exponent: int) -> np.ndarray:
    """Which biases are ``m 2^e`` with ``|m| <= mantissa`` and ``0 <= e <= exponent``."""
    fits = np.zeros(bias.shape, np.bool_)
    for e in range(exponent + 1):
        fits |= (bias % 2**e == 0) & (np.abs(bias) >> e <= mantissa)
    return fits


@rule
def decays_fit(case: Case) -> Iterator[Violation]:
    """Decays lie in the range of their registers."""
    for p in case.network.populations:
        for name, value in (("du", p.du), ("dv", p.dv)):
            low, high = case.chip.get(f"neurons.{name}_low"), case.chip.get(f"neurons.{name}_high")
            if low and high and not (low.value <= value <= high.value):
                yield Violation(
                    "decays_fit",
                    _population(p),
                    f"{name} = {value}",
                    f"{int(low.value)}..{int(high.value)}",
                    low.source,
                    f"use {name} = {int(min(max(value, low.value), high.value))}",
                )


@rule
def state_width_fits(case: Case) -> Iterator[Violation]:
    """Current and membrane have the chip's width and binary point."""
    for p in case.network.populations:
        for name, value in (("state_bits", p.state_bits), ("fraction_bits", p.fraction_bits)):
            q = case.chip.get(f"neurons.{name}")
            if q and value != q.value:
                yield Violation(
                    "state_width_fits",
                    _population(p),
                    f"{name} = {value}",
                    f"the chip has {int(q.value)}",
                    q.source,
                    f"build the network with {name} = {int(q.value)}",
                )


@rule
def initial_membrane_fits(case: Case) -> Iterator[Violation]:
    """A hard-reset neuron starts where it resets to."""
    q = case.chip.get("neurons.v_init")
    for p in case.network.populations:
        if q and p.reset == "zero" and abs(p.v_init) > q.value:
            yield Violation(
                "initial_membrane_fits",
                _population(p),
                f"v_init = {p.v_init} with reset 'zero'",
                f"the neuron starts at {int(q.value)}",
                q.source,
                "fold the initial membrane into the bias, or train without it (alpha = 1)",
            )


@rule
def soft_reset_is_available(case: Case) -> Iterator[Violation]:
    """A soft reset costs something on every chip known here."""
    q = case.chip.get("neurons.compartments_soft_reset")
    for p in case.network.populations:
        if q and p.reset == "subtract":
            price = (
                f"takes {int(q.value)} compartments per neuron"
                if q.value > 1
                else "needs a neuron program of its own; the stock LIF resets to zero"
            )
            yield Violation(
                "soft_reset_is_available",
                _population(p),
                "soft reset",
                f"on {case.chip.name} it {price}",
                q.source,
                "keep it and pay, or train with reset 'zero'",
                "note",
            )


# What can overflow


@rule
def states_cannot_overflow(case: Case) -> Iterator[Violation]:
    """Neither the current wraps nor the membrane saturates, whatever the input."""
    q = case.chip.get("neurons.state_bits") or Quantity(0, 0, 0, source="the description's state_bits")
    for p in case.network.populations:
        b = case.bounds[p.name]
        for can, what, reach in (
            (b.can_wrap, "the current can wrap", b.drive),
            (b.can_saturate, "the membrane can saturate", b.membrane),
        ):
            if can:
                yield Violation(
                    "states_cannot_overflow",
                    _population(p),
                    f"{what}: worst case {reach[0]}..{reach[1]}" if reach else what,
                    f"±{p.v_max}",
                    q.source,
                    "harmless unless a simulation counts such events; if it does, scale the population down",
                    "note",
                )


@rule
def overflow_policies_agree(case: Case) -> Iterator[Violation]:
    """No number can reach a value that a source for this chip treats otherwise than the description."""
    chip = case.chip
    for p in case.network.populations:
        gaps = {policy: policy_gaps(p, case.bounds[p.name], policy) for policy in chip.others}
        differing = [policy for policy, why in gaps.items() if why]
        if differing:
            yield Violation(
                "overflow_policies_agree",
                _population(p),
                "; ".join(reason for policy in differing for reason in gaps[policy]),
                "this simulator does as Lava does" + (f", {chip.name} as {chip.policy.name}" * (chip.policy != LAVA)),
                "; ".join(policy.source for policy in differing),
                f"only the worst case does; `lapilli sim --policies {chip.name}` names the inputs that do, or scale "
                "the population down to be sure",
                "note",
            )


# Spikes and time


@rule
def input_is_binary(case: Case) -> Iterator[Violation]:
    """A chip with binary spikes cannot be sent graded input; a payload has a limited width."""
    q = case.chip.get("neurons.graded_spikes")
    n = case.network.input
    targets = ", ".join(c.target for c in case.network.outgoing(INPUT))
    if not q or n.binary:
        return
    bits = max(abs(n.low), abs(n.high)).bit_length() + (n.low < 0)
    if q.value == 0:
        yield Violation(
            "input_is_binary",
            "input",
            f"graded input {n.low}..{n.high}",
            "spikes are binary",
            q.source,
            f"the host has to multiply the input by the first weights and write the current of {targets} as bias for "
            "every sample; costs of that are not counted. Or train on event frames (input 0..1)",
            "note",
        )
    elif bits > q.value:
        yield Violation(
            "input_is_binary",
            "input",
            f"graded input {n.low}..{n.high} needs {bits} bits",
            f"a spike's payload has {int(q.value)}",
            q.source,
            "quantize the input to fewer levels",
        )


@rule
def payloads_fit(case: Case) -> Iterator[Violation]:
    """A chip with binary spikes has no graded ones; a payload has a limited width; the stock neuron has none."""
    q = case.chip.get("neurons.graded_spikes")
    if not q:
        return
    for p in case.network.populations:
        bits = p.payload_max.bit_length()
        if not p.graded or (bits <= q.value and p.du == p.dv == DECAY_ONE):  # Lava's GradedReluVec sends those
            continue
        if q.value == 0:
            limit, remedy = "spikes are binary", "let it send plain spikes (payload_max 1), or choose another chip"
        elif bits > q.value:
            limit = f"a spike's payload has {int(q.value)}"
            remedy = "lower payload_max, or send coarser payloads (payload_shift)"
        else:
            limit = (
                f"on {case.chip.name} they need a neuron program of their own; no stock neuron with memory sends them"
            )
            remedy = "keep it and pay, or let it send plain spikes (payload_max 1)"
        found = f"graded spikes up to {p.payload_max}, {bits} bits"
        severity = "error" if bits > q.value else "note"
        yield Violation("payloads_fit", _population(p), found, limit, q.source, remedy, severity)


@rule
def delays_fit(case: Case) -> Iterator[Violation]:
    """Delays, those of branches that skip layers included, fit the chip; and the network can be pipelined at all."""
    if isinstance(case.schedule, UnsupportedError):
        text, _, remedy = str(case.schedule).partition("; ")
        yield Violation("delays_fit", "network", text, "a spike cannot arrive before it is sent", "schedule", remedy)
        return
    limit, sure = case.chip.get("limits.delay"), case.chip.get("limits.delay_guaranteed")
    for c in case.network.connections:
        delay = case.schedule.extra_delay[c.name]
        if limit and delay > limit.value:
            yield Violation(
                "delays_fit",
                _connection(c),
                f"{delay} steps of delay on the chip",
                f"at most {int(limit.value)}",
                limit.source,
                "relay the branch through a population of its own",
            )
        elif sure and delay > sure.value:
            yield Violation(
                "delays_fit",
                _connection(c),
                f"{delay} steps of delay on the chip",
                f"{int(sure.value)} with all neurons of a core in use",
                sure.source,
                "leave neurons of the target's cores unused",
                "note",
            )


# Space


@rule
def neurons_fit_cores(case: Case) -> Iterator[Violation]:
    """Every neuron, with its synapses and axons, fits a core."""
    if isinstance(case.plan, UnsupportedError) and not without_graded_spikes(case.network, case.chip):  # payloads_fit
        text, _, remedy = str(case.plan).partition("; ")
        where, _, found = text.partition(": ")
        yield Violation("neurons_fit_cores", where, found, "one core per neuron at most", case.chip.name, remedy)


@rule
def network_fits_one_chip(case: Case) -> Iterator[Violation]:
    """Several chips work, but their links cost time and energy that no source prices per message."""
    if isinstance(case.plan, Plan) and case.plan.chips > 1:
        q = case.chip.get("geometry.cores_per_chip")
        yield Violation(
            "network_fits_one_chip",
            "network",
            f"{case.plan.cores} cores, {case.plan.chips} chips",
            f"{int(q.value) if q else '?'} cores per chip",
            q.source if q else case.chip.name,
            "use a board with several chips, or a smaller network",
            "note",
        )
