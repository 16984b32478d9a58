"""Everything the HTML page of a run shows, as plain data that survives a trip through JSON.

A pipeline fills a :class:`RunSummary` from the ``to_json()`` of its results; :func:`lapilli.sim.write_report` turns it
into a page. Whatever is absent (None, empty) is left out of the page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import FileFormatError
from ...network import Network


@dataclass(frozen=True)
class Stage:
    """One stage of a pipeline.

    Attributes
    ----------
    name : str
        As people say it: "float training", "folding", "bit-true training", "Lava".
    accuracy : float or None
        Test accuracy after it, 0..1.
    seconds : float or None
    note : str
        One short line: "40 epochs", "8 bits", "skipped: lava is not installed".
    """

    name: str
    accuracy: float | None = None
    seconds: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Raster:
    """Spikes of one population for one sample.

    Attributes
    ----------
    population : str
    neurons : int
    spikes : list of list of int
        ``spikes[n]``: flat indices (C order) of the neurons that spike at step ``n``.
    """

    population: str
    neurons: int
    spikes: list[list[int]]


@dataclass(frozen=True)
class Membrane:
    """Membrane of a few neurons of one population for one sample, in state units.

    Attributes
    ----------
    population : str
    traces : dict of list of int
        By neuron (its label): ``v`` after each step, as recorded (after the reset).
    threshold : int or None
        None for a readout accumulator.
    spikes : dict of list of int
        By neuron: the steps (0-based) at which it spikes.
    """

    population: str
    traces: dict[str, list[int]]
    threshold: int | None = None
    spikes: dict[str, list[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """One input image and the answer to it.

    Attributes
    ----------
    image : nested list of float, [Y, X] or [C, Y, X]
    truth, prediction : str
        Class names.
    """

    image: list[Any]
    truth: str
    prediction: str


@dataclass(frozen=True)
class RunSummary:
    """A finished run; all values are JSON values.

    Attributes
    ----------
    name : str
        Of the run or recipe; the page's title.
    created : str
        Date and time, ISO 8601.
    data : mapping
        What it was trained on: ``name``, ``train`` and ``test`` (numbers of samples), ``shape``, ``classes``; any may
        be absent.
    accuracy : float or None
        Test accuracy of the deployed integer network, 0..1: the headline.
    test_samples : int or None
        That it was measured on.
    stages : list of Stage
        In the order they ran.
    network : mapping or None
        From :func:`describe`.
    spike_rates : mapping of str to float
        Spikes per neuron and step, by population.
    equivalence : mapping or None
        ``Equivalence.to_json()`` of :mod:`lapilli.sim.equivalence.comparison`.
    energy : list of mapping
        ``EnergyReport.to_json()``, one per chip; the first is the headline's.
    checks : mapping of str to list
        By chip: ``Violation.to_json()`` of :mod:`lapilli.deploy.rules`; an empty list is a passed check.
    plans : mapping of str to mapping
        By chip: ``Plan.to_json()`` of :mod:`lapilli.deploy.placement`.
    overflows : mapping of str to mapping
        By population: ``wraps`` and ``saturations`` seen; ``can_wrap`` and ``can_saturate``, the bound analysis'
        verdict, where it was made.
    environment : mapping of str to str
        Versions, machine, and whatever makes the run repeatable.
    recipe : str
        The recipe's text.
    history : list of mapping
        Training epochs: ``stage``, ``loss``, ``accuracy`` (either of the two may be None).
    confusion : nested list of int or None
        ``[true][predicted]``.
    labels : list of str
    raster : list of Raster
        One sample, all populations.
    membrane : Membrane or None
    samples : list of Sample
    """

    name: str
    created: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)
    accuracy: float | None = None
    test_samples: int | None = None
    stages: Sequence[Stage] = ()
    network: Mapping[str, Any] | None = None
    spike_rates: Mapping[str, float] = field(default_factory=dict)
    equivalence: Mapping[str, Any] | None = None
    energy: Sequence[Mapping[str, Any]] = ()
    checks: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    plans: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    overflows: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    recipe: str = ""
    history: Sequence[Mapping[str, Any]] = ()
    confusion: Sequence[Sequence[int]] | None = None
    labels: Sequence[str] = ()
    raster: Sequence[Raster] = ()
    membrane: Membrane | None = None
    samples: Sequence[Sample] = ()

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values; :meth:`from_json` gives the summary back."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> RunSummary:
        """The summary that :meth:`to_json` wrote.

        Raises
        ------
        FileFormatError
            If a key is unknown or a part is malformed.
        """
        unknown = sorted(set(document) - {f.name for f in fields(cls)})
        if unknown:
            raise FileFormatError(f"run summary: unknown keys {', '.join(unknown)}; written by another version?")
        values = dict(document)
        try:
            for name, part in (("stages", Stage), ("raster", Raster), ("samples", Sample)):
                values[name] = [part(**item) for item in values.get(name, ())]
            if values.get("membrane") is not None:
                values["membrane"] = Membrane(**values["membrane"])
            return cls(**values)
        except TypeError as error:
            raise FileFormatError(f"run summary: malformed ({error}); write it again with lapilli run") from None


def describe(network: Network) -> dict[str, Any]:
    """The network's tables for a page: populations, connections, and what identifies it."""
    readout = network.readout
    return {
        "name": network.name,
        "steps": network.steps,
        "digest": network.digest(),
        "input": {"shape": list(network.input.shape), "low": network.input.low, "high": network.input.high},
        "readout": f"{readout.kind.replace('_', ' ')} of {readout.population}" if readout else "",
        "populations": [
            {
                "name": p.name,
                "shape": list(p.shape),
                "neurons": p.size,
                "reset": p.reset,
                "threshold": p.threshold if p.spikes else None,
                "reset_amount": p.reset_amount if p.reset == "subtract" else None,
                "du": p.du,
                "dv": p.dv,
                "state_bits": p.state_bits,
            }
            for p in network.order
        ],
        "connections": [
            {
                "name": c.name,
                "kind": c.synapse.kind,
                "weight_shape": list(c.synapse.weight.shape),
                "weight_bits": c.weight_bits,
                "weight_exponent": c.weight_exponent,
                "weights": int(c.synapse.weight.size),
                "zeros": int((c.synapse.weight == 0).sum()),
                "delay": c.delay,
            }
            for c in network.connections
        ],
    }


