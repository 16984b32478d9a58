"""Run the points of a sweep over workers: train, export, simulate, price; whatever fails, the others go on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import DataError, Error, FileFormatError, UnsupportedError
from ..recipe import Recipe
from ..scale.backends import Backend
from ..scale.kept import fingerprint
from ..sim.simulation import Progress
from ..terminal import Narrator
from ..whole_file import written_whole
from .grid import Point

FLOATS = "float"  # folder of float trainings, shared by the points that differ only after it
POINTS = "points"
RESULT = "result.json"


@dataclass(frozen=True)
class Result:
    """What became of a point.

    Attributes
    ----------
    point : Point
    folder : Path
        With its checkpoint and ``network.onnx``.
    measured : dict
        JSON values: ``accuracy`` by stage ("float", "quantized", "deployed"), ``rate``, ``synops``, ``energy`` by chip,
        ``digest``, ``seconds``; empty if it failed.
    error : str
        Why it failed, or empty.
    """

    point: Point
    folder: Path
    measured: dict[str, Any]
    error: str = ""


def run_sweep(
    points: Sequence[Point],
    folder: Path,
    *,
    backend: Backend | str = "joblib",
    resume: bool = False,
    device: str = "cpu",
    progress: Progress | None = None,
) -> list[Result]:
    """Run every point; results in the order of the points.

    Float training comes first, once for all points that agree in data, network, training and seed. Then every point
    is quantized, fine-tuned, exported, simulated on the test samples and priced.

    Parameters
    ----------
    points : sequence of Point
    folder : Path
        Gets a folder for every float training and every point, named after a hash of its settings. Workers on other
        machines must see it under the same path.
    backend : Backend or str
    resume : bool
        Take what is finished in the folder, whatever sweep it is of; points that failed run again.
    device : str
        To train on.
    progress : callable, optional
        Called with (trainings and points done, all).

    Raises
    ------
    DataError
        If the folder holds results, and ``resume`` is not set.
    ExecutionError
        If workers keep dying.
    """
    if isinstance(backend, str):
        backend = Backend.parse(backend)
    folder = folder.absolute()
    if not resume and (folder / POINTS).exists():
        raise DataError(f"{folder}: holds a sweep; go on with it by --resume, or give another --out")
    try:
        (folder / POINTS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileFormatError(f"{folder}: cannot be written ({error.strerror or error})") from None
    places = [folder / POINTS / _key(point.recipe, ("quantize", "bit_true", "deploy")) for point in points]
    floats = [folder / FLOATS / _key(point.recipe) for point in points]
    done: dict[int, dict[str, Any]] = {}
    for n, place in enumerate(places):
        there = _result(place)
        if there is not None and not there.get("error"):
            done[n] = there
    first = {floats[n]: n for n in reversed(range(len(points))) if n not in done}
    trainings = {n: (points[n].recipe, place) for place, n in first.items()}
    total = len(points) + len(trainings)
    finished = len(done)

    def another() -> None:
        nonlocal finished
        finished += 1
        if progress:
            progress(finished, total)

    failed: dict[Path, str] = {}
    for n, error in backend.run(_train, device, dict(sorted(trainings.items()))):
        if error:
            failed[floats[n]] = error
        another()
    waiting = {}
    for n, point in enumerate(points):
        if floats[n] in failed:
            done[n] = {"error": f"float training: {failed[floats[n]]}"}
            another()
        elif n not in done:
            waiting[n] = (point.recipe, places[n], floats[n])
    for n, measured in backend.run(_run_point, device, waiting):
        done[n] = measured
        another()
    return [
        Result(point, places[n], {k: v for k, v in done[n].items() if k != "error"}, done[n].get("error", ""))
        for n, point in enumerate(points)
    ]


def _key(recipe: Recipe, more: tuple[str, ...] = ()) -> str:
    """Hash of what float training depends on, and of further sections."""
    sections = recipe.model_dump(mode="json", include={"data", "network", "relu", "train", *more})
    return fingerprint({"version": __version__, **sections})[:16]


def _result(place: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((place / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _reason(error: Exception) -> str:
    """One line: our errors as they are, others with their class."""
    text = " ".join(str(error).split())
    return text if isinstance(error, Error) else f"{type(error).__name__}: {text}"


def _train(device: str, item: tuple[Recipe, Path]) -> str:
    """Float training in a worker; what went wrong, or nothing."""
    from ..pipeline import train_float

    recipe, place = item
    try:
        train_float(recipe, place, resume=True, narrator=Narrator(), device=device)
    except Exception as error:  # one point must not end the others
        return _reason(error) or "failed"
    return ""


def _run_point(device: str, item: tuple[Recipe, Path, Path]) -> dict[str, Any]:
    """A point in a worker, after its float training."""
    recipe, place, trained = item
    try:
        measured = _measure(recipe, place, trained, device)
    except Exception as error:  # one point must not end the others
        measured = {"error": _reason(error) or "failed"}
    try:
        place.mkdir(parents=True, exist_ok=True)
        with written_whole(place / RESULT) as temporary:
            temporary.write_text(json.dumps(measured, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise FileFormatError(f"{place}: cannot be written ({error.strerror or error})") from None
    return measured


def _measure(recipe: Recipe, place: Path, trained: Path, device: str) -> dict[str, Any]:
    import time

    from ..export import load, save
    from ..pipeline import NETWORK, train_recipe
    from ..sim import simulate

    started = time.perf_counter()
    made = train_recipe(recipe, place, resume=True, narrator=Narrator(), device=device, float_folder=trained)
    save(made.network, place / NETWORK)
    network = load(place / NETWORK)
    run = simulate(network, made.data.test.values())
    return {
        "accuracy": {
            "float": made.accuracy["float"],
            "quantized": made.accuracy["quantized"],
            "deployed": run.accuracy(made.data.test.y),
        },
        "rate": sum(run.spike_totals.values()) / sum(n.total for n in run.neuron_updates.values()),
        "synops": sum(run.synop_totals.values()) / run.n_samples,
        "overflows": run.overflows,
        "energy": _energies(network, run, recipe.deploy.chips),
        "samples": run.n_samples,
        "digest": network.digest(),
        "seconds": round(time.perf_counter() - started, 3),
    }


def _energies(network: Any, run: Any, chips: Sequence[str]) -> Mapping[str, Any]:
    """J per inference by chip: low, typical, high; chips without published energies, or too small, are left out."""
    from ..sim import energy

    found = {}
    for chip in chips:
        with suppress(UnsupportedError):
            cost = energy(network, run, chip=chip).energy
            if cost is not None:
                found[chip] = {"low": cost.low, "typical": cost.typical, "high": cost.high}
    return found
