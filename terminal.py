"""What people see on a terminal: stages as they finish, progress bars, tables. Nothing is computed here."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from .deploy import Violation
    from .sim import Run
    from .sim.engine.profile import Profiler
    from .sim.page.summary import Stage
    from .train.checkpoint import Epoch

PIPE_WIDTH = 120  # columns where the output is not a terminal


def console(*, stderr: bool = False) -> Console:
    """A rich console; wide enough for our tables where the output is a file or a pipe."""
    from rich.console import Console

    chosen = Console(stderr=stderr, highlight=False)
    return chosen if chosen.is_terminal else Console(stderr=stderr, highlight=False, width=PIPE_WIDTH)


@contextmanager
def progress_bar(text: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal's standard error, silence elsewhere; yields ``report(done, total)``."""
    if not sys.stderr.isatty():
        yield lambda _done, _total: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(stderr=True), transient=True) as bar:
        task = bar.add_task(text, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@dataclass
class Outcome:
    """What a stage reports."""

    accuracy: float | None = None
    note: str = ""


@dataclass
class Narrator:
    """Tells what a pipeline does, a line per stage, and remembers it for the report; silent without a console."""

    console: Console | None = None
    stages: list[Stage] = field(default_factory=list)

    def say(self, text: str, style: str | None = None) -> None:
        """One line."""
        if self.console is not None:
            self.console.print(text, style=style, markup=False, soft_wrap=True)

    def show(self, renderable: RenderableType) -> None:
        """A table."""
        if self.console is not None:
            self.console.print(renderable)

    def epoch(self, done: Epoch) -> None:
        """A line for an epoch of training where there is no progress bar to watch."""
        if sys.stderr.isatty():
            return
        level = " (rates)" if done.rates else ""
        test = "" if done.test_accuracy is None else f"  test {100 * done.test_accuracy:.2f} %"
        self.say(f"  epoch {done.epoch}{level}: loss {done.loss:.4f}{test}  {done.seconds:.0f} s", style="dim")

    @contextmanager
    def stage(self, name: str, *, spinner: bool = True) -> Iterator[Outcome]:
        """Time a stage; the body fills in its accuracy and note. No spinner where the stage has a bar of its own."""
        from .sim.page.summary import Stage

        outcome = Outcome()
        start = time.perf_counter()
        alive = self.console if spinner and self.console is not None and self.console.is_terminal else None
        with alive.status(f"{name} ...") if alive is not None else nullcontext():
            yield outcome
        seconds = time.perf_counter() - start
        self.stages.append(Stage(name, outcome.accuracy, round(seconds, 3), outcome.note))
        accuracy = f"{outcome.accuracy:8.2%}" if outcome.accuracy is not None else " " * 8
        self.say(f"{name:<20}{accuracy}  {seconds:6.1f} s  {outcome.note}".rstrip())


def checks_table(found: Mapping[str, Sequence[Violation]]) -> RenderableType:
    """Design rule violations by chip."""
    from rich.console import Group
    from rich.table import Table

    parts: list[RenderableType] = []
    for chip, violations in found.items():
        errors = sum(v.severity == "error" for v in violations)
        notes = len(violations) - errors
        parts.append(f"{chip}: {f'{errors} violations' if errors else 'fits'}, {notes} notes")
        if violations:
            table = Table("", "where", "rule", "what", show_lines=True)
            for v in violations:
                table.add_row(v.severity, v.where, v.rule, v.message, style="red" if v.severity == "error" else None)
            parts.append(table)
    return Group(*parts)


def run_table(run: Run, accuracy: float | None) -> RenderableType:
    """What a simulation counted."""
    from rich.console import Group
    from rich.table import Table

    n = run.n_samples
    layers = Table("population", "neurons", "spikes/sample", "rate per step", title=f"{run.network.name}: {n} samples")
    connections = Table("connection", "synaptic operations/sample")
    if run.payloads:
        layers.add_column("mean payload")
    for column in (*layers.columns[1:], *connections.columns[1:]):
        column.justify = "right"
    for p in run.network.populations:
        if p.spikes:
            payload = [f"{run.mean_payloads.get(p.name, 1.0):,.2f}"] if run.payloads else []
            spikes = f"{run.spike_totals[p.name] / n:,.1f}"
            layers.add_row(p.name, f"{p.size:,}", spikes, f"{run.rates[p.name]:.2%}", *payload)
    for name, operations in run.synop_totals.items():
        connections.add_row(name, f"{operations / n:,.1f}")
    lines = [f"{n / run.seconds:,.0f} samples/s on {run.engine}; {run.overflow_text}"]
    if accuracy is not None:
        lines.insert(0, f"accuracy {accuracy:.2%}")
    return Group(layers, connections, *lines)


def profile_table(profiler: Profiler, run: Run) -> RenderableType:
    """Where the time of the fast engine went."""
    from rich.console import Group
    from rich.table import Table

    from .sim.engine import kernels, threads
    from .sim.units import percent, si

    table = Table(
        "population", "sums by", "density", "time", "of all", "synaptic operations/s", "of peak", title="profile"
    )
    for column in table.columns[2:]:
        column.justify = "right"
    layers = profiler.layers(run)
    whole = sum(layer.seconds for layer in layers) or 1.0
    for layer in layers:
        table.add_row(
            layer.population,
            layer.path,
            percent(layer.density),
            si(layer.seconds, "s"),
            percent(layer.seconds / whole, 1),
            si(layer.rate, ""),
            percent(layer.of_peak, 1),
        )
    peak = "computed by NumPy, without compiled kernels"
    if profiler.peak:
        peak = (
            f"peak: {si(profiler.peak, '')} additions/s on each of {threads.count()} threads ({kernels.level_name()}), "
            "measured with weights in the cache and every input spiking"
        )
    return Group(table, peak)


def shipped_table(listed: Sequence[Mapping[str, Any]]) -> RenderableType:
    """The trained networks that come with lapilli."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("name", "what", "method", "steps", "parameters", "test accuracy", "file"):
        table.add_column(heading, justify="right" if heading in ("steps", "parameters", "file") else "left")
    for entry in listed:
        table.add_row(
            entry["name"],
            entry["description"],
            entry["method"],
            str(entry["steps"]),
            f"{entry['parameters']:,}",
            f"{entry['accuracy']:.2%} of {entry['test_samples']:,}",
            f"{entry['bytes'] / 1e6:.2f} MB",
        )
    return table
