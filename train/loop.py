"""The training loop: cross-entropy, warm-up and cosine, and epochs that repeat bit for bit.

Everything random in an epoch comes from (seed, epoch) and everything else from the iteration number, so a run that
was stopped at any moment and resumed from its last checkpoint ends with the same weights as one that was not.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import ExecutionError, FileFormatError, RecipeError
from . import representation
from .checkpoint import Checkpoint, Epoch, Header, Stage, load, save
from .config import TrainConfig
from .convolution import bears_channels_last
from .data import Augment, Split
from .model import SpikingSequential
from .parallel import ALONE, Workers
from .rates import rate_scores
from .spike_losses import spike_loss

EVALUATION_BATCH = 512
EVALUATION_VALUES = 2**26  # most input values of an evaluation batch at all steps: images of ImageNet are large
_Key = TypeVar("_Key")
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
    validation: Split | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    recipe: Mapping[str, Any] | None = None,
    stage: Stage = "float",
    augment: Augment | None = None,
    on_epoch: Callable[[Sequence[Epoch]], None] | None = None,
    progress: bool | None = None,
    workers: Workers = ALONE,
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
    validation : Split, optional
        Samples that are not trained on. With ``config.keep = "best"`` the model ends with the weights of the epoch
        with the best accuracy on them, the first of equals; epochs at the level of rates do not count if others follow.
    checkpoint : path, optional
        Written after every epoch. ``KeyboardInterrupt`` passes through and leaves the last one.
    resume : bool
        Go on from ``checkpoint`` where it exists; the final weights are those of an uninterrupted run.
    recipe : mapping, optional
        Stored in the checkpoint as JSON.
    stage : {"relu", "float", "bit-true"}
        Stored in the checkpoint; a run resumes its own stage only.
    augment : callable, optional
        ``(x float32 [B, C, H, W], numpy Generator) -> x``, of training batches; frames are stacked as channels.
    on_epoch : callable, optional
        Called after every epoch with all epochs so far, when its checkpoint is on disk.
    progress : bool, optional
        Show a progress bar; by default where standard error is a terminal.
    workers : Workers
        The processes that train this network together (:mod:`.parallel`); the first one writes and calls back.

    Raises
    ------
    RecipeError
        If ``config`` asks for what this model, or data without validation samples, cannot give.
    FileFormatError
        If the checkpoint to resume is broken or belongs to another run.
    ExecutionError
        If the loss stops being a finite number.
    """
    if config.keep == "best" and validation is None:
        raise RecipeError('train.keep: "best" needs validation samples; set data.validation, or keep = "last"')
    with _threads(config.threads):
        run = _Run(model, config, workers)
        path = None if checkpoint is None else Path(checkpoint)
        if resume and path is not None and path.exists():
            run.restore(path, stage)
        batches = math.ceil(len(train) / config.batch_size)
        shown = progress if workers.first else False
        with _progress(shown, config.epochs * batches, len(run.history) * batches) as report:
            for epoch in range(len(run.history) + 1, config.epochs + 1):
                run.epoch(epoch, train, validation, test, augment, report)
                if path is not None and workers.first:
                    header = Header(
                        stage=stage,
                        epoch=epoch,
                        seed=config.seed,
                        train=config.model_dump(mode="json"),
                        recipe=dict(recipe or {}),
                        history=tuple(run.history),
                    )
                    save(
                        path, Checkpoint(header, model.state_dict(), _optimizer_tensors(model, run.optimizer), run.best)
                    )
                if on_epoch is not None and workers.first:
                    on_epoch(tuple(run.history))
        if run.best:
            model.load_state_dict(run.best)
    return History(tuple(run.history))


