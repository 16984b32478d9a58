"""Chip profiles: what a chip can hold and what its operations cost, every number with its source.

A profile is a TOML file. :data:`KEYS` lists what may stand in it; whatever is absent is unknown, and nothing is ever
computed from an unknown. Users add chips by writing a file of their own and giving its path.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

from ..errors import FileFormatError
from ..overflow import LAVA, BiasedRule, CurrentRule, MembraneRule, OverflowPolicy

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

FORMAT = 1

KEYS: dict[str, dict[str, str]] = {
    "geometry": {
        "cores_per_chip": "neurocores of one chip",
        "cores_per_tile": "neurocores that share a router",
        "tiles_horizontal": "columns of the mesh",
        "tiles_vertical": "rows of the mesh",
    },
    "limits": {
        "neurons_per_core": "hardware neurons (compartments) of one core",
        "synaptic_memory": "bits of one core",
        "input_axons": "source neurons from which one core can receive",
        "output_axons": "(neuron, destination core) pairs of one core",
        "delay": "longest delay in steps",
        "delay_guaranteed": "longest delay with all neurons of a core in use",
    },
    "synapses": {
        "weight_bits": "width of a weight, with sign",
        "exponent_low": "least weight exponent of a doubled int8 weight (one less than the description's)",
        "exponent_high": "largest weight exponent of a doubled int8 weight",
        "effective_weight": "largest magnitude of a weight in state units",
        "block_synapses": "synapses that share a header",
        "block_header": "bits of a header",
        "word": "bits to which a block is rounded up",
        "index_bits": "widths that a synapse's target index may have",
        "convolution_sharing": "1 if a core stores a kernel once, 0 if it stores every synapse",
    },
    "neurons": {
        "state_bits": "width of current and membrane, with sign",
        "fraction_bits": "state units per unit of current, as a power of two",
        "threshold_mantissa": "largest mantissa",
        "threshold_exponent": "power of two that multiplies it",
        "bias_mantissa": "largest magnitude of the mantissa",
        "bias_exponent": "largest exponent",
        "du_low": "least decay of the current in 1/4096",
        "du_high": "largest decay of the current",
        "dv_low": "least decay of the membrane",
        "dv_high": "largest decay of the membrane",
        "v_init": "largest magnitude of the initial membrane of a hard-reset neuron",
        "compartments_hard_reset": "hardware neurons per neuron",
        "compartments_soft_reset": "hardware neurons per neuron with soft reset",
        "graded_spikes": "bits of a spike's payload; 0: binary spikes only",
    },
    "time": {
        "barrier_many_chips": "barrier synchronization over many chips, s",
    },
}
EVENTS = (
    "synop_dense",
    "synop_sparse",
    "synop_conv",
    "update_active",
    "update_inactive",
    "spike",
    "message_out",
    "message_in",
    "within_tile",
    "hop_horizontal",
    "hop_vertical",
)
_POLICY_RULES = {"current": get_args(CurrentRule), "biased": get_args(BiasedRule), "membrane": get_args(MembraneRule)}
_NEEDED_EVENTS = ("synop_dense", "update_active", "update_inactive")


@dataclass(frozen=True)
class Quantity:
    """A number from a source; ``low`` and ``high`` differ where sources do.

    Attributes
    ----------
    low, typical, high : float
    unit, source, note : str
        ``source`` in full, for the reader of a report.
    """

    low: float
    typical: float
    high: float
    unit: str = ""
    source: str = ""
    note: str = ""

    @property
    def value(self) -> float:
        """The typical value."""
        return self.typical


@dataclass(frozen=True)
class EventCost:
    """Energy (J) and time (s) of one event."""

    energy: float
    time: float


@dataclass(frozen=True)
class CostSet:
    """One source's whole set of constants; sets are not to be mixed.

    Attributes
    ----------
    name, source, note : str
    events : mapping of str to EventCost
        By the names in :data:`EVENTS`; what the source does not charge for is absent.
    barrier : tuple of (tiles, s)
        Time of the barrier synchronization by tiles in use, ascending.
    static_power : float or None
        Of one chip, W; ``static_source`` says where from.
    energy_spread, time_spread : float
        Relative error that the source states for its totals.
    calibrated : bool
        Fitted to measurements on real boards.
    """

    name: str
    source: str
    events: Mapping[str, EventCost]
    barrier: tuple[tuple[int, float], ...] = ()
    static_power: float | None = None
    static_source: str = ""
    energy_spread: float = 0.0
    time_spread: float = 0.0
    calibrated: bool = False
    note: str = ""


@dataclass(frozen=True)
class Chip:
    """A chip profile.

    Attributes
    ----------
    name, title : str
    quantities : mapping of str to Quantity
        By ``"section.key"`` as in :data:`KEYS`.
    index_bits : tuple of int
        Widths that a synapse's index may have; empty if any.
    costs : tuple of CostSet
        Empty where no costs are published.
    unknown : mapping of str to str
        What is known to be unknown, and what follows from that.
    policy : OverflowPolicy
        What the chip is taken to do with numbers that leave their width.
    others : tuple of OverflowPolicy
        All that sources give for this chip beside the description's own; ``policy`` is one of these two kinds.
    """

    name: str
    title: str
    quantities: Mapping[str, Quantity]
    index_bits: tuple[int, ...] = ()
    costs: tuple[CostSet, ...] = ()
    unknown: Mapping[str, str] = field(default_factory=dict)
    policy: OverflowPolicy = LAVA
    others: tuple[OverflowPolicy, ...] = ()

    def get(self, key: str) -> Quantity | None:
        """The quantity ``"section.key"``, or None where the profile does not know it."""
        section, _, name = key.partition(".")
        if name not in KEYS.get(section, {}):
            raise KeyError(key)
        return self.quantities.get(key)

    def value(self, key: str) -> int | None:
        """The typical value of an integer quantity, or None where the profile does not know it."""
        quantity = self.get(key)
        return None if quantity is None else int(quantity.typical)

    def compartments(self, reset: str) -> int:
        """Hardware neurons that one neuron of that reset takes."""
        kind = "soft" if reset == "subtract" else "hard"
        return self.value(f"neurons.compartments_{kind}_reset") or 1

    @property
    def has_mesh(self) -> bool:
        """Whether the profile knows where cores lie, so that hops can be counted."""
        return all(f"geometry.{k}" in self.quantities for k in ("cores_per_tile", "tiles_horizontal", "tiles_vertical"))


def chip_names() -> tuple[str, ...]:
    """Names of the profiles that come with lapilli."""
    folder = files("lapilli.deploy.chips")
    return tuple(sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml")))


def load_chip(chip: str | Path | Chip) -> Chip:
    """A profile by name (see :func:`chip_names`) or by the path of a TOML file.

    Raises
    ------
    FileFormatError
        If there is none, or a key or value in it is wrong; the message names file and key.
    """
    if isinstance(chip, Chip):
        return chip
    if str(chip) in chip_names():
        return _load_ours(str(chip))
    path = Path(chip)
    if path.suffix != ".toml":
        raise FileFormatError(
            f"there is no chip {str(chip)!r}; known are {', '.join(chip_names())}, or give the path of a .toml profile"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FileFormatError(f"{path}: cannot read the chip profile ({error})") from None
    return parse_chip(text, str(path))


@cache
def _load_ours(name: str) -> Chip:
    text = (files("lapilli.deploy.chips") / f"{name}.toml").read_text(encoding="utf-8")
    return parse_chip(text, f"{name}.toml")


def parse_chip(text: str, where: str) -> Chip:
    """Read a profile's text; ``where`` names it in errors."""
    try:
        profile = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise FileFormatError(f"{where}: not valid TOML ({error})") from None
    if profile.get("format") != FORMAT:
        raise FileFormatError(f"{where}: format {profile.get('format')!r}; this lapilli reads format {FORMAT}")
    _only(where, profile, {"format", "name", "title", "sources", "unknown", "cost", "overflow", *KEYS})
    for key in ("name", "title"):
        _expect(isinstance(profile.get(key), str), f"{where}: {key} is missing or not a string")
    sources = profile.get("sources", {})
    for section in ("sources", "unknown"):
        texts = profile.get(section, {})
        _expect(
            isinstance(texts, dict) and all(isinstance(v, str) for v in texts.values()),
            f"{where}: [{section}] is not a table of strings",
        )
    quantities: dict[str, Quantity] = {}
    index_bits: tuple[int, ...] = ()
    for section, known in KEYS.items():
        table = profile.get(section, {})
        _expect(isinstance(table, dict), f"{where}: [{section}] is not a table")
        _only(f"{where}: [{section}]", table, set(known))
        for key, entry in table.items():
            place = f"{where}: {section}.{key}"
            _expect(isinstance(entry, dict), f"{place} is not a table like {{ value = 1, source = '...' }}")
            if key == "index_bits":
                index_bits = _index_bits(place, entry, sources)
            else:
                quantities[f"{section}.{key}"] = _quantity(place, entry, sources)
    costs = profile.get("cost", [])
    _expect(isinstance(costs, list), f"{where}: cost is not a list of tables; write [[cost]]")
    for key in ("geometry.cores_per_chip", "limits.neurons_per_core"):
        _expect(key in quantities, f"{where}: {key} is missing; no plan can be made without it")
    for key, quantity in quantities.items():
        _expect(
            not key.startswith(("geometry.", "limits.")) or quantity.typical >= 1,
            f"{where}: {key} is {quantity.typical}; give 1 or more",
        )
    policy, others = _policies(f"{where}: [overflow]", profile.get("overflow", {}), sources)
    return Chip(
        name=profile["name"],
        title=profile["title"],
        quantities=quantities,
        index_bits=index_bits,
        costs=tuple(_cost_set(f"{where}: cost {i + 1}", entry, sources) for i, entry in enumerate(costs)),
        unknown=profile.get("unknown", {}),
        policy=policy,
        others=others,
    )


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise FileFormatError(message)


