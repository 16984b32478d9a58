"""Run the same inputs through several executors and compare every spike."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from ...errors import ExecutionError, UnsupportedError
from ...network import IntArray, Network
from ...recording import Executor, Recording, decide, scores
from ..executors import find
from ..simulation import Progress, batches, count_samples, share_correct
from .divergence import Divergence, differences, examine, first_place, flow

Named: TypeAlias = str | tuple[str, Executor]


@dataclass
class PopulationResult:
    """Comparison of one population: spikes of every step, or final membranes with reset "none"."""

    what: Literal["spikes", "membranes"]
    compared: int = 0
    differing: int = 0


@dataclass
class ExecutorResult:
    """How one executor compares with the baseline.

    Attributes
    ----------
    name : str
    status : {"equal", "different", "failed"}
    message : str
        Why it failed.
    populations : dict of PopulationResult
    predictions_compared, predictions_differing : int
        Samples; 0 without a readout.
    scores_differing : int
        Samples with any different class score.
    accuracy : float or None
        If labels were given.
    seconds : float
        Wall-clock time of the executor, without the comparison.
    first_divergence : Divergence or None
    """

    name: str
    status: Literal["equal", "different", "failed"] = "equal"
    message: str = ""
    populations: dict[str, PopulationResult] = field(default_factory=dict)
    predictions_compared: int = 0
    predictions_differing: int = 0
    scores_differing: int = 0
    accuracy: float | None = None
    seconds: float = 0.0
    first_divergence: Divergence | None = None

    @property
    def equal(self) -> bool:
        """Whether it ran and nothing differs."""
        return self.status == "equal"

    @property
    def predictions_equal(self) -> bool | None:
        """Whether every class score led to the same decision; None without a readout or a run."""
        return self.predictions_differing == 0 if self.predictions_compared else None

    @property
    def spikes_compared(self) -> int:
        """Compared (neuron, step, sample) triples."""
        return sum(p.compared for p in self.populations.values() if p.what == "spikes")

    @property
    def spikes_differing(self) -> int:
        """Differing (neuron, step, sample) triples."""
        return sum(p.differing for p in self.populations.values() if p.what == "spikes")

    def to_json(self) -> dict[str, Any]:
        """All fields, JSON values."""
        return asdict(self) | {
            "equal": self.equal,
            "predictions_equal": self.predictions_equal,
            "spikes_compared": self.spikes_compared,
            "spikes_differing": self.spikes_differing,
            "first_divergence": self.first_divergence.to_json() if self.first_divergence else None,
        }


@dataclass
class Equivalence:
    """Outcome of :func:`verify`.

    Attributes
    ----------
    network, baseline : str
    steps, n_samples : int
    executors : dict of ExecutorResult
    accuracy : float or None
        Of the baseline, if labels were given.
    seconds : float
        Of the baseline.
    order : dict of int
        Rank of each population, to put divergences in order.
    """

    network: str
    baseline: str
    steps: int
    n_samples: int
    executors: dict[str, ExecutorResult]
    accuracy: float | None
    seconds: float
    order: dict[str, int]

    @property
    def equal(self) -> bool:
        """Whether every executor ran and agrees in every spike, final membrane and score."""
        return all(result.equal for result in self.executors.values())

    @property
    def first_divergence(self) -> Divergence | None:
        """The earliest of all executors' first divergences."""
        found = [r.first_divergence for r in self.executors.values() if r.first_divergence]
        return min(found, key=lambda d: (d.sample, d.step, self.order[d.population], d.neuron), default=None)

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        first = self.first_divergence
        return {
            "network": self.network,
            "baseline": self.baseline,
            "steps": self.steps,
            "samples": self.n_samples,
            "equal": self.equal,
            "accuracy": self.accuracy,
            "seconds": self.seconds,
            "executors": {name: result.to_json() for name, result in self.executors.items()},
            "first_divergence": first.to_json() if first else None,
        }

    def __str__(self) -> str:
        return render(self)


