"""The compiled kernels: found when they were built, checked before every call, NumPy where they are absent.

``kernels.c`` gets addresses and sizes only. Everything that keeps it inside its arrays is checked here.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ...errors import UnsupportedError
from ...network import DECAY_ONE, Population
from .packing import LANES, Fans, Layout, Packed, Rows

LEVELS = ("portable", "avx2", "avx512")
CHOICE = "LAPILLI_KERNELS"  # environment: "off", or the best instruction set to use
WIDEST_STATE = 30  # bits: decay(v) + u + b of three such numbers stays within 32 bits
LARGEST_DRIVE = 2**30  # and so does decay(u) + drive

PATHS = ("auto", "events", "products")  # of synapse sums; all give the same bits
# Density of the source from which on a product of all inputs beats the sum over events, measured: for blocks of 64
# targets, and of more. Without VNNI's multiply-and-add the events always win.
PRODUCTS_FROM = {"avx512": (0.40, 0.52)}


INTERFACE = 4  # of kernels.c, as it was when it was built


def _load() -> Any:
    try:
        compiled = import_module("._kernels", __package__)
    except ImportError:  # built without a compiler
        return None
    if getattr(compiled, "INTERFACE", 1) == INTERFACE:
        return compiled
    warnings.warn(
        "lapilli's compiled kernels are older than its Python code, so it computes with NumPy; install it again",
        stacklevel=2,
    )
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
path = "auto"  # chosen per image; tests force one


def available() -> bool:
    """Whether compiled kernels are in use."""
    return level >= 0


def level_name() -> str:
    """Name of the instruction set in use, or "numpy"."""
    return LEVELS[level] if available() else "numpy"


def fits(population: Population, largest_drive: int) -> bool:
    """Whether every intermediate result of a population stays within the kernels' 32 bits."""
    return available() and population.state_bits <= WIDEST_STATE and largest_drive <= LARGEST_DRIVE


class Arriving(NamedTuple):
    """Spikes of one connection for a block of steps and samples.

    Attributes
    ----------
    packed : Packed
    x : uint8 [t - silent, b, *source]
        0 or 1; strides of the first two axes may be anything.
    silent : int
        Steps of the block before the first spike can arrive.
    shift : int
        Every weight counts ``2^shift``.
    """

    packed: Packed
    x: npt.NDArray[np.uint8]
    silent: int
    shift: int


class Part(NamedTuple):
    """Which neurons of a layout to work off: a range of its pixels and a range of its blocks."""

    pixels: tuple[int, int]
    blocks: tuple[int, int]


class Done(NamedTuple):
    """What a call counted."""

    wraps: int
    saturations: int
    products: int  # images of all connections that were summed as products, not by events
    nanoseconds: int  # of one layer among several; 0 where it ran alone


class Prepared(NamedTuple):
    """A block of neurons whose arguments have been checked, ready to run.

    Attributes
    ----------
    window : (int, int)
        Steps and samples.
    values : tuple of int
        What ``kernels.c`` takes: addresses, sizes, strides.
    arrays : sequence
        Those that the addresses point into, kept alive.
    """

    window: tuple[int, int]
    values: tuple[int, ...]
    arrays: Sequence[object]


def products_from(packed: Rows, layout: Layout, path: str) -> int:
    """Events of an image from which on it is summed as a product."""
    if path != "auto":
        return 0 if path == "products" else 2**62
    limits = PRODUCTS_FROM.get(LEVELS[level])
    if limits is None:
        return 2**62
    return math.ceil(limits[layout.block > LANES] * packed.channels * packed.pixels_in)


