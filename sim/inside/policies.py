"""On which inputs the overflow policies that sources give for a chip would differ from the description.

Bounds first: a population in which no number can reach a value that a policy treats otherwise is proven equal. The
others are watched along the description's own run: every step is taken again, from the same state, under the policy. In
a sample without a difference the policy's whole run is the description's, by induction over its steps; in any other
sample the first difference is one of the policy's own run, and the later ones are of the description's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ...arithmetic import neuron_step
from ...bounds import policy_gaps, population_bounds
from ...deploy.chip import Chip, load_chip
from ...network import IntArray, Network, Population
from ...overflow import LAVA, OverflowPolicy
from ...recording import Executor, Recording, decide, scores
from ..executors import find, name_of
from ..reference import reference
from ..simulation import Progress, batch_size, batches, count_samples
from .overflows import EVENTS, first_rows, traced_where, trajectory
from .selection import name_neuron


class Difference(NamedTuple):
    """A neuron's step that comes out otherwise under a policy; each value in the description and under the policy."""

    sample: int
    step: int
    population: str
    neuron: int  # flat index in C order
    drive: int  # what arrives, I 2^f
    u: tuple[int, int]
    v: tuple[int, int]  # after the reset
    spike: tuple[int, int]

    def describe(self, net: Network) -> str:
        """One line, the neuron named as ``--trace`` wants it."""
        values = [
            f"{what} {mine:,} or {other:,}"
            for what, (mine, other) in (("u", self.u), ("v", self.v), ("spike", self.spike))
            if mine != other
        ]
        name = name_neuron(self.population, net.shape_of(self.population), self.neuron)
        return f"sample {self.sample}, step {self.step}, {name}: input {self.drive:,}, {', '.join(values)}"


class Outcome(NamedTuple):
    """A sample run to its end under a policy."""

    sample: int
    spikes: int  # that differ, in all populations
    decision: int | None  # of the description
    other: int | None  # of the policy


@dataclass
class PolicyComparison:
    """One policy beside the description.

    Attributes
    ----------
    policy : OverflowPolicy
    gaps : dict of population to sentences
        Where the worst case leaves room for a difference, and why. Populations not in it are proven equal.
    samples : int64 [S]
        All samples in which something differs, ascending.
    places : int
        Differing (sample, step, neuron) along the description's run, all of them.
    differences : list of Difference
        The first ones, by sample, step, topological order of the populations, neuron.
    outcomes : list of Outcome
        Of the first samples, where that was asked for.
    """

    policy: OverflowPolicy
    gaps: dict[str, tuple[str, ...]]
    samples: IntArray = field(default_factory=lambda: np.empty(0, np.int64))
    places: int = 0
    differences: list[Difference] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)


@dataclass
class PolicyReport:
    """All policies of a chip beside the description."""

    network: Network
    chip: Chip
    n_samples: int
    comparisons: list[PolicyComparison]

    def to_json(self) -> dict[str, Any]:
        """Everything."""
        return {
            "chip": self.chip.name,
            "policy": self.chip.policy.name,
            "description": LAVA.to_json(),
            "others": [
                {
                    **c.policy.to_json(),
                    "watched": {name: list(reasons) for name, reasons in c.gaps.items()},
                    "samples": c.samples.tolist(),
                    "places": c.places,
                    "differences": [d._asdict() for d in c.differences],
                    "outcomes": [o._asdict() for o in c.outcomes],
                }
                for c in self.comparisons
            ],
        }

    def lines(self, shown: int = 5) -> list[str]:
        """For people: a paragraph per policy, ``shown`` places in each."""
        named = "which is what ran" if self.chip.policy == LAVA else f"what ran was {LAVA.name}"
        lines = [f"overflow policies of {self.chip.name} (its profile names {self.chip.policy.name}, {named}):"]
        if not self.comparisons:
            lines.append("  its profile has no other policy to compare with")
        for c in self.comparisons:
            lines += self._paragraph(c, shown)
        return lines

    def _paragraph(self, c: PolicyComparison, shown: int) -> Iterator[str]:
        head = f"  {c.policy.name}: "
        if not c.gaps:
            yield head + "equal on any input (worst case)"
        elif not len(c.samples):
            yield (
                head
                + f"equal on all {self.n_samples:,} samples; the worst case allows differences in {', '.join(c.gaps)}"
            )
        else:
            some = ", ".join(map(str, c.samples[:10])) + (", ..." if len(c.samples) > 10 else "")
            yield head + f"differs in {len(c.samples):,} of {self.n_samples:,} samples ({some}), at {c.places:,} places"
            for difference in c.differences[:shown]:
                yield f"    {difference.describe(self.network)}"
            for o in c.outcomes:
                decided = "" if o.decision is None else f", decision {o.decision} or {o.other}"
                yield f"    sample {o.sample} to its end: {o.spikes:,} spikes differ{decided}"
        yield f"    [{c.policy.source}]"


