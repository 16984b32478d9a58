"""Recordings of event cameras, made into frames: one for each time step of a network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...errors import DataError
from ..config import DataConfig, EventsConfig
from .images import classes_in, folder_of
from .split import MAX_BYTES, DataSet, FloatArray, Split, UInt8Array

SENSOR = (34, 34)  # of N-MNIST
RECORD = 5  # bytes of an event in a .bin file
OVERFLOW_ROW = 240  # an "event" of this row says that the clock of the following ones is ahead ...
OVERFLOW = 2**13  # ... by so many more microseconds
MAX_FILE_BYTES = 2**30
LAYOUT = "Train/CLASS/*.bin and Test/CLASS/*.bin"

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Events:
    """Events of one recording, in their order.

    Attributes
    ----------
    x, y : int64 [n]
        Column and row.
    t : int64 [n]
        Microseconds.
    p : int64 [n]
        1 where it became brighter, 0 where darker.
    """

    x: IntArray
    y: IntArray
    t: IntArray
    p: IntArray

    def __len__(self) -> int:
        return len(self.t)


def events(config: DataConfig, steps: int | None = None) -> DataSet:
    """Event recordings in files of 5 bytes an event (N-MNIST): ``Train/CLASS/*.bin`` and ``Test/CLASS/*.bin``.

    Classes are the names of the folders, sorted. A sample is ``steps`` frames ``[polarities, y, x]``.
    """
    folder = folder_of(config, LAYOUT)
    parts = [
        next((folder / name for name in (part, part.lower()) if (folder / name).is_dir()), folder / part)
        for part in ("Train", "Test")
    ]
    labels = classes_in(folder, *parts)
    train, test = (_binned(part, labels, config.events, needed(steps)) for part in parts)
    return DataSet(folder.name, train, test, labels)


def needed(steps: int | None) -> int:
    """The number of frames, for data that cannot do without."""
    if steps is None:
        raise DataError("data of frames need the number of time steps: give load_data(config, steps=...)")
    return steps


def _binned(part: Path, labels: Sequence[str], config: EventsConfig, steps: int) -> Split:
    """One file after the other, so that only frames are in memory."""
    files = [(f, y) for y, label in enumerate(labels) for f in sorted((part / label).glob("*.bin"))]
    if not files:
        raise DataError(f"{part}: has no recordings; put .bin files into its folders")
    x = empty_frames(str(part), steps, len(files), config)
    for i, (file, _) in enumerate(files):
        x[:, i] = frames(read_bin(file), steps, config, str(file))
    return Split(x, np.array([y for _, y in files], np.int64), framed=True)


def empty_frames(where: str, steps: int, samples: int, config: EventsConfig) -> UInt8Array | FloatArray:
    """Room for all frames of a split: counts as uint8, resized frames as float32 ``[steps, samples, P, y, x]``.

    Raises
    ------
    DataError
        If it is too much.
    """
    shape = (steps, samples, config.polarities or 2, *(config.resize or config.size or SENSOR))
    size = math.prod(shape) * (1 if config.resize is None else 4)
    if size > MAX_BYTES:
        raise DataError(
            f"{where}: frames of shape {shape} take {size / 2**30:.1f} GiB, more than {MAX_BYTES >> 30}; "
            "use fewer steps, data.events.resize, or fewer recordings"
        )
    return np.empty(shape, np.uint8) if config.resize is None else np.empty(shape, np.float32)


def read_bin(file: Path) -> Events:
    """A file of 5 bytes an event: x, y, polarity in the top bit of 24, and 23 bits of microseconds, big-endian.

    As in Orchard et al., "Converting static image datasets to spiking neuromorphic datasets using saccades" (2015).

    Raises
    ------
    DataError
        If the file cannot be read, has no events, or is no multiple of 5 bytes; the message names it.
    """
    try:
        size = file.stat().st_size
        if size > MAX_FILE_BYTES:
            raise DataError(f"{file}: is larger than {MAX_FILE_BYTES >> 30} GiB; cut it into recordings")
        raw = np.fromfile(file, np.uint8)
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from None
    if len(raw) % RECORD or len(raw) == 0:
        what = "is empty" if len(raw) == 0 else f"holds {len(raw)} bytes, not a multiple of {RECORD}: it is cut short"
        raise DataError(f"{file}: {what}, or not an event file; fetch it again or delete it")
    column, row, *rest = raw.reshape(-1, RECORD).T.astype(np.int64)
    t = (rest[0] & 127) << 16 | rest[1] << 8 | rest[2]
    marks = row == OVERFLOW_ROW
    if marks.any():
        t += OVERFLOW * np.cumsum(marks)
    kept = ~marks
    return Events(column[kept], row[kept], t[kept], rest[0][kept] >> 7)


def frames(recording: Events, steps: int, config: EventsConfig, where: str) -> UInt8Array | FloatArray:
    """Events of each pixel and polarity, counted in ``steps`` frames.

    Parameters
    ----------
    recording : Events
    steps : int
    config : EventsConfig
        ``bins = "time"``: frame ``floor((t - t_first) steps / window)``; ``"count"``: event ``i`` of ``n`` is in frame
        ``floor(i steps / n)``.
    where : str
        What the events were read from, for messages.

    Returns
    -------
    uint8 [steps, polarities, y, x], or float32 where resized

    Raises
    ------
    DataError
        If an event lies outside the sensor, or there is none.
    """
    if len(recording) == 0:
        raise DataError(f"{where}: has no events; delete it")
    height, width = config.size or SENSOR
    polarities = config.polarities or 2
    outside = np.flatnonzero((recording.x >= width) | (recording.y >= height) | (recording.x < 0) | (recording.y < 0))
    if len(outside):
        i = outside[0]
        raise DataError(
            f"{where}: event {i} is at column {recording.x[i]}, row {recording.y[i]}, outside the {width} x {height} "
            "sensor; set data.events.size, or fetch the file again"
        )
    if config.bins == "count":
        frame = np.arange(len(recording)) * steps // len(recording)
    else:
        since = recording.t - recording.t.min()
        window = int(since.max()) + 1 if config.window is None else config.window
        frame = np.floor(since * (steps / window)).astype(np.int64)
        if config.window is None:
            frame = np.minimum(frame, steps - 1)
    channel = recording.p if polarities == 2 else np.zeros_like(recording.p)
    shape = (steps, polarities, height, width)
    pixel = ((frame * polarities + channel) * height + recording.y) * width + recording.x
    counts = np.bincount(pixel[frame < steps], minlength=math.prod(shape)).reshape(shape)
    clipped = np.minimum(counts, config.most).astype(np.uint8)
    return clipped if config.resize is None else bilinear(clipped, config.resize)


def bilinear(x: npt.NDArray[np.number], size: tuple[int, int]) -> FloatArray:
    """Scale images ``[..., y, x]`` bilinearly, without smoothing before: values at the centres of the new pixels."""
    rows, columns = (_interpolation(old, new) for old, new in zip(x.shape[-2:], size, strict=True))
    return np.matmul(np.matmul(rows, x.astype(np.float32)), columns.T)


def _interpolation(old: int, new: int) -> FloatArray:
    """Weights ``[new, old]`` of linear interpolation along one axis."""
    centre = np.clip((np.arange(new) + 0.5) * (old / new) - 0.5, 0, old - 1)
    below = np.minimum(centre.astype(np.int64), max(old - 2, 0))
    weights = np.zeros((new, old))
    weights[np.arange(new), below] = 1 - (centre - below)
    weights[np.arange(new), np.minimum(below + 1, old - 1)] += centre - below
    return weights.astype(np.float32)
