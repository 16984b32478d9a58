"""The compiled kernels: found when they were built, checked before every call, NumPy where they are absent.

``kernels.c`` gets addresses and sizes only. Everything that keeps it inside its arrays is checked here.
"""

from __future__ import annotations

import math
import os
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import UnsupportedError
from ...network import DECAY_ONE, Population
from .packing import Packed

LEVELS = ("portable", "avx2", "avx512")
CHOICE = "LAPILLI_KERNELS"  # environment: "off", or the best instruction set to use
WIDEST_STATE = 30  # bits: decay(v) + u + b of three such numbers stays within 32 bits
LARGEST_DRIVE = 2**30  # and so does decay(u) + drive


def _load() -> Any:
    try:
        return import_module("._kernels", __package__)
    except ImportError:  # built without a compiler
        return None


_compiled = _load()


def best_level() -> int:
    """The best instruction set of this machine (an index into ``LEVELS``); -1 without compiled kernels.

    Raises
    ------
    UnsupportedError
        If the environment names one that does not exist.
    """
    wish = os.environ.get(CHOICE, "").lower()
    if wish and wish not in ("off", *LEVELS):
        raise UnsupportedError(f"{CHOICE}={wish} is not one of off, {', '.join(LEVELS)}")
    if _compiled is None or wish == "off":
        return -1
    return min(_compiled.level(), LEVELS.index(wish)) if wish else _compiled.level()


level = best_level()  # in use; tests set it


def available() -> bool:
    """Whether compiled kernels are in use."""
    return level >= 0


def level_name() -> str:
    """Name of the instruction set in use, or "numpy"."""
    return LEVELS[level] if available() else "numpy"


def fits(population: Population, largest_drive: int) -> bool:
    """Whether every intermediate result of a population stays within the kernels' 32 bits."""
    return available() and population.state_bits <= WIDEST_STATE and largest_drive <= LARGEST_DRIVE


def event_sums(packed: Packed, x: npt.NDArray[np.uint8], drive: npt.NDArray[np.int32], shift: int, add: bool) -> int:
    """Sum the weights of all events of a block into ``drive``, times ``2^shift``.

    Parameters
    ----------
    packed : Packed
    x : uint8 [t, b, *source]
        Spikes, 0 or 1.
    drive : int32 [t, b, *target]
    shift : int
    add : bool
        Onto what is in ``drive`` already, instead of in its place.

    Returns
    -------
    int
        Number of events.
    """
    steps, samples = x.shape[:2]
    p, g = packed, packed.groups
    _check(x, np.uint8, (steps, samples), g * p.channels * p.pixels_in)
    _check(drive, np.int32, (steps, samples), g * p.targets * p.pixels_out, writes=True)
    assert 0 <= shift <= 30
    if not steps * samples:
        return 0
    events = 0
    to, step, sample = _address(drive), drive.strides[0] // 4, drive.strides[1] // 4
    per_group = p.weight.nbytes // g
    for group in range(g):
        events += _compiled.event_sums(
            level,
            _address(x) + group * p.channels * p.pixels_in,
            *x.strides[:2],
            steps,
            samples,
            p.channels,
            p.pixels_in,
            _address(p.source),
            p.pixels_out,
            p.taps,
            _address(p.weight) + group * per_group,
            p.block,
            p.targets,
            to + 4 * group * p.targets * p.pixels_out,
            step,
            sample,
            shift,
            int(add),
        )
    return events


def neuron_steps(
    population: Population,
    drive: npt.NDArray[np.int32],
    u: npt.NDArray[np.int32] | None,
    v: npt.NDArray[np.int32],
    bias: npt.NDArray[np.int32],
    spikes: npt.NDArray[np.uint8] | None,
    traces: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]] | None,
) -> tuple[int, int]:
    """Take all steps of a block of neurons in place; returns the numbers of wraps and saturations.

    Parameters
    ----------
    population : Population
        For which :func:`fits` holds.
    drive : int32 [t, b, *shape]
        Strides of the first two axes may be anything, 0 for a drive that does not change.
    u : int32 [b, *shape] or None
        None where the current has no memory; not None where there are traces.
    v : int32 [b, *shape]
    bias : int32 [N]
    spikes : uint8 [t, b, *shape] or None
        None with reset "none".
    traces : int64 [t, b, *shape] three times, or None
        Current, ``u`` and ``v``.
    """
    p = population
    steps, samples = drive.shape[:2]
    _check(drive, np.int32, (steps, samples), p.size)
    _check(v, np.int32, (samples,), p.size, writes=True)
    _check(bias, np.int32, (), p.size)
    assert v.strides[0] == 4 * p.size or samples == 1
    if u is not None:
        _check(u, np.int32, (samples,), p.size, writes=True)
        assert u.strides[0] == 4 * p.size or samples == 1
    else:
        assert p.du == DECAY_ONE
        assert traces is None
    if spikes is not None:
        _check(spikes, np.uint8, (steps, samples), p.size, writes=True)
    for trace in traces or ():
        _check(trace, np.int64, (steps, samples), p.size, writes=True)
        assert traces is not None
        assert trace.strides == traces[0].strides
    return _compiled.neuron_steps(
        level,
        _address(drive),
        drive.strides[0] // 4,
        drive.strides[1] // 4,
        0 if u is None else _address(u),
        _address(v),
        _address(bias),
        0 if spikes is None else _address(spikes),
        *(spikes.strides[:2] if spikes is not None else (0, 0)),
        *((_address(t) for t in traces) if traces else (0, 0, 0)),
        *((s // 8 for s in traces[0].strides[:2]) if traces else (0, 0)),
        steps,
        samples,
        p.size,
        DECAY_ONE - p.du,
        DECAY_ONE - p.dv,
        p.threshold if p.spikes else 2**31 - 1,  # a readout never fires
        -1 if p.reset == "zero" else 0,
        p.reset_amount,
        2 ** (p.state_bits - 1),
    )


def _address(a: npt.NDArray[Any]) -> int:
    return a.__array_interface__["data"][0]


def _check(a: npt.NDArray[Any], dtype: Any, lead: tuple[int, ...], size: int, writes: bool = False) -> None:
    """Refuse an array that a kernel would step out of: [*lead, ...] with ``size`` values side by side in the rest."""
    rest = a[(0,) * len(lead)] if a.size else a
    assert a.dtype == dtype, f"kernel: {a.dtype} for {np.dtype(dtype)}"
    assert a.shape[: len(lead)] == lead, f"kernel: {a.shape} for {lead}"
    assert a.size == size * math.prod(lead), f"kernel: {a.shape} for {size} values"
    assert rest.flags.c_contiguous
    assert all(s % a.itemsize == 0 for s in a.strides)
    assert not writes or a.flags.writeable