class _Run:
    """What changes from epoch to epoch: the model, the optimizer, the history and the best weights so far."""

    def __init__(self, model: nn.Module, config: TrainConfig, workers: Workers) -> None:
        if config.rate_epochs and bears_channels_last(model):
            model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.model = model
        self.config = config
        self.workers = workers
        self.optimizer = _optimizer(model, config)
        self.history: list[Epoch] = []
        self.best: dict[str, Tensor] = {}

    def restore(self, path: Path, stage: Stage) -> None:
        self.history, self.best = _restore(path, self.model, self.optimizer, self.config, stage)

    def epoch(
        self,
        number: int,
        train: Split,
        validation: Split | None,
        test: Split | None,
        augment: Augment | None,
        report: Report,
    ) -> None:
        """Train for one epoch, and look at the result."""
        start = time.perf_counter()
        model, config, workers = self.model, self.config, self.workers
        forward = _forward(model, config, number)
        loss, accuracy = _train_epoch(model, forward, self.optimizer, train, config, number, augment, report, workers)
        workers.take_from_the_first(model.buffers())
        at_rates = number <= config.rate_epochs
        how = forward if at_rates else model
        done = Epoch(
            epoch=number,
            loss=loss,
            train_accuracy=accuracy,
            validation_accuracy=None if validation is None else _accuracy(model, how, validation, workers),
            test_accuracy=None if test is None else _accuracy(model, how, test, workers),
            rates=at_rates,
            learning_rate=self.optimizer.param_groups[0]["lr"],
            seconds=time.perf_counter() - start,
            spike_rates={} if at_rates else _spike_rates(model, test if test is not None else train),
        )
        self.history.append(done)
        if config.keep == "best" and best_epoch(self.history) is done:
            self.best = {name: t.detach().clone() for name, t in model.state_dict().items()}


def best_epoch(history: Sequence[Epoch]) -> Epoch:
    """The first epoch of the best validation accuracy; among those with spikes, where there are any."""
    spiking = [e for e in history if not e.rates]
    return max(spiking or history, key=lambda e: (e.validation_accuracy or 0.0, -e.epoch))


def evaluate(model: nn.Module, split: Split) -> float:
    """Accuracy, a fraction, in eval mode."""
    return _accuracy(model, model, split, ALONE)


@torch.no_grad()
def _accuracy(model: nn.Module, forward: Forward, split: Split, workers: Workers) -> float:
    was_training = model.training
    model.eval()
    right, size = 0, _evaluation_batch(model, split)
    starts = range(workers.rank * size, len(split), workers.size * size)
    for start, x in _ahead(split, lambda start: split.values(slice(start, start + size)), starts):
        right += int((forward(_to_model(model, x)).argmax(1).cpu().numpy() == split.y[start : start + size]).sum())
    model.train(was_training)
    return workers.total(right)[0] / len(split)