def raster(spikes: Mapping[str, npt.NDArray[Any]], sample: int = 0) -> list[Raster]:
    """Rasters of one sample.

    Parameters
    ----------
    spikes : by population, [T, B, *shape]
        As in :class:`lapilli.recording.Recording`.
    sample : int
    """
    rows = []
    for name, recorded in spikes.items():
        flat = np.asarray(recorded)[:, sample].reshape(len(recorded), -1)
        rows.append(Raster(name, flat.shape[1], [np.flatnonzero(step).tolist() for step in flat]))
    return rows


def membrane(
    network: Network,
    population: str,
    v: npt.NDArray[Any],
    spikes: npt.NDArray[Any] | None = None,
    *,
    sample: int = 0,
    neurons: int = 5,
) -> Membrane:
    """Membrane traces of the first ``neurons`` neurons (with a label: of all of them up to 10) of a population.

    Parameters
    ----------
    network : Network
    population : str
    v : int [T, B, *shape]
    spikes : uint8 [T, B, *shape] or None
    sample, neurons : int
    """
    p = network.population(population)
    traces = np.asarray(v)[:, sample].reshape(len(v), -1)
    named = network.labels if network.readout and network.readout.population == population else ()
    shown = range(min(10 if named else neurons, p.size))
    label = {i: named[i] if i < len(named) else str(i) for i in shown}
    fired = np.asarray(spikes)[:, sample].reshape(len(v), -1) if spikes is not None else np.zeros_like(traces)
    return Membrane(
        population=population,
        traces={label[i]: traces[:, i].tolist() for i in shown},
        threshold=p.threshold if p.spikes else None,
        spikes={label[i]: np.flatnonzero(fired[:, i]).tolist() for i in shown},
    )


def confusion(truth: npt.ArrayLike, predictions: npt.ArrayLike, classes: int) -> list[list[int]]:
    """Confusion matrix ``[true][predicted]`` of class indices."""
    matrix = np.zeros((classes, classes), np.int64)
    np.add.at(matrix, (np.asarray(truth, np.int64), np.asarray(predictions, np.int64)), 1)
    return matrix.tolist()


def samples(
    x: npt.NDArray[Any],
    truth: Sequence[int],
    predictions: Sequence[int],
    labels: Sequence[str] = (),
    *,
    limit: int = 18,
) -> list[Sample]:
    """Images to show: wrong answers first, up to a third of the places, then right ones in their order.

    Parameters
    ----------
    x : [B, Y, X] or [B, C, Y, X]
    truth, predictions : class indices
    labels : class names, or empty
    limit : int
    """

    def name(index: int) -> str:
        return labels[index] if index < len(labels) else str(index)

    wrong = [i for i in range(len(x)) if truth[i] != predictions[i]][: limit // 3]
    right = [i for i in range(len(x)) if truth[i] == predictions[i]][: limit - len(wrong)]
    return [
        Sample(np.asarray(x[i], float).round(4).tolist(), name(int(truth[i])), name(int(predictions[i])))
        for i in (*right, *wrong)
    ]
