"""What ``lapilli sim`` shows beside its counts: traces, figures, places of overflow events, overflow policies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy.typing as npt

from ...deploy.chip import load_chip
from ...network import Network
from ...recording import Executor
from ..simulation import Quantity, Run
from .overflows import Overflow, overflow_events
from .policies import PolicyReport, compare_policies
from .selection import name_neuron
from .trace_files import check_trace_path, save_traces
from .traces import Traces, bytes_text, trace


@dataclass
class Seen:
    """What was looked at; empty where nothing was asked for."""

    network: Network
    traces: Traces | None = None
    file: Path | None = None
    figures: list[Path] = field(default_factory=list)
    events: list[Overflow] = field(default_factory=list)
    events_in_all: int = 0
    policies: PolicyReport | None = None
    shown: int = 0  # places to show for each policy

    def to_json(self) -> dict[str, Any]:
        """Where the arrays are, and the events themselves."""
        document: dict[str, Any] = {}
        if self.traces is not None:
            document["traces"] = {
                "file": str(self.file),
                "samples": self.traces.samples.tolist(),
                "bytes": self.traces.nbytes,
                **self.traces.about(),
            }
        if self.figures:
            document["figures"] = [str(path) for path in self.figures]
        if self.events:
            document["overflow_events"] = [
                e._asdict() | {"name": name_neuron(e.population, self.network.shape_of(e.population), e.neuron)}
                for e in self.events
            ]
        if self.policies is not None:
            document["policies"] = self.policies.to_json()
        return document

    def lines(self) -> list[str]:
        """For people."""
        lines = []
        if self.events:
            more = " (--events N shows more)" if len(self.events) < self.events_in_all else ""
            lines.append(f"overflow events, {len(self.events)} of {self.events_in_all:,}{more}")
            lines += [f"  {event.describe(self.network)}" for event in self.events]
        if self.policies is not None:
            lines += self.policies.lines(self.shown)
        if self.traces is not None:
            neurons = sum(len(k) for k in self.traces.neurons.values())
            lines.append(
                f"wrote {self.file}: {neurons:,} neurons, {self.network.steps} steps, samples: "
                f"{len(self.traces.samples):,}, {bytes_text(self.traces.nbytes)} in memory"
            )
        return lines + [f"wrote {path}" for path in self.figures]


class Look:
    """Traces first, since a selection may be wrong; the rest after the run.

    Parameters
    ----------
    net, x, engine
        As for :func:`lapilli.sim.simulate`.
    trace, trace_samples, trace_quantities, trace_out
        As for :func:`~lapilli.sim.inside.traces.trace` and :func:`~lapilli.sim.inside.trace_files.save_traces`; nothing
        is traced where ``trace`` is empty.
    plots : path, optional
        Folder for figures.
    plot_format : {"png", "svg"}
    events : int
        Overflow events to find; places to show for each policy.
    policies : name or path of a chip profile, optional
        Compare its overflow policies with the description's.
    follow : int
        As for :func:`~lapilli.sim.inside.policies.compare_policies`.
    """

    def __init__(
        self,
        net: Network,
        x: npt.ArrayLike,
        engine: str | Executor,
        *,
        trace: Sequence[str],
        trace_samples: str,
        trace_quantities: Sequence[Quantity],
        trace_out: Path,
        plots: Path | None,
        plot_format: str,
        events: int,
        policies: str | None,
        follow: int,
    ):
        self._net, self._x, self._engine = net, x, engine
        self._plots, self._suffix, self._events = plots, f".{plot_format}", events
        self._chip, self._follow = (load_chip(policies) if policies else None), follow
        self._seen = Seen(net, shown=events)
        if trace:
            check_trace_path(trace_out)
            self._seen.traces = _trace(net, x, trace, trace_samples, trace_quantities, engine)
            self._seen.file = save_traces(self._seen.traces, trace_out)

    def inside(self, run: Run) -> Seen:
        """Figures and events of the finished run."""
        seen = self._seen
        if run.overflows and self._events:
            seen.events = overflow_events(self._net, self._x, list(run.overflows), self._engine, self._events)
            seen.events_in_all = sum(sum(counts.values()) for counts in run.overflows.values())
        if self._chip is not None:
            seen.policies = compare_policies(self._net, self._x, self._chip, self._engine, follow=self._follow)
        if self._plots is not None:
            from .figures import draw_all

            seen.figures = draw_all(run, seen.traces, self._plots, self._suffix)
        return seen


_trace = trace  # the parameter of the same name hides it above
