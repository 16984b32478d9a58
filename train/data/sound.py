"""Recordings of sound, made into spectrograms: an image, or a series with one moment for each time step."""

from __future__ import annotations

import math
import re
import wave
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...errors import DataError
from ..config import DataConfig, SoundConfig
from .images import check_size, classes_in, folder_of
from .split import DataSet, FloatArray, Split

LAYOUT = "CLASS_SPEAKER_NUMBER.wav, or train/CLASS/*.wav and test/CLASS/*.wav"
MAX_FILE_BYTES = 2**28  # half an hour at 48 kHz, 24 bits
_NAME = re.compile(r"(?P<label>[^_]+)_(?P<speaker>.+)_(?P<number>\d+)\.wav", re.IGNORECASE)

Wave = npt.NDArray[np.float64]


def wav(config: DataConfig, steps: int | None = None) -> DataSet:
    """WAV files in one folder, ``CLASS_SPEAKER_NUMBER.wav`` (FSDD), or ``train/CLASS/*.wav`` and ``test/CLASS/*.wav``.

    Of files in one folder, those with a number below ``test_below``, or those of ``test_speakers``, are the test set.
    """
    folder, sound = folder_of(config, LAYOUT), config.sound
    if (folder / "train").is_dir():
        labels = classes_in(folder, folder / "train", folder / "test")
        parts = {
            part: [(f, label) for label in labels for f in sorted((folder / part / label).glob("*.wav"))]
            for part in ("train", "test")
        }
    else:
        parts = _by_name(folder, sound)
        labels = tuple(sorted({label for files in parts.values() for _, label in files}))
    columns = sound.columns
    if sound.form == "series":
        if steps is None:
            raise DataError("a series of sound needs the number of time steps: give load_data(config, steps=...)")
        columns = steps
    for part, files in parts.items():
        if not files:
            raise DataError(
                f"{folder}: has no recordings for {'training' if part == 'train' else 'the test'}; put {LAYOUT} there, "
                "and see data.sound.test_below and test_speakers"
            )
    train, test = (_read_all(folder, parts[part], labels, sound, columns) for part in ("train", "test"))
    return DataSet(folder.name, train, test, labels)


def _by_name(folder: Path, sound: SoundConfig) -> dict[str, list[tuple[Path, str]]]:
    """Files and classes of both parts."""
    parts: dict[str, list[tuple[Path, str]]] = {"train": [], "test": []}
    speakers = set()
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() != ".wav":
            continue
        named = _NAME.fullmatch(file.name)
        if named is None:
            raise DataError(f"{file}: is not named CLASS_SPEAKER_NUMBER.wav; rename it, or put {LAYOUT}")
        speakers.add(named["speaker"])
        number = int(named["number"])
        is_test = named["speaker"] in sound.test_speakers if sound.test_speakers else number < sound.test_below
        parts["test" if is_test else "train"].append((file, named["label"]))
    absent = sorted(set(sound.test_speakers) - speakers)
    if absent:
        raise DataError(
            f"data.sound.test_speakers: {folder} has no speaker {absent[0]!r}; it has {', '.join(sorted(speakers))}"
        )
    return parts


def _read_all(
    folder: Path, files: list[tuple[Path, str]], labels: tuple[str, ...], sound: SoundConfig, columns: int
) -> Split:
    """One file after the other, so that only spectrograms are in memory."""
    check_size(folder, len(files), (columns, sound.bands))
    x = np.empty((columns, len(files), sound.bands), np.float32)
    for i, (file, _) in enumerate(files):
        samples, rate = read_wav(file)
        if sound.high > rate / 2:
            raise DataError(
                f"{file}: {rate} samples a second hold frequencies up to {rate / 2:g} Hz; set data.sound.high, "
                f"which is {sound.high:g}, to that or less"
            )
        x[:, i] = spectrogram(samples, rate, columns, sound)
    y = np.array([labels.index(label) for _, label in files], np.int64)
    if sound.form == "series":
        return Split(x, y, framed=True)
    return Split(np.ascontiguousarray(x.transpose(1, 2, 0)[:, None]), y)