def prepare(
    population: Population,
    layout: Layout,
    window: tuple[int, int],
    arriving: Sequence[Arriving],
    extra: npt.NDArray[np.int32] | None,
    u: npt.NDArray[np.int32] | None,
    v: npt.NDArray[np.int32],
    bias: npt.NDArray[np.int32],
    spikes: npt.NDArray[np.uint8] | None,
    traces: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]] | None,
    part: Part | None = None,
    may_wrap: bool = True,
    forced: str | None = None,
) -> Prepared:
    """Make a block of neurons, synapse sums included, ready for :func:`run`.

    Parameters
    ----------
    population : Population
        For which :func:`fits` holds.
    layout : Layout
    window : (int, int)
        Steps ``t`` and samples ``b``.
    arriving : sequence of Arriving
    extra : int32 [t, b, *shape] or None
        What arrives besides, ``2^f`` included; strides of the first two axes may be anything.
    u : int32 [b, *layout.shape] or None
        Changed in place. None where the current has no memory; not None where there are traces.
    v : int32 [b, *layout.shape]
        Changed in place.
    bias : int32 [blocks, 1, block] or [*layout.shape]
    spikes : uint8 [t, b, *shape] or None
        Filled in. None with reset "none".
    traces : int64 [t, b, *shape] three times, or None
        Filled in: current, ``u`` and ``v``.
    part : Part, optional
        All neurons unless given.
    may_wrap : bool
        False where the sum over all that arrives is known to stay within the state's width.
    forced : str, optional
        Of ``PATHS``; :data:`path` unless given.
    """
    p, at = population, layout
    steps, samples = window
    assert at.targets * at.pixels == p.size
    if extra is not None:
        _check(extra, np.int32, window, p.size)
    for state in (v,) if u is None else (u, v):
        _check(state, np.int32, (samples,), math.prod(at.shape), writes=True)
        assert state.strides[0] == 4 * math.prod(at.shape) or samples == 1
    assert u is not None or (p.du == DECAY_ONE and traces is None)
    per_pixel = bias.shape != (at.blocks, 1, at.block)
    _check(bias, np.int32, (), math.prod(at.shape) if per_pixel else at.blocks * at.block)
    if spikes is not None:
        _check(spikes, np.uint8, window, p.size, writes=True)
    for trace in traces or ():
        _check(trace, np.int64, window, p.size, writes=True)
        assert traces is not None
        assert trace.strides == traces[0].strides
    pixels, blocks = part or ((0, at.pixels), (0, at.blocks))
    assert 0 <= pixels[0] <= pixels[1] <= at.pixels
    assert 0 <= blocks[0] <= blocks[1] <= at.blocks
    sources: list[int] = []
    for packed, x, silent, shift in arriving:
        assert 0 <= silent <= steps
        assert 0 <= shift <= 30
        _check(x, np.uint8, (steps - silent, samples), packed.channels * packed.pixels_in)
        assert packed.under.shape == (at.pixels, packed.taps)
        fans = isinstance(packed, Fans)
        if not fans:
            assert packed.weight.shape == (at.blocks, packed.taps * packed.channels, at.block)
            assert packed.factors.shape == (at.blocks, packed.taps, -(-packed.channels // 4), at.block, 4)
        sources += [_address(x), *x.strides[:2], silent, packed.channels, packed.pixels_in, _address(packed.under)]
        sources += [packed.taps, _address(packed.weight), shift]
        if fans:
            sources += [_address(packed.to), packed.weight.shape[2], 0, 0]
        else:
            sources += [0, 0, _address(packed.factors), products_from(packed, at, forced or path)]
    values = (
        0 if extra is None else _address(extra),
        *((s // 4 for s in extra.strides[:2]) if extra is not None else (0, 0)),
        0 if u is None else _address(u),
        _address(v),
        _address(bias),
        int(per_pixel),
        0 if spikes is None else _address(spikes),
        *(spikes.strides[:2] if spikes is not None else (0, 0)),
        *((_address(t) for t in traces) if traces else (0, 0, 0)),
        *((s // 8 for s in traces[0].strides[:2]) if traces else (0, 0)),
        steps,
        samples,
        at.pixels,
        at.targets,
        at.block,
        *pixels,
        *blocks,
        DECAY_ONE - p.du,
        DECAY_ONE - p.dv,
        p.threshold if p.spikes else 2**31 - 1,  # a readout never fires
        -1 if p.reset == "zero" else 0,
        p.reset_amount,
        2 ** (p.state_bits - 1),
        int(may_wrap),
        *sources,
    )
    return Prepared(window, values, (extra, u, v, bias, spikes, traces, arriving))


def run(layers: Sequence[Prepared], stride: int | None = None) -> list[Done]:
    """Take all steps of the layers in turns, ``stride`` steps of each one at a time; what each of them counted.

    ``stride`` (all steps unless given) must not exceed the delay of a connection from a layer to itself or to one
    before it: then the turns so far have written every spike that a turn reads.
    """
    steps, samples = layers[0].window
    assert all(layer.window == (steps, samples) for layer in layers)
    assert stride is None or stride > 0
    if not steps * samples:
        return [Done(0, 0, 0, 0)] * len(layers)
    together = min(stride or steps, steps)
    return [Done(*each) for each in _compiled.layer_steps(level, together, *(layer.values for layer in layers))]


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