def _only(where: str, table: Mapping[str, Any], known: set[str]) -> None:
    wrong = sorted(set(table) - known)
    _expect(not wrong, f"{where}: unknown key {wrong[0] if wrong else ''!r}; known are {', '.join(sorted(known))}")


def _number(where: str, value: Any) -> float:
    _expect(
        isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value),
        f"{where} is {value!r}; give a number",
    )
    return value


def _source(where: str, entry: Mapping[str, Any], sources: Mapping[str, str]) -> str:
    name = entry.get("source")
    _expect(isinstance(name, str) and name != "", f"{where}: the source is missing; every number says where it is from")
    assert isinstance(name, str)
    return sources.get(name, name)


def _text(where: str, entry: Mapping[str, Any], key: str) -> str:
    _expect(isinstance(entry.get(key, ""), str), f"{where}: {key} is not a string")
    return entry.get(key, "")


def _quantity(where: str, entry: Mapping[str, Any], sources: Mapping[str, str]) -> Quantity:
    _only(where, entry, {"value", "low", "typical", "high", "unit", "source", "note"})
    if "value" in entry:
        _expect(not {"low", "typical", "high"} & set(entry), f"{where}: give value, or low, typical and high; not both")
        low = typical = high = _number(where, entry["value"])
    else:
        missing = [k for k in ("low", "typical", "high") if k not in entry]
        _expect(not missing, f"{where}: {', '.join(missing)} is missing; give value, or low, typical and high")
        low, typical, high = (_number(f"{where}.{k}", entry[k]) for k in ("low", "typical", "high"))
        _expect(low <= typical <= high, f"{where}: low {low}, typical {typical}, high {high} are not in order")
    unit, note = (_text(where, entry, k) for k in ("unit", "note"))
    return Quantity(low, typical, high, unit, _source(where, entry, sources), note)