def read_wav(file: Path) -> tuple[Wave, int]:
    """Samples in -1..1, the mean of all channels, and the sample rate.

    Raises
    ------
    DataError
        If the file is no WAV file of integer samples (PCM), is empty or cut short; the message names it.
    """
    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            raise DataError(f"{file}: is larger than {MAX_FILE_BYTES >> 20} MiB; cut it into recordings")
        with wave.open(str(file), "rb") as opened:
            channels, width, rate, frames = opened.getparams()[:4]
            raw = np.frombuffer(opened.readframes(frames), np.uint8)
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from None
    except (wave.Error, EOFError) as error:
        reason = str(error) or "it ends too early"
        raise DataError(f"{file}: not a WAV file of integer samples ({reason}); save it as PCM") from None
    if frames == 0 or rate == 0 or len(raw) != frames * channels * width:
        found = len(raw) // (channels * width)
        raise DataError(
            f"{file}: holds {found} of {frames} samples at {rate} Hz: it is empty or cut short; fetch it again"
        )
    # Little-endian, with a sign but for 8 bits: the bytes become the upper ones of 32 bits.
    filled = np.zeros((frames * channels, 4), np.uint8)
    filled[:, 4 - width :] = raw.reshape(-1, width)
    if width == 1:
        filled[:, 3] ^= 128
    return filled.view("<i4").reshape(frames, channels).mean(1) / 2**31, rate


def spectrogram(x: Wave, rate: int, columns: int, sound: SoundConfig) -> FloatArray:
    """Loudness of frequency bands at ``columns`` moments, evenly spread over the recording.

    Parameters
    ----------
    x : float64 [n]
    rate : int
        Samples a second.
    columns : int
    sound : SoundConfig

    Returns
    -------
    float32 [columns, bands]
        In decibels, so that 1 is the loudest value and 0 is ``sound.decibels`` below it, or softer.
    """
    if sound.duration is not None:
        length = max(1, round(sound.duration * rate))
        x = np.pad(x[:length], (0, max(0, length - len(x))))
    size = max(2, round(sound.window * rate), math.ceil(2 * len(x) / columns))
    x = np.pad(x, (0, max(0, size - len(x))))
    starts = np.linspace(0, len(x) - size, columns).round().astype(np.int64)
    fft_size = 2 ** math.ceil(math.log2(size) + 1)  # at least twice as long: bands are narrow at low frequencies
    windows = x[starts[:, None] + np.arange(size)] * np.hanning(size)
    power = np.abs(np.fft.rfft(windows, fft_size)) ** 2
    loudness = power @ _FRONT_ENDS[sound.front_end](rate, fft_size, sound.bands, sound.low, sound.high).T
    with np.errstate(divide="ignore", invalid="ignore"):
        below = 10 * np.log10(loudness / loudness.max())
    return np.nan_to_num(np.clip(1 + below / sound.decibels, 0, 1)).astype(np.float32)


@lru_cache(maxsize=256)
def mel_bands(rate: int, fft_size: int, bands: int, low: float, high: float) -> Wave:
    """Triangles of equal width and distance on the mel scale ``2595 log10(1 + f/700)``: ``[bands, fft_size/2 + 1]``."""
    frequencies = np.fft.rfftfreq(fft_size, 1 / rate)
    mels = np.linspace(2595 * np.log10(1 + low / 700), 2595 * np.log10(1 + high / 700), bands + 2)
    edges = 700 * (10 ** (mels / 2595) - 1)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    rising = (frequencies - left[:, None]) / (centre - left)[:, None]
    falling = (right[:, None] - frequencies) / (right - centre)[:, None]
    return _checked(np.clip(np.minimum(rising, falling), 0, None))


@lru_cache(maxsize=256)
def gammatone_bands(rate: int, fft_size: int, bands: int, low: float, high: float) -> Wave:
    """Power responses of gammatone filters of order 4, as wide as the ear's, evenly spread on its ERB scale.

    Widths and scale are those of Glasberg and Moore (1990): ``ERB = 24.7 (4.37 f/1000 + 1)`` Hz and
    ``21.4 log10(4.37 f/1000 + 1)``; the response is ``(1 + ((f - f_c) / 1.019 ERB)^2)^-4``.
    ``[bands, fft_size/2 + 1]``.
    """
    frequencies = np.fft.rfftfreq(fft_size, 1 / rate)
    scale = np.linspace(np.log10(1 + 0.00437 * low), np.log10(1 + 0.00437 * high), bands)
    centre = (10**scale - 1) / 0.00437
    width = 1.019 * 24.7 * (0.00437 * centre + 1)
    return _checked((1 + ((frequencies - centre[:, None]) / width[:, None]) ** 2) ** -4.0)


def _checked(weights: Wave) -> Wave:
    empty = np.flatnonzero(weights.sum(1) <= 0)
    if len(empty):
        raise DataError(
            f"data.sound.bands: band {empty[0]} of {len(weights)} is too narrow for the window; use fewer bands or a "
            "longer window"
        )
    return weights


_FRONT_ENDS: dict[str, Callable[[int, int, int, float, float], Wave]] = {
    "mel": mel_bands,
    "gammatone": gammatone_bands,
}
