"""Checkpoints: one safetensors file with the model, the optimizer and, as JSON in its metadata, everything else.

Nothing is ever unpickled, and a file is replaced as a whole or not at all: a kill at any moment leaves the last
complete checkpoint.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .. import __version__
from ..errors import FileFormatError
from ..whole_file import written_whole

FORMAT_VERSION = 1
METADATA_KEY = "lapilli.checkpoint"
Stage: TypeAlias = Literal["relu", "float", "bit-true"]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Epoch(_Record):
    """What one pass over the training data gave."""

    epoch: int = Field(ge=1, description="counted from 1")
    loss: float = Field(description="mean cross-entropy over the training samples")
    train_accuracy: float = Field(description="fraction, while training (before the last updates)")
    validation_accuracy: float | None = Field(None, description="fraction after the epoch, on validation samples")
    test_accuracy: float | None = Field(None, description="fraction after the epoch, where a test split was given")
    rates: bool = Field(False, description="trained and tested at the level of rates, without spikes")
    learning_rate: float = Field(description="of the last iteration")
    seconds: float
    spike_rates: dict[str, float] = Field({}, description="spikes per neuron and step by population, on test samples")


class Header(_Record):
    """The JSON of a checkpoint."""

    format_version: int = FORMAT_VERSION
    stage: Stage
    epoch: int = Field(ge=0, description="epochs finished")
    seed: int
    train: dict[str, Any] = Field(description="the training configuration")
    recipe: dict[str, Any] = Field({}, description="the whole recipe, as the caller gave it")
    history: tuple[Epoch, ...] = ()
    versions: dict[str, str] = Field(
        default_factory=lambda: {
            "lapilli": __version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        }
    )


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A training run after some epoch.

    Attributes
    ----------
    header : Header
    model : dict of Tensor
        The module's ``state_dict``.
    optimizer : dict of Tensor
        State by ``"<parameter name>/<key>"``.
    best : dict of Tensor
        The ``state_dict`` of the best epoch so far, where training keeps that one.
    """

    header: Header
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    best: dict[str, Tensor] = field(default_factory=dict)

    @property
    def kept(self) -> dict[str, Tensor]:
        """What training has to show: the best weights where it keeps them, else the last ones."""
        return self.best or self.model


def save(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint; the file at ``path`` is replaced in one step.

    Raises
    ------
    FileFormatError
        If the file cannot be written.
    """
    path = Path(path)
    tensors = {f"model.{name}": t for name, t in checkpoint.model.items()}
    tensors |= {f"optimizer.{name}": t for name, t in checkpoint.optimizer.items()}
    tensors |= {f"best.{name}": t for name, t in checkpoint.best.items()}
    # clone: safetensors refuses tensors that share memory, and a module may hold such.
    tensors = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as temporary:
            save_file(tensors, temporary, metadata={METADATA_KEY: checkpoint.header.model_dump_json()})
    except (OSError, SafetensorError) as error:
        raise FileFormatError(f"{path}: cannot write the checkpoint ({error})") from None


def load(path: str | Path) -> Checkpoint:
    """Read a checkpoint that :func:`save` wrote.

    Raises
    ------
    FileFormatError
        If the file is absent, truncated, foreign or of another version.
    """
    path = Path(path)
    if not path.is_file():
        raise FileFormatError(f"{path}: no such checkpoint; train first")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
            if text is None:
                raise FileFormatError(f"{path}: a safetensors file, but not a lapilli checkpoint")
            header = _header(path, text)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise FileFormatError(f"{path}: truncated, or not a checkpoint ({error}); train again") from None
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "best": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        if part not in parts:
            raise FileFormatError(f"{path}: unknown tensor {name!r}")
        parts[part][rest] = tensor
    return Checkpoint(header, **parts)


def _header(path: Path, text: str) -> Header:
    try:
        header = Header.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(p) for p in first["loc"])
        raise FileFormatError(f"{path}: its metadata is malformed at {place or 'the top'}: {first['msg']}") from None
    if header.format_version != FORMAT_VERSION:
        raise FileFormatError(
            f"{path}: checkpoint version {header.format_version}; this lapilli reads version {FORMAT_VERSION}"
        )
    return header