def _evaluation_batch(model: nn.Module, split: Split) -> int:
    steps = getattr(model, "steps", 1)
    return max(1, min(EVALUATION_BATCH, EVALUATION_VALUES // (steps * math.prod(split.shape))))


def _ahead(split: Split, read: Callable[[_Key], np.ndarray[Any, Any]], keys: Sequence[_Key]) -> Iterator[Any]:
    """Each key with what is read for it; from disk in the background, one ahead, in the same order."""
    if not split.on_disk:
        yield from ((key, read(key)) for key in keys)
        return
    with ThreadPoolExecutor(1) as background:
        coming = [background.submit(read, key) for key in keys[:1]]
        for key, following in zip(keys, [*keys[1:], None], strict=True):
            x = coming.pop().result()
            if following is not None:
                coming.append(background.submit(read, following))
            yield key, x


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
    workers: Workers,
) -> tuple[float, float]:
    """One epoch in place; mean loss and training accuracy."""
    rng = np.random.default_rng([config.seed, epoch])  # shuffling and augmentation
    torch.manual_seed(int(rng.integers(2**63)) + workers.rank)  # dropout
    batches = math.ceil(len(train) / config.batch_size)
    # array_split makes batches of nearly one size, so none is left with a single sample for batch normalization.
    order = np.array_split(rng.permutation(len(train)), batches)
    if not workers.first:
        rng = np.random.default_rng([config.seed, epoch, workers.rank])  # of its own, for the augmentation of its share
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    objective, summed = _objective(model, forward, config), config.loss in ("kernel", "count")
    total, right = 0.0, 0.0
    model.train()
    if config.freeze_norm and epoch > config.rate_epochs:
        for module in model.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                module.eval()
    shares = [workers.share(batch) for batch in order]
    read = _ahead(train, lambda i: train.augmented(shares[i], augment, rng), range(batches))
    for (i, x), batch, chosen in zip(read, order, shares, strict=True):
        rate = learning_rate(config, (epoch - 1) * batches + i, config.epochs * batches)
        for group in optimizer.param_groups:
            group["lr"] = rate
        x = _to_model(model, x)
        y = torch.from_numpy(train.y[chosen]).to(x.device)
        loss, scores = objective(x, y)
        # The shares of the processes add up to the mean over the whole batch, or to the sum.
        if not summed:
            loss = loss * (len(chosen) / len(batch))
        value, hits = workers.total(loss.item(), int((scores.argmax(1) == y).sum()))
        value /= len(batch) if summed else 1
        if not math.isfinite(value):
            raise ExecutionError(f"training diverged in epoch {epoch}: the loss is {value}; lower the learning_rate")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        workers.sum_gradients(parameters)
        if config.gradient_clip is not None:
            nn.utils.clip_grad_norm_(parameters, config.gradient_clip)
        optimizer.step()
        if config.weight_clip is not None:
            with torch.no_grad():
                for p in parameters:
                    p.clamp_(-config.weight_clip, config.weight_clip)
        total += value * len(batch)
        right += hits
        report(1, f"epoch {epoch}/{config.epochs}  loss {value:.3f}")
    return total / len(train), right / len(train)


def _objective(
    model: nn.Module, forward: Forward, config: TrainConfig
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Loss and scores of a batch and its classes."""
    if config.loss == "cross-entropy":

        def cross_entropy(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            scores = forward(x)
            return nn.functional.cross_entropy(scores, y), scores

        return cross_entropy
    if config.rate_epochs or config.backward == "representation":
        raise RecipeError(
            f'train.loss: {config.loss!r} needs the spikes of every step; set rate_epochs = 0, and backward = "auto"'
        )
    output_spikes: Any = getattr(model, "output_spikes", None)
    keep: Any = getattr(model, "output_current_beta", None)
    if output_spikes is None or keep is None:
        raise RecipeError(
            f'train.loss: {config.loss!r} is a loss of spikes behind synapses; use a network of method "tssl-bp" with '
            'readout "rate", or loss "cross-entropy"'
        )
    return lambda x, y: spike_loss(config, output_spikes(x), y, keep)


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
    products = torch.bfloat16 if config.mixed_precision else None
    return partial(representation.scores, model, covariance=config.backward != "approximate", products=products)


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
    return rates(_to_model(model, split.values(slice(_evaluation_batch(model, split))))) if rates is not None else {}


def _optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Parameters with weight decay first; none on the others."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    # Batch normalization, biases and thresholds are scalars or vectors; everything else is weights.
    free = {name for name, p in named if config.decay == "weights" and p.ndim <= 1}
    groups: list[dict[str, Any]] = [
        {"params": [p for name, p in named if name not in free]},
        {"params": [p for name, p in named if name in free], "weight_decay": 0.0},
    ]
    groups = [g for g in groups if g["params"]]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, config.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay)
    return torch.optim.AdamW(groups, config.learning_rate, weight_decay=config.weight_decay)


def _trained(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Names of the trained parameters, in the optimizer's order."""
    names = {p: name for name, p in model.named_parameters()}
    return [names[p] for group in optimizer.param_groups for p in group["params"]]


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    names = _trained(model, optimizer)
    return {
        f"{names[index]}/{key}": value
        for index, state in optimizer.state_dict()["state"].items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def _restore(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, config: TrainConfig, stage: Stage
) -> tuple[list[Epoch], dict[str, Tensor]]:
    """Put a checkpoint's state into model and optimizer; its history and best weights."""
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
    for stored in (found.model, found.best) if found.best else (found.model,):
        for name in shapes.keys() | stored.keys():
            if name not in stored or name not in shapes or tuple(stored[name].shape) != shapes[name]:
                raise FileFormatError(f"{path}: its tensor {name!r} does not fit the network; {other}")
    if len(found.header.history) != found.header.epoch or found.header.epoch > config.epochs:
        raise FileFormatError(f"{path}: its history does not fit its {found.header.epoch} epochs; {other}")
    model.load_state_dict(found.model)

    names = _trained(model, optimizer)
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in found.optimizer.items():
        parameter, _, key = name.rpartition("/")
        if parameter not in names:
            raise FileFormatError(f"{path}: its optimizer state {name!r} does not fit the network; {other}")
        state.setdefault(names.index(parameter), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    device = next(iter(model.state_dict().values())).device
    return list(found.header.history), {name: t.to(device) for name, t in found.best.items()}


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
