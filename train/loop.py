"""The training loop: cross-entropy, warm-up and cosine, and epochs that repeat bit for bit.

Everything random in an epoch comes from (seed, epoch) and everything else from the iteration number, so a run that
was stopped at any moment and resumed from its last checkpoint ends with the same weights as one that was not.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import ExecutionError, FileFormatError, RecipeError
from . import representation
from .checkpoint import Checkpoint, Epoch, Header, Stage, load, save
from .config import TrainConfig
from .data import Augment, Split
from .model import SpikingSequential
from .rates import rate_scores

EVALUATION_BATCH = 512
Forward: TypeAlias = Callable[[Tensor], Tensor]
Report: TypeAlias = Callable[[int, str], None]  # (batches done since the last call, what to show)


@dataclass(frozen=True)
class History:
    """All epochs of a run, those before a resume too."""

    epochs: tuple[Epoch, ...]

    @property
    def test_accuracy(self) -> float | None:
        """After the last epoch, where a test split was given."""
        return self.epochs[-1].test_accuracy if self.epochs else None

    @property
    def seconds(self) -> float:
        """Training time, resumed parts together."""
        return sum(e.seconds for e in self.epochs)


def fit(
    model: nn.Module,
    train: Split,
    config: TrainConfig,
    *,
    test: Split | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    recipe: Mapping[str, Any] | None = None,
    stage: Stage = "float",
    augment: Augment | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    progress: bool | None = None,
) -> History:
    """Train a module whose forward pass maps ``x [B, *shape]`` to scores ``[B, classes]``, in place.

    Parameters
    ----------
    model : nn.Module
        On any device; float32 or float64.
    train : Split
    config : TrainConfig
    test : Split, optional
        Its accuracy goes into the history after every epoch. It never influences training.
    checkpoint : path, optional
        Written after every epoch. ``KeyboardInterrupt`` passes through and leaves the last one.
    resume : bool
        Go on from ``checkpoint`` where it exists; the final weights are those of an uninterrupted run.
    recipe : mapping, optional
        Stored in the checkpoint as JSON.
    stage : {"float", "bit-true"}
        Stored in the checkpoint; a run resumes its own stage only.
    augment : callable, optional
        ``(x float32 [B, *shape], numpy Generator) -> x``, of training batches.
    on_epoch : callable, optional
        Called after every epoch, when its checkpoint is on disk.
    progress : bool, optional
        Show a progress bar; by default where standard error is a terminal.

    Raises
    ------
    FileFormatError
        If the checkpoint to resume is broken or belongs to another run.
    ExecutionError
        If the loss stops being a finite number.
    """
    with _threads(config.threads):
        return _fit(model, train, config, test, checkpoint, resume, recipe or {}, stage, augment, on_epoch, progress)


def _fit(
    model: nn.Module,
    train: Split,
    config: TrainConfig,
    test: Split | None,
    checkpoint: str | Path | None,
    resume: bool,
    recipe: Mapping[str, Any],
    stage: Stage,
    augment: Augment | None,
    on_epoch: Callable[[Epoch], None] | None,
    progress: bool | None,
) -> History:
    if config.rate_epochs:
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = _optimizer(model, config)
    history: list[Epoch] = []
    if resume and checkpoint is not None and Path(checkpoint).exists():
        history = _restore(Path(checkpoint), model, optimizer, config, stage)
    batches = math.ceil(len(train) / config.batch_size)
    with _progress(progress, config.epochs * batches, len(history) * batches) as report:
        for epoch in range(len(history) + 1, config.epochs + 1):
            start = time.perf_counter()
            forward = _forward(model, config, epoch)
            loss, accuracy = _train_epoch(model, forward, optimizer, train, config, epoch, augment, report)
            at_rates = epoch <= config.rate_epochs
            history.append(
                Epoch(
                    epoch=epoch,
                    loss=loss,
                    train_accuracy=accuracy,
                    test_accuracy=None if test is None else _accuracy(model, forward if at_rates else model, test),
                    rates=at_rates,
                    learning_rate=optimizer.param_groups[0]["lr"],
                    seconds=time.perf_counter() - start,
                    spike_rates={} if at_rates else _spike_rates(model, test if test is not None else train),
                )
            )
            if checkpoint is not None:
                header = Header(
                    stage=stage,
                    epoch=epoch,
                    seed=config.seed,
                    train=config.model_dump(mode="json"),
                    recipe=dict(recipe),
                    history=tuple(history),
                )
                save(checkpoint, Checkpoint(header, model.state_dict(), _optimizer_tensors(model, optimizer)))
            if on_epoch is not None:
                on_epoch(history[-1])
    return History(tuple(history))


def evaluate(model: nn.Module, split: Split) -> float:
    """Accuracy, a fraction, in eval mode."""
    return _accuracy(model, model, split)


@torch.no_grad()
def _accuracy(model: nn.Module, forward: Forward, split: Split) -> float:
    was_training = model.training
    model.eval()
    right = 0
    for start in range(0, len(split), EVALUATION_BATCH):
        x = _to_model(model, split.x[start : start + EVALUATION_BATCH])
        right += int((forward(x).argmax(1).cpu().numpy() == split.y[start : start + EVALUATION_BATCH]).sum())
    model.train(was_training)
    return right / len(split)


def learning_rate(config: TrainConfig, iteration: int, iterations: int) -> float:
    """Learning rate of an iteration (from 0) out of ``iterations``: linear warm-up, then cosine to 0 or constant."""
    if iteration < config.warmup_iterations:
        return config.learning_rate * (iteration + 1) / config.warmup_iterations
    if config.schedule == "constant":
        return config.learning_rate
    done = (iteration - config.warmup_iterations) / max(1, iterations - config.warmup_iterations)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def _train_epoch(
    model: nn.Module,
    forward: Forward,
    optimizer: torch.optim.Optimizer,
    train: Split,
    config: TrainConfig,
    epoch: int,
    augment: Augment | None,
    report: Report,
) -> tuple[float, float]:
    """One epoch in place; mean loss and training accuracy."""
    rng = np.random.default_rng([config.seed, epoch])  # shuffling and augmentation
    torch.manual_seed(int(rng.integers(2**63)))  # dropout
    batches = math.ceil(len(train) / config.batch_size)
    total, right = 0.0, 0
    model.train()
    if config.freeze_norm and epoch > config.rate_epochs:
        for module in model.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                module.eval()
    # array_split makes batches of nearly one size, so none is left with a single sample for batch normalization.
    for i, chosen in enumerate(np.array_split(rng.permutation(len(train)), batches)):
        rate = learning_rate(config, (epoch - 1) * batches + i, config.epochs * batches)
        for group in optimizer.param_groups:
            group["lr"] = rate
        images = train.x[chosen] if augment is None else augment(train.x[chosen], rng)
        x = _to_model(model, images)
        y = torch.from_numpy(train.y[chosen]).to(x.device)
        scores = forward(x)
        loss = nn.functional.cross_entropy(scores, y)
        value = loss.item()
        if not math.isfinite(value):
            raise ExecutionError(f"training diverged in epoch {epoch}: the loss is {value}; lower the learning_rate")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if config.gradient_clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip)
        optimizer.step()
        total += value * len(chosen)
        right += int((scores.argmax(1) == y).sum())
        report(1, f"epoch {epoch}/{config.epochs}  loss {value:.3f}")
    return total / len(train), right / len(train)


def _forward(model: nn.Module, config: TrainConfig, epoch: int) -> Forward:
    """What computes the scores in an epoch: at rate level, with the graph of all steps, or of the representation."""
    if epoch <= config.rate_epochs:
        if not isinstance(model, SpikingSequential):
            raise RecipeError(
                "train.rate_epochs: only networks of our own layers run at the level of rates; set it to 0"
            )
        return partial(_rate_scores, model, config.mixed_precision)
    if config.backward == "steps" or not isinstance(model, SpikingSequential):
        return model
    if config.backward == "auto" and representation.obstacle(model) is not None:
        return model
    return partial(representation.scores, model)


def _rate_scores(model: SpikingSequential, mixed_precision: bool, x: Tensor) -> Tensor:
    with torch.autocast(x.device.type, torch.bfloat16, enabled=mixed_precision):
        return rate_scores(model, x).to(x.dtype)


def _to_model(model: nn.Module, x: np.ndarray[Any, Any]) -> Tensor:
    """A batch on the model's device; in its precision, where it has parameters."""
    like = next(model.parameters(), None)
    batch = torch.from_numpy(np.ascontiguousarray(x))
    return batch if like is None else batch.to(like.device, like.dtype)


