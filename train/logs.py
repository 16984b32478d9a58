"""What training leaves for other tools: a CSV table, and TensorBoard event files."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import FileFormatError, UnsupportedError
from ..whole_file import written_whole
from .checkpoint import Epoch

COLUMNS = (
    "epoch",
    "rates",
    "loss",
    "train_accuracy",
    "validation_accuracy",
    "test_accuracy",
    "learning_rate",
    "seconds",
)


def write_csv(path: Path, epochs: Sequence[Epoch]) -> None:
    """A row for each epoch: :data:`COLUMNS`, then the spike rate of every population; written anew as a whole.

    Raises
    ------
    FileFormatError
        If the file cannot be written.
    """
    populations = list(dict.fromkeys(name for epoch in epochs for name in epoch.spike_rates))
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow([*COLUMNS, *(f"rate:{name}" for name in populations)])
    for epoch in epochs:
        row = [getattr(epoch, column) for column in COLUMNS] + [epoch.spike_rates.get(name) for name in populations]
        writer.writerow(["" if value is None else int(value) if isinstance(value, bool) else value for value in row])
    try:
        with written_whole(path) as temporary:
            Path(temporary).write_text(table.getvalue(), encoding="utf-8")
    except OSError as error:
        raise FileFormatError(f"{path}: cannot write the log ({error})") from None


class TrainingLog:
    """Called after every epoch with all epochs so far, writes ``STAGE.csv`` and, on request, TensorBoard events.

    Parameters
    ----------
    folder : Path
    stage : str
        Of the training, such as "float": the name of the table, and of the TensorBoard run in ``tensorboard/``.
    tensorboard : bool

    Raises
    ------
    UnsupportedError
        If the package tensorboard is wanted and not installed.
    """

    def __init__(self, folder: Path, stage: str, *, tensorboard: bool = False) -> None:
        self._table = folder / f"{stage}.csv"
        self._events = folder / "tensorboard" / stage if tensorboard else None
        self._writer: Any = None
        if tensorboard and find_spec("tensorboard") is None:
            raise UnsupportedError("TensorBoard logs need a package: pip install tensorboard")

    def __call__(self, epochs: Sequence[Epoch]) -> None:
        """Log the last one."""
        write_csv(self._table, epochs)
        if self._events is not None:
            self._add_events(epochs[-1])

    def _add_events(self, epoch: Epoch) -> None:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # Of a run that is resumed, what was logged after its last checkpoint is hidden.
            self._writer = SummaryWriter(str(self._events), purge_step=epoch.epoch)
        for name in COLUMNS[2:]:
            value = getattr(epoch, name)
            if value is not None:
                self._writer.add_scalar(name, value, epoch.epoch)
        for name, rate in epoch.spike_rates.items():
            self._writer.add_scalar(f"spike_rate/{name}", rate, epoch.epoch)
        self._writer.flush()
