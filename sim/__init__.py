"""Simulate, prove equal, and price: everything that runs a network description without a chip.

``lapilli.sim.simulate`` counts what a network does, ``trace`` and ``overflow_events`` look inside, ``verify`` compares
executors spike for spike, ``energy`` prices a run on a chip, ``write_report`` puts it all on one page.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cost.energy_report import EnergyReport as EnergyReport
    from .cost.estimate import energy as energy
    from .equivalence.comparison import Divergence as Divergence
    from .equivalence.comparison import Equivalence as Equivalence
    from .equivalence.comparison import verify as verify
    from .inside.overflows import Overflow as Overflow
    from .inside.overflows import overflow_events as overflow_events
    from .inside.policies import PolicyReport as PolicyReport
    from .inside.policies import compare_policies as compare_policies
    from .inside.trace_files import save_traces as save_traces
    from .inside.traces import Traces as Traces
    from .inside.traces import trace as trace
    from .page.report import write_report as write_report
    from .parts import simulate_in_parts as simulate_in_parts
    from .simulation import Run as Run
    from .simulation import simulate as simulate

_PLACES = {
    "Divergence": "equivalence.comparison",
    "EnergyReport": "cost.energy_report",
    "Equivalence": "equivalence.comparison",
    "Overflow": "inside.overflows",
    "PolicyReport": "inside.policies",
    "Run": "simulation",
    "Traces": "inside.traces",
    "compare_policies": "inside.policies",
    "energy": "cost.estimate",
    "overflow_events": "inside.overflows",
    "save_traces": "inside.trace_files",
    "simulate": "simulation",
    "simulate_in_parts": "parts",
    "trace": "inside.traces",
    "verify": "equivalence.comparison",
    "write_report": "page.report",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_PLACES[name]}", __name__), name)


def __dir__() -> list[str]:
    return [*globals(), *_PLACES]
