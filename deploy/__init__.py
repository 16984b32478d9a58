"""From the description to a chip: profiles, design rules, placement, and Lava (in ``deploy.lava``)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .chip import Chip, chip_names, load_chip
    from .placement import Plan, plan
    from .rules import Violation, check
    from .schedule import Schedule, make_schedule

__all__ = ["Chip", "Plan", "Schedule", "Violation", "check", "chip_names", "load_chip", "make_schedule", "plan"]

_PLACES = {
    "Chip": "chip",
    "chip_names": "chip",
    "load_chip": "chip",
    "Plan": "placement",
    "plan": "placement",
    "Violation": "rules",
    "check": "rules",
    "Schedule": "schedule",
    "make_schedule": "schedule",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_PLACES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