def compare_policies(
    net: Network,
    x: npt.ArrayLike,
    chip: str | Path | Chip,
    engine: str | Executor = "fast",
    limit: int = EVENTS,
    follow: int = 0,
    progress: Progress | None = None,
) -> PolicyReport:
    """Find the inputs on which the other overflow policies of a chip would differ from the description.

    Parameters
    ----------
    net : Network
    x : [B, *shape] or [T, B, *shape]
        As for :func:`lapilli.sim.simulate`.
    chip : name, path of a TOML profile, or Chip
    engine : str or Executor
        One that shows current, ``u`` and ``v``; the result is the same.
    limit : int
        Differences to keep for each policy; samples and places are counted to the end.
    follow : int
        Run that many of the differing samples to their end under each policy, on the reference (slow).
    progress : callable, optional
        Called with (samples done, samples in all) after every batch; not at all where bounds prove everything.
    """
    executor, name = (find(engine), engine) if isinstance(engine, str) else (engine, name_of(engine))
    profile = load_chip(chip)
    x = np.asarray(x)
    total = count_samples(net, x)
    bounds = {p.name: population_bounds(net, p) for p in net.populations}
    comparisons = []
    for policy in profile.others:
        gaps = {p.name: policy_gaps(p, bounds[p.name], policy) for p in net.order}
        comparisons.append(PolicyComparison(policy, {name: why for name, why in gaps.items() if why}))
    traced = [c for c in comparisons if not c.policy.differs_at_overflows_only]
    always, watched = (
        [p.name for p in net.order if any(p.name in c.gaps for c in some)] for some in (traced, comparisons)
    )
    affected: list[list[IntArray]] = [[] for _ in comparisons]
    done = 0
    for part in batches(net, x, batch_size(net, always)) if watched else ():
        for offset, recording, seen in traced_where(net, part, executor, always, watched):
            for c, samples in zip(comparisons, affected, strict=True):
                first = done + offset
                samples.append(first + _watch(net, c, recording, seen, first, limit, name))
        done += part.shape[part.ndim - len(net.input.shape) - 1]
        if progress:
            progress(done, total)
    for c, samples in zip(comparisons, affected, strict=True):
        c.samples = np.concatenate(samples) if samples else c.samples
        c.outcomes = _outcomes(net, x, c.policy, c.samples[:follow])
    return PolicyReport(net, profile, total, comparisons)


def _watch(
    net: Network, c: PolicyComparison, recording: Recording, seen: list[str], offset: int, limit: int, engine: str
) -> IntArray:
    """Compare one batch, of which ``seen`` are traced: adds to ``c``, returns the batch's differing samples."""
    populations = [p for p in net.order if p.name in c.gaps and p.name in seen]
    kept = np.empty((0, 11), np.int64)
    samples: set[int] = set()
    for rank, p in enumerate(populations):
        if not _reaches(recording, p, c.policy):
            continue
        for at in trajectory(recording, p, engine):
            rows = _differences(p, c.policy, at.step, rank, at.u, at.v, at.drive)
            c.places += len(rows)
            samples.update(rows[:, 0].tolist())
            if len(rows):
                kept = first_rows(np.concatenate([kept, rows]), limit)
    for sample, step, rank, neuron, drive, *values in kept[: limit - len(c.differences)].tolist():
        pairs = zip(values[::2], values[1::2], strict=True)
        c.differences.append(Difference(offset + sample, step, populations[rank].name, neuron, drive, *pairs))
    return np.array(sorted(samples), np.int64)


def _reaches(recording: Recording, p: Population, policy: OverflowPolicy) -> bool:
    """Whether anything seen in a batch lies where the policy may differ; far cheaper than taking the steps again."""
    limit = p.v_max + 1
    wrapped, saturated = recording.wraps.get(p.name) != 0, recording.saturations.get(p.name) != 0
    if p.name not in recording.current or p.name not in recording.u:
        return True  # trajectory() says what is missing
    drive, u = recording.current[p.name], recording.u[p.name]
    if policy.accumulator_bits is not None:
        half = 2 ** (policy.accumulator_bits - 1)
        if int(drive.min()) < -half or int(drive.max()) >= half:
            return True
    biased = u + p.bias if policy.biased == "twos_complement" else u
    return (
        (policy.current != "wrap" and (wrapped or int(u.max()) == limit))
        or (policy.biased == "twos_complement" and not (-limit <= int(biased.min()) and int(biased.max()) < limit))
        or (policy.membrane == "unlimited" and saturated)
    )


def _differences(
    p: Population, policy: OverflowPolicy, n: int, rank: int, u: IntArray, v: IntArray, drive: IntArray
) -> npt.NDArray[np.int64]:
    """Neurons that differ after one step: int64 [E, 11], columns as in :class:`Difference`."""
    mine, other = (neuron_step(p, u, v, drive, each) for each in (LAVA, policy))
    differ = (mine.u != other.u) | (mine.v != other.v) | (mine.spikes != other.spikes)
    sample, neuron = np.nonzero(differ.reshape(len(differ), -1))
    values = (drive, mine.u, other.u, mine.v, other.v, mine.spikes, other.spikes)
    columns = [sample, np.full(len(sample), n), np.full(len(sample), rank), neuron, *(a[differ] for a in values)]
    return np.stack([np.asarray(column, np.int64) for column in columns], axis=1)


def _outcomes(net: Network, x: npt.NDArray[Any], policy: OverflowPolicy, samples: IntArray) -> list[Outcome]:
    axis = x.ndim - len(net.input.shape) - 1
    outcomes = []
    for sample in samples:
        encoded = net.input.encode(np.take(x, [sample], axis=axis))
        runs = [reference(net, encoded, policy=each) for each in (LAVA, policy)]
        spikes = sum(int((runs[0].spikes[name] != runs[1].spikes[name]).sum()) for name in runs[0].spikes)
        decisions = [int(decide(scores(net, r))[0]) if net.readout else None for r in runs]
        outcomes.append(Outcome(int(sample), spikes, *decisions))
    return outcomes