def _index_bits(where: str, entry: Mapping[str, Any], sources: Mapping[str, str]) -> tuple[int, ...]:
    _only(where, entry, {"values", "source", "note"})
    values = entry.get("values")
    good = isinstance(values, list) and values and all(type(v) is int and v >= 0 for v in values)
    _expect(bool(good), f"{where}: values is not a list of integers")
    _source(where, entry, sources)
    return tuple(sorted(values or ()))


def _policies(where: str, table: Any, sources: Mapping[str, str]) -> tuple[OverflowPolicy, tuple[OverflowPolicy, ...]]:
    """The policy that a profile names, and all that it defines."""
    _expect(isinstance(table, dict), f"{where} is not a table")
    _only(where, table, {"policy", "policies"})
    entries = table.get("policies", [])
    _expect(isinstance(entries, list), f"{where}: policies is not a list of tables; write [[overflow.policies]]")
    others = tuple(_policy(f"{where}: policy {i + 1}", entry, sources) for i, entry in enumerate(entries))
    names = [LAVA.name, *(policy.name for policy in others)]
    twice = next((name for name in names if names.count(name) > 1), None)
    _expect(twice is None, f"{where}: two policies are named {twice!r}; {LAVA.name!r} is the description's own")
    named = table.get("policy", LAVA.name)
    _expect(named in names, f"{where}: there is no policy {named!r}; known are {', '.join(names)}")
    return (LAVA, *others)[names.index(named)], others