def verify(
    net: Network,
    x: npt.ArrayLike,
    against: Iterable[Named] = ("onnxruntime",),
    engine: Named = "reference",
    batch: int = 256,
    y: npt.ArrayLike | None = None,
    progress: Progress | None = None,
) -> Equivalence:
    """Run inputs through a baseline and other executors, and compare every spike of every population and sample.

    Parameters
    ----------
    net : Network
    x : [B, *shape] or [T, B, *shape]
        Encoded by the network's input, as in :func:`lapilli.sim.simulate`.
    against : names of executors, or (name, executor) pairs
    engine : name or (name, executor)
        The baseline; it runs every batch once.
    batch : int
        Samples at a time.
    y : [B], optional
        Labels, for accuracies.
    progress : callable, optional
        Called with (samples done, samples in all) after every batch.

    Returns
    -------
    Equivalence
        An executor that fails to run is reported in it, and the others go on.

    Raises
    ------
    UnsupportedError
        If an executor of that name does not exist.
    MissingDependencyError
        If a package that an executor needs is not installed.
    DataError
        If there is no sample, the input does not fit, or the labels do not.
    """
    baseline_name, baseline = _named(engine)
    contestants = [_Contestant(net, *_named(item), baseline) for item in against]
    x = np.asarray(x)
    total = count_samples(net, x)
    labels = None if y is None else np.asarray(y)
    if labels is not None:
        share_correct(net, np.zeros(total, np.int64), labels)  # its complaint about the shape
    done, seconds = 0, 0.0
    decisions: list[IntArray] = []
    for part in batches(net, x, batch):
        encoded = net.input.encode(part)
        started = time.perf_counter()
        recording = baseline(net, encoded)
        seconds += time.perf_counter() - started
        for contestant in contestants:
            contestant.compare(encoded, recording, offset=done)
        if net.readout is not None:
            decisions.append(decide(scores(net, recording)))
        done += encoded.shape[-len(net.input.shape) - 1]
        if progress:
            progress(done, total)
    return Equivalence(
        network=net.name,
        baseline=baseline_name,
        steps=net.steps,
        n_samples=total,
        executors={c.result.name: c.finish(labels) for c in contestants},
        accuracy=_accuracy(net, decisions, labels),
        seconds=seconds,
        order=flow(net),
    )


def render(equivalence: Equivalence) -> str:
    """Table of executors and populations, then the divergences, as text."""
    e = equivalence
    rows = [("executor", "population", "compared", "differing", "status")]
    for result in e.executors.values():
        if result.status == "failed":
            rows.append((result.name, "-", "-", "-", f"failed: {result.message}"))
            continue
        rows += [
            (
                result.name,
                name,
                f"{p.compared:,} {p.what}",
                f"{p.differing:,}",
                "equal" if not p.differing else "differs",
            )
            for name, p in result.populations.items()
        ]
        if result.predictions_compared:
            status = "equal" if result.predictions_equal else "differs"
            compared, differing = f"{result.predictions_compared:,} samples", f"{result.predictions_differing:,}"
            rows.append((result.name, "predictions", compared, differing, status))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = ["  ".join(f"{cell:<{w}}" for cell, w in zip(row[:4], widths, strict=True)) + f"  {row[4]}" for row in rows]
    verdict = "every spike equal" if e.equal else "NOT equal"
    lines.append(f"{e.network}: {e.n_samples} samples x {e.steps} steps against {e.baseline}: {verdict}")
    lines += [str(r.first_divergence) for r in e.executors.values() if r.first_divergence]
    return "\n".join(lines)


def _named(item: Named) -> tuple[str, Executor]:
    return (item, find(item)) if isinstance(item, str) else item


def _accuracy(net: Network, decisions: list[IntArray], labels: npt.NDArray[Any] | None) -> float | None:
    return share_correct(net, np.concatenate(decisions), labels) if labels is not None and decisions else None


class _Contestant:
    """One executor while it is compared."""

    def __init__(self, net: Network, name: str, executor: Executor, baseline: Executor):
        self.net = net
        self.executor = executor
        self.baseline = baseline
        self.decisions: list[IntArray] = []
        self.result = ExecutorResult(
            name, populations={p.name: PopulationResult("spikes" if p.spikes else "membranes") for p in net.order}
        )

    def compare(self, x: IntArray, expected: Recording, offset: int) -> None:
        """Run one batch and compare it; after a failure the executor is left alone."""
        if self.result.status == "failed":
            return
        try:
            started = time.perf_counter()
            got = self.executor(self.net, x)
            self.result.seconds += time.perf_counter() - started
            differing = differences(self.net, expected, got)
        except (ExecutionError, UnsupportedError) as error:
            self.result.status, self.result.message = "failed", str(error)
            return
        for name, where in differing.items():
            self.result.populations[name].compared += where.size
            self.result.populations[name].differing += int(np.count_nonzero(where))
        self._compare_scores(expected, got)
        place = first_place(self.net, differing)
        if place is not None and self.result.first_divergence is None:
            self.result.first_divergence = self._examine(x, place, offset)
        if place is not None or self.result.scores_differing:
            self.result.status = "different"

    def _examine(self, x: IntArray, place: Any, offset: int) -> Divergence:
        return examine(self.net, self.result.name, self.baseline, self.executor, x, place, offset)

    def _compare_scores(self, expected: Recording, got: Recording) -> None:
        if self.net.readout is None:
            return
        mine, theirs = scores(self.net, expected), scores(self.net, got)
        self.decisions.append(decide(theirs))
        self.result.scores_differing += int((mine != theirs).any(axis=1).sum())
        self.result.predictions_compared += len(mine)
        self.result.predictions_differing += int((decide(mine) != decide(theirs)).sum())

    def finish(self, labels: npt.NDArray[Any] | None) -> ExecutorResult:
        """The result with its accuracy."""
        if self.result.status != "failed":
            self.result.accuracy = _accuracy(self.net, self.decisions, labels)
        return self.result
