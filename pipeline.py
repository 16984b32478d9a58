"""Whole pipelines: the stages of ``lapilli run``, each a function of what came before.

The rooms do the work; this module hands the description from one to the next and writes what a run leaves behind:
``relu.safetensors`` (of a recipe with ``[relu]``), ``float.safetensors``, ``checkpoint.safetensors`` and their tables
of epochs, ``network.onnx``, ``report.html``,
``report.json`` and ``summary.json``.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib.metadata import distributions
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import __version__
from .errors import FileFormatError, UnsupportedError
from .network import IntArray, Network
from .recipe import Recipe
from .recording import Executor, Recording, decide
from .terminal import Narrator
from .whole_file import written_whole

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from torch import nn

    from .deploy import Plan, Violation
    from .sim import EnergyReport, Equivalence, Run
    from .sim.page.summary import RunSummary
    from .train.bit_true import BitTrueNetwork
    from .train.checkpoint import Epoch
    from .train.checkpoint import Stage as TrainingStage
    from .train.config import TrainConfig
    from .train.data import DataSet
    from .train.loop import History
    from .train.model import SpikingSequential
    from .train.parallel import Workers

RELU_CHECKPOINT = "relu.safetensors"
FLOAT_CHECKPOINT = "float.safetensors"
CHECKPOINT = "checkpoint.safetensors"
NETWORK = "network.onnx"
REPORT = "report.html"
REPORT_DATA = "report.json"
SUMMARY = "summary.json"
SHOWN_SAMPLES = 12  # images on the page


# ---------------------------------------------------------------------------------------------- training


@dataclass
class Trained:
    """What training left behind."""

    recipe: Recipe
    data: DataSet
    bit_true: BitTrueNetwork
    quantized: Network  # after training, before fine-tuning
    network: Network  # what is deployed
    history: Sequence[Mapping[str, Any]]
    accuracy: dict[str, float]  # by stage

    def summary(self) -> dict[str, Any]:
        """For ``lapilli train --json``."""
        return {"recipe": self.recipe.name, "accuracy": self.accuracy, "digest": self.network.digest()}


def train_float(recipe: Recipe, folder: Path, *, resume: bool, narrator: Narrator, device: str = "cpu") -> None:
    """The float training of a recipe alone, with what comes before; leaves ``float.safetensors`` and ``float.csv``.

    Raises
    ------
    Error
        As :func:`train_recipe`.
    """
    with _training(recipe, folder, resume, narrator, device) as training:
        training.float_network(training.first_network({})[0])


@dataclass(frozen=True)
class _Training:
    """What all stages of a training have in common."""

    recipe: Recipe
    folder: Path
    resume: bool
    narrator: Narrator
    tensorboard: bool
    data: DataSet
    workers: Workers
    place: str

    def first_network(self, accuracy: dict[str, float]) -> tuple[SpikingSequential, dict[str, History]]:
        """The network that training with spikes begins with, and what was done before: a ReLU network, if anything."""
        from .train.loop import evaluate
        from .train.model import build
        from .train.relu import ReluNetwork, to_spikes

        recipe, data, config = self.recipe, self.data, self.recipe.relu
        if config is None:
            return build(recipe.network, data.shape, data.n_classes, seed=recipe.train.seed).to(self.place), {}
        with self.narrator.stage("ReLU training", spinner=False) as stage:
            model = build(recipe.network, data.shape, data.n_classes, seed=config.seed).to(self.place)
            relu = ReluNetwork(model)
            if config.initial is not None:
                relu.load(config.initial)
            history = self.fit(relu, config, "relu", RELU_CHECKPOINT)
            accuracy["relu"] = stage.accuracy = evaluate(relu, data.test)
            stage.note = f"{config.epochs} epochs, a conventional network"
        with self.narrator.stage("thresholds") as stage:
            to_spikes(relu, model, data.train, config)
            self.workers.take_from_the_first(model.parameters())
            stage.note = f"percentile {config.percentile:g} of what ReLUs send"
            if not (self.resume and (self.folder / FLOAT_CHECKPOINT).exists()):  # else it was measured then
                stage.accuracy = evaluate(model, data.test)
                stage.note += f"; {recipe.network.steps} steps of spikes, not trained further"
        return model, {"relu": history}

    def float_network(self, model: SpikingSequential) -> History:
        """Train the float network with spikes."""
        from .train.checkpoint import load

        path, relu = self.folder / FLOAT_CHECKPOINT, self.recipe.relu
        if self.resume and path.exists():
            found = load(path).header.recipe.get("relu")
            if found != (None if relu is None else relu.model_dump(mode="json")):
                raise FileFormatError(
                    f"{path}: was started from another ReLU network ([relu] differs); give another folder, or train "
                    "without resuming"
                )
        return self.fit(model, self.recipe.train, "float", FLOAT_CHECKPOINT)

    def fit(self, module: nn.Module, config: TrainConfig, stage: TrainingStage, name: str) -> History:
        """Train a module; its checkpoint and log are in the folder."""
        from .train.data import augmentation
        from .train.logs import TrainingLog
        from .train.loop import fit

        recipe, data = self.recipe, self.data
        log = TrainingLog(self.folder, stage, tensorboard=self.tensorboard)

        def report(epochs: Sequence[Epoch]) -> None:
            log(epochs)
            self.narrator.epoch(epochs[-1])

        return fit(
            module, data.train, config, test=data.test, validation=data.validation, checkpoint=self.folder / name,
            resume=self.resume, recipe=recipe.model_dump(mode="json"), stage=stage, augment=augmentation(recipe.data),
            on_epoch=report, progress=None if self.narrator.console else False, workers=self.workers,
        )  # fmt: skip


@contextmanager
def _training(
    recipe: Recipe,
    folder: Path,
    resume: bool,
    narrator: Narrator,
    device: str,
    tensorboard: bool = False,
    download: bool = False,
) -> Iterator[_Training]:
    """Load the data, look at the device and join the processes of ``torchrun``."""
    from .train.data import load
    from .train.executor import usable_device
    from .train.parallel import joined

    data = load(recipe.data, recipe.network.steps, download=download)
    usable_device(device)
    folder.mkdir(parents=True, exist_ok=True)
    with joined(device) as (workers, place):
        said = narrator if workers.first else Narrator()
        yield _Training(recipe, folder, resume, said, tensorboard, data, workers, place)


def train_recipe(
    recipe: Recipe,
    folder: Path,
    *,
    resume: bool,
    narrator: Narrator,
    device: str = "cpu",
    tensorboard: bool = False,
    download: bool = False,
    float_folder: Path | None = None,
) -> Trained:
    """Train a recipe: a ReLU network where it has one, float DSR, folding, quantization, bit-true fine-tuning.

    Leaves ``float.safetensors`` and ``checkpoint.safetensors`` in ``folder``, with a table of their epochs each
    (``float.csv``, ``bit-true.csv``; with ``tensorboard`` event files, too); ``resume`` continues from them. Training
    runs on ``device``, under ``torchrun`` on all its processes; the integers it ends with mean the same everywhere.
    Only with ``download`` may torchvision or tonic fetch data.
    ``float_folder``: where :func:`train_float` left the float network, instead of training it here.

    Raises
    ------
    Error
        If the data are absent, a layer does not fit, or a checkpoint belongs to another recipe.
    """
    from .export.calibration import calibrate
    from .export.lowering import lower
    from .export.quantization import quantize_with_latent
    from .sim.executors import find
    from .train.bit_true import BitTrueNetwork
    from .train.loop import evaluate

    with _training(recipe, folder, resume, narrator, device, tensorboard, download) as training:
        data, narrator, accuracy = training.data, training.narrator, dict[str, float]()
        if float_folder is not None:
            training = replace(training, folder=float_folder, resume=True)
        model, histories = training.first_network(accuracy)

        with narrator.stage("float training", spinner=False) as stage:
            histories["float"] = training.float_network(model)
            training = replace(training, folder=folder, resume=resume)
            accuracy["float"] = stage.accuracy = evaluate(model, data.test)
            stage.note = f"{recipe.train.epochs} epochs, {recipe.method}"

        with narrator.stage("fold and quantize") as stage:
            folded = lower(model.cpu().double(), name=recipe.name, labels=data.labels, reset=recipe.quantize.reset)
            calibration = data.train.calibration()
            folded, quantizing = calibrate(folded, recipe.quantize, calibration, execute=find("fast"))
            made = quantize_with_latent(folded, quantizing, calibration=calibration)
            bit_true = BitTrueNetwork(
                made.network, made.latent, executor=find("fast"), mixed_precision=recipe.bit_true.mixed_precision
            )
            accuracy["quantized"] = stage.accuracy = evaluate(bit_true, data.test)
            stage.note = f"exact folding, then {_bits(made.network)}-bit weights, no further training"

        with narrator.stage("bit-true training", spinner=False) as stage:
            bit_true = bit_true.to(training.place)
            histories["bit-true"] = training.fit(bit_true, recipe.bit_true, "bit-true", CHECKPOINT)
            accuracy["bit-true"] = stage.accuracy = evaluate(bit_true.cpu(), data.test)
            stage.note = f"{recipe.bit_true.epochs} epochs in the chip's integers"

    metadata = {
        **made.network.metadata,
        "recipe": recipe.provenance(),
        "method": f"{recipe.method}, then bit-true fine-tuning",
        "accuracy": {"data": data.name, "samples": len(data.test), **accuracy},
        "trained_with": _versions(("lapilli", "torch", "numpy")),
    }
    history = [_epoch(name, epoch) for name, past in histories.items() for epoch in past.epochs]
    return Trained(recipe, data, bit_true, made.network, bit_true.to_network(metadata), history, accuracy)


def _bits(network: Network) -> str:
    found = sorted({c.weight_bits for c in network.connections})
    return str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}"


def _epoch(stage: str, epoch: Epoch) -> dict[str, Any]:
    return {
        "stage": f"{stage}, rates" if epoch.rates else stage,
        "epoch": epoch.epoch,
        "loss": epoch.loss,
        "accuracy": epoch.test_accuracy,
    }


# ---------------------------------------------------------------------------------------------- the whole run


@dataclass
class Finished:
    """What :func:`run_recipe` returns; ``summary`` is ``summary.json``."""

    summary: dict[str, Any]
    spikes_equal: bool


def run_recipe(
    recipe: Recipe,
    folder: Path,
    *,
    resume: bool,
    narrator: Narrator,
    executors: Sequence[str] | None = None,
    device: str = "cpu",
    tensorboard: bool = False,
    download: bool = False,
) -> Finished:
    """Run a recipe: train, export, check, simulate, verify (on Lava too), energy, report.

    Parameters
    ----------
    recipe : Recipe
    folder : Path
        Gets ``checkpoint.safetensors``, ``network.onnx``, ``report.html`` and ``summary.json``, among others.
    resume : bool
        Continue an interrupted training in that folder.
    narrator : Narrator
    executors : sequence of str, optional
        Compared with the reference; by default the recipe's.
    device : str
        For training, for example "cuda".
    tensorboard : bool
        Log training for TensorBoard, too.
    download : bool
        Let torchvision or tonic fetch the data where they are absent.

    Raises
    ------
    Error
        Of the first stage that fails; Lava's absence is noticed before anything is trained.
    """
    from .export import load, save
    from .sim import energy, simulate, verify
    from .sim.executors import find

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UnsupportedError(
            "several processes only train: start lapilli train with torchrun, then lapilli run --resume"
        )
    named = tuple(executors if executors is not None else recipe.deploy.executors)
    for name in named:
        find(name)
    started = time.perf_counter()
    trained = train_recipe(
        recipe, folder, resume=resume, narrator=narrator, device=device, tensorboard=tensorboard, download=download
    )  # fmt: skip
    x, y = trained.data.test.values(), trained.data.test.y

    with narrator.stage("export") as stage:
        save(trained.network, folder / NETWORK)
        network = load(folder / NETWORK)
        stage.note = f"{NETWORK}, read back and equal, SHA-256 {network.digest()[:12]}..."

    with narrator.stage("chip check") as stage:
        checks = check_chips(network, recipe.deploy.chips)
        plans = _plans(network, recipe.deploy.chips)
        stage.note = "; ".join(_verdict(chip, found) for chip, found in checks.items())

    with narrator.stage("simulation") as stage:
        run = simulate(network, x, record={p.name: "spikes" for p in network.populations if p.spikes})
        stage.accuracy = run.accuracy(y)
        mean_rate = sum(run.spike_totals.values()) / sum(n.total for n in run.neuron_updates.values())
        stage.note = (
            f"fast engine, {run.n_samples / run.seconds:,.0f} samples/s, {mean_rate:.1%} of neurons spike per step"
        )

    with narrator.stage("equivalence") as stage:
        # The torch executor of a run is the very module that was trained, not one rebuilt from the file.
        against = [("torch", _trained_module(trained)) if name == "torch" else name for name in named]
        proof = verify(network, x, against=against, y=y)
        stage.accuracy = proof.accuracy
        stage.note = _proof_note(proof)

    with narrator.stage("energy and latency") as stage:
        costs = {chip: energy(network, run, chip=chip, plan=plans.get(chip)) for chip in recipe.deploy.chips}
        stage.note = "; ".join(_cost_note(chip, cost) for chip, cost in costs.items())

    seconds = time.perf_counter() - started
    page = _page_data(trained, network, run, proof, costs, checks, plans, narrator)
    summary = _summary(trained, network, run, proof, costs, narrator, seconds)
    _write_json(folder / REPORT_DATA, page.to_json())
    rewrite_report(folder)
    _write_json(folder / SUMMARY, summary)

    for cost in costs.values():
        narrator.show(cost.render())
    narrator.say(str(proof))
    narrator.say(f"report: {folder / REPORT}", style="bold")
    return Finished(summary, proof.equal)


def check_chips(network: Network, chips: Sequence[str]) -> dict[str, list[Violation]]:
    """Design rule violations by chip."""
    from .deploy import check

    return {chip: check(network, chip) for chip in chips}


def rewrite_report(folder: Path) -> Path:
    """Write ``report.html`` of a run from its ``report.json``.

    Raises
    ------
    FileFormatError
        If the folder does not hold a finished run.
    """
    from .sim import write_report
    from .sim.page.summary import RunSummary

    source = folder / REPORT_DATA
    try:
        document = json.loads(source.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileFormatError(f"{source}: cannot be read ({error.strerror}); finish a run there first") from None
    except ValueError as error:
        raise FileFormatError(f"{source}: not JSON ({error}); run the recipe again") from None
    if not isinstance(document, dict):
        raise FileFormatError(f"{source}: not the data of a run; run the recipe again")
    return write_report(folder / REPORT, RunSummary.from_json(document))


def _plans(network: Network, chips: Sequence[str]) -> dict[str, Plan]:
    """Placements by chip; a chip that the network does not fit has none (its check says why)."""
    from .deploy import plan

    plans = {}
    for chip in chips:
        with suppress(UnsupportedError):
            plans[chip] = plan(network, chip)
    return plans


def _trained_module(trained: Trained) -> Executor:
    """The trained torch module itself as an executor."""
    import torch

    def execute(network: Network, x: IntArray, trace: Collection[str] = ()) -> Recording:
        if network != trained.network:
            raise FileFormatError("the exported file does not hold the network that was trained")
        return trained.bit_true.record(torch.from_numpy(np.ascontiguousarray(x)), trace)

    return execute


def _verdict(chip: str, found: Sequence[Violation]) -> str:
    errors = sum(v.severity == "error" for v in found)
    notes = len(found) - errors
    return f"{chip}: {errors} violations, {notes} notes" if errors else f"{chip}: fits, {notes} notes"


def _proof_note(proof: Equivalence) -> str:
    names = ", ".join(("reference", *proof.executors))
    if proof.equal:
        return f"all spikes equal: {names}"
    failed = [name for name, result in proof.executors.items() if not result.equal]
    return f"NOT EQUAL: {', '.join(failed)} against the reference"


def _cost_note(chip: str, cost: EnergyReport) -> str:
    from .sim.units import si_range

    total = cost.energy
    return f"{chip}: {si_range(total.low, total.high, 'J') if total else 'not published'}"


def _versions(packages: Sequence[str]) -> dict[str, str]:
    """Of the installed ones among these packages."""
    installed = {d.metadata["Name"]: d.version for d in distributions()}
    return {package: installed[package] for package in packages if package in installed}


def _summary(
    trained: Trained,
    network: Network,
    run: Run,
    proof: Equivalence,
    costs: Mapping[str, EnergyReport],
    narrator: Narrator,
    seconds: float,
) -> dict[str, Any]:
    by_executor = {proof.baseline: proof.accuracy, **{n: r.accuracy for n, r in proof.executors.items()}}
    return {
        "recipe": trained.recipe.name,
        "digest": network.digest(),
        "test_samples": run.n_samples,
        "accuracy": {"stages": trained.accuracy, "executors": by_executor},
        "spikes_equal": proof.equal,
        "energy": {chip: cost.to_json() for chip, cost in costs.items()},
        "spike_rates": run.rates,
        "synaptic_operations": {name: ops / run.n_samples for name, ops in run.synop_totals.items()},
        "overflows": run.overflows,
        "seconds": {"total": round(seconds, 3), **{s.name: s.seconds for s in narrator.stages}},
        "versions": _environment(),
    }


def _environment() -> dict[str, str]:
    packages = ("torch", "numpy", "onnx", "onnxruntime", "lava-nc")
    return {
        "lapilli": __version__,
        **_versions(packages),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _page_data(
    trained: Trained,
    network: Network,
    run: Run,
    proof: Equivalence,
    costs: Mapping[str, EnergyReport],
    checks: Mapping[str, Sequence[Violation]],
    plans: Mapping[str, Plan],
    narrator: Narrator,
) -> RunSummary:
    """Everything that the page shows, as JSON values."""
    from .bounds import population_bounds
    from .sim import simulate
    from .sim.page import summary

    test = trained.data.test
    bounds = {p.name: population_bounds(network, p) for p in network.populations}
    shown = network.readout.population if network.readout else network.populations[-1].name
    traced = simulate(network, test.values(slice(1)), record={shown: ("v",)})
    predictions = decide(run.scores) if run.scores is not None else np.zeros(0, np.int64)
    return summary.RunSummary(
        name=trained.recipe.name,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        data={
            "name": trained.data.name,
            "train": len(trained.data.train),
            "test": len(test),
            "shape": list(trained.data.shape),
            "classes": trained.data.n_classes,
        },
        accuracy=run.accuracy(test.y),
        test_samples=run.n_samples,
        stages=tuple(narrator.stages),
        network=summary.describe(network),
        spike_rates=run.rates,
        equivalence=proof.to_json(),
        energy=[cost.to_json() for cost in costs.values()],
        checks={chip: [v.to_json() for v in found] for chip, found in checks.items()},
        plans={chip: made.to_json() for chip, made in plans.items()},
        overflows={
            name: {
                "wraps": run.wraps.get(name, 0),
                "saturations": run.saturations.get(name, 0),
                "can_wrap": b.can_wrap,
                "can_saturate": b.can_saturate,
            }
            for name, b in bounds.items()
        },
        environment=_environment(),
        recipe=json.dumps(trained.recipe.model_dump(mode="json"), indent=2),
        history=trained.history,
        confusion=summary.confusion(test.y, predictions, trained.data.n_classes),
        labels=list(network.labels),
        raster=summary.raster(run.spikes),
        membrane=summary.membrane(network, shown, traced.v[shown], run.spikes.get(shown)),
        samples=summary.samples(
            test.pictures(), test.y.tolist(), predictions.tolist(), network.labels, limit=SHOWN_SAMPLES
        ),
    )


def _write_json(path: Path, document: Any) -> None:
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")