def _policy(where: str, entry: Any, sources: Mapping[str, str]) -> OverflowPolicy:
    _expect(isinstance(entry, dict), f"{where} is not a table")
    _only(where, entry, {f.name for f in fields(OverflowPolicy)})
    _expect(isinstance(entry.get("name"), str), f"{where}: name is missing or not a string")
    given: dict[str, Any] = {"name": entry["name"], "note": _text(where, entry, "note")}
    for key, rules in _POLICY_RULES.items():
        if key in entry:
            _expect(entry[key] in rules, f"{where}: {key} is {entry[key]!r}; choose from {', '.join(rules)}")
            given[key] = entry[key]
    bits = entry.get("accumulator_bits")
    if bits is not None:
        _expect(
            type(bits) is int and 2 <= bits <= 48,
            f"{where}: accumulator_bits is {bits!r}; give 2 to 48, or leave it out",
        )
        given["accumulator_bits"] = bits
    return OverflowPolicy(**given, source=_source(where, entry, sources))


def _cost_set(where: str, entry: Any, sources: Mapping[str, str]) -> CostSet:
    _expect(isinstance(entry, dict), f"{where} is not a table")
    plain = {"name", "source", "note", "calibrated", "energy_spread", "time_spread", "barrier", "static"}
    _only(where, entry, plain | set(EVENTS))
    _expect(isinstance(entry.get("name"), str), f"{where}: name is missing or not a string")
    missing = [k for k in _NEEDED_EVENTS if k not in entry]
    _expect(not missing, f"{where}: {', '.join(missing)} is missing")
    events = {}
    for key in EVENTS:
        if key in entry:
            place = f"{where}: {key}"
            _expect(isinstance(entry[key], dict), f"{place} is not a table like {{ energy = 1e-12, time = 1e-9 }}")
            _only(place, entry[key], {"energy", "time"})
            numbers = [_number(f"{place}.{k}", entry[key].get(k)) for k in ("energy", "time")]
            _expect(min(numbers) >= 0, f"{place}: a cost is negative")
            events[key] = EventCost(*numbers)
    barrier = entry.get("barrier", [])
    _expect(
        isinstance(barrier, list) and all(isinstance(p, list) and len(p) == 2 for p in barrier),
        f"{where}: barrier is not a list of [tiles, seconds]",
    )
    points = tuple((int(_number(where, tiles)), float(_number(where, time))) for tiles, time in barrier)
    _expect(all(a[0] < b[0] for a, b in pairwise(points)), f"{where}: barrier's tiles do not ascend")
    static = entry.get("static", {})
    _expect(isinstance(static, dict), f"{where}: static is not a table")
    if static:
        _only(f"{where}: static", static, {"power", "source", "note"})
    calibrated = entry.get("calibrated", False)
    _expect(isinstance(calibrated, bool), f"{where}: calibrated is not true or false")
    note = _text(f"{where}: static", static, "note")
    return CostSet(
        name=entry["name"],
        source=_source(where, entry, sources),
        events=events,
        barrier=points,
        static_power=float(_number(f"{where}: static.power", static.get("power"))) if static else None,
        static_source=(_source(f"{where}: static", static, sources) + (f" ({note})" if note else "")) if static else "",
        energy_spread=float(_number(f"{where}: energy_spread", entry.get("energy_spread", 0.0))),
        time_spread=float(_number(f"{where}: time_spread", entry.get("time_spread", 0.0))),
        calibrated=calibrated,
        note=_text(where, entry, "note"),
    )