def _spike_rates(model: nn.Module, split: Split) -> dict[str, float]:
    rates: Any = getattr(model, "spike_rates", None)
    return rates(_to_model(model, split.x[:EVALUATION_BATCH])) if rates is not None else {}


def _optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, config.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay
        )
    return torch.optim.AdamW(parameters, config.learning_rate, weight_decay=config.weight_decay)


def _trained(model: nn.Module) -> list[str]:
    """Names of the trained parameters, in the optimizer's order."""
    return [name for name, p in model.named_parameters() if p.requires_grad]


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    names = _trained(model)
    return {
        f"{names[index]}/{key}": value
        for index, state in optimizer.state_dict()["state"].items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def _restore(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, config: TrainConfig, stage: Stage
) -> list[Epoch]:
    """Put a checkpoint's state into model and optimizer; its history."""
    found = load(path)
    other = "give another checkpoint, or train without resuming"
    if found.header.stage != stage:
        raise FileFormatError(f"{path}: holds {found.header.stage} training, not {stage}; {other}")
    for key, value in config.model_dump(mode="json").items():
        if found.header.train.get(key) != value:
            raise FileFormatError(
                f"{path}: was trained with {key} = {found.header.train.get(key)}, the recipe says {value}; {other}"
            )
    shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    for name in shapes.keys() | found.model.keys():
        if name not in found.model or name not in shapes or tuple(found.model[name].shape) != shapes[name]:
            raise FileFormatError(f"{path}: its tensor {name!r} does not fit the network; {other}")
    if len(found.header.history) != found.header.epoch or found.header.epoch > config.epochs:
        raise FileFormatError(f"{path}: its history does not fit its {found.header.epoch} epochs; {other}")
    model.load_state_dict(found.model)

    names = _trained(model)
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in found.optimizer.items():
        parameter, _, key = name.rpartition("/")
        if parameter not in names:
            raise FileFormatError(f"{path}: its optimizer state {name!r} does not fit the network; {other}")
        state.setdefault(names.index(parameter), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return list(found.header.history)


@contextmanager
def _threads(wanted: int | None) -> Iterator[None]:
    """Torch's CPU threads while training."""
    before = torch.get_num_threads()
    torch.set_num_threads(wanted or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _progress(wanted: bool | None, total: int, done: int) -> Iterator[Report]:
    """A progress bar on standard error, or nothing."""
    if not (sys.stderr.isatty() if wanted is None else wanted):
        yield lambda _steps, _text: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("training", total=total, completed=done)
        yield lambda steps, text: bar.update(task, advance=steps, description=text)
