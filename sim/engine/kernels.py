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

LEVELS = ("portable", "avx2", "avx512", "avx512vbmi2")
CHOICE = "LAPILLI_KERNELS"  # environment: "off", or the best instruction set to use
WIDEST_STATE = 30  # bits: decay(v) + u + b of three such numbers stays within 32 bits
LARGEST_DRIVE = 2**30  # and so does decay(u) + drive

PATHS = ("auto", "events", "products")  # of synapse sums; all give the same bits
# Density of the source from which on a product of all inputs beats the sum over events, measured: for blocks of 64
# targets, and of more. Without VNNI's multiply-and-add the events always win.
PRODUCTS_FROM = {"avx512": (0.40, 0.52), "avx512vbmi2": (0.40, 0.52)}


INTERFACE = 6  # of kernels.c, as it was when it was built


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
    """Whether every intermediate result of a population stays within the kernels' 32 bits, and it fires 0 or 1."""
    narrow = population.state_bits <= WIDEST_STATE and largest_drive <= LARGEST_DRIVE
    return available() and narrow and not population.graded


class Arriving(NamedTuple):
    """Spikes of one connection for a block of steps and samples, or a plane of bytes of its numbers (``graded.py``).

    Attributes
    ----------
    packed : Packed
    x : uint8 [t - silent, b, *source]
        Spikes where it is not 0, or bytes; strides of the first two axes may be anything.
    silent : int
        Steps of the block before the first spike can arrive.
    shift : int
        Every weight counts ``2^shift``.
    zero : int or None
        The byte that stands for 0; None for spikes.
    offset : int32 [blocks, 1, block] or None
        Added to the sum of every target, before the shift.
    """

    packed: Packed
    x: npt.NDArray[np.uint8]
    silent: int
    shift: int
    zero: int | None = None
    offset: npt.NDArray[np.int32] | None = None


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
    extra : int32 [t, b, *layout.shape] or None
        What arrives besides, ``2^f`` included; strides of the first two axes may be anything.
    u : int32 [b, *layout.shape] or None
        Changed in place. None where the current has no memory; not None where there are traces.
    v : int32 [b, *layout.shape]
        Changed in place.
    bias : int32 [blocks, 1, lanes] or [*layout.shape]
    spikes : uint8 [t, b, *shape] or None
        Filled in. None with reset "none".
    traces : int64 [t, b, *shape] three times, or None
        Filled in: current, ``u`` and ``v``.
    part : Part, optional
        All neurons unless given.
    may_wrap : bool
        False where the current is known to stay within the state's width.
    forced : str, optional
        Of ``PATHS``; :data:`path` unless given.
    """
    p, at = population, layout
    steps, samples = window
    size, per_block, in_rows = math.prod(at.shape), at.blocks * at.lanes, at.blocks * at.block
    assert at.targets * at.pixels == p.size
    extra_at = _place(extra, _INT32, size, window)
    u_at, v_at = (_place(state, _INT32, size, (samples,), writes=True) for state in (u, v))
    assert all(state is None or stride == size or samples == 1 for state, (_, stride, _) in ((u, u_at), (v, v_at)))
    assert u is not None or (p.du == DECAY_ONE and traces is None)
    per_pixel = bias.shape != (at.blocks, 1, at.lanes)
    bias_at, *_ = _place(bias, _INT32, size if per_pixel else per_block)
    spikes_at = _place(spikes, _UINT8, p.size, window, writes=True)
    traces_at = [_place(trace, _INT64, p.size, window, writes=True) for trace in traces or (None, None, None)]
    assert all(place[1:] == traces_at[0][1:] for place in traces_at)
    pixels, blocks = part or ((0, at.pixels), (0, at.blocks))
    assert 0 <= pixels[0] <= pixels[1] <= at.pixels
    assert 0 <= blocks[0] <= blocks[1] <= at.blocks
    sources: list[int] = []
    for packed, x, silent, shift, zero, offset in arriving:
        assert 0 <= silent <= steps
        assert 0 <= shift <= 31
        sources += _place(x, _UINT8, packed.channels * packed.pixels_in, (steps - silent, samples))
        under_at, *_ = _place(packed.under, _INT32, packed.taps, (at.pixels,))
        sources += [silent, packed.channels, packed.pixels_in, under_at, packed.taps]
        rows = packed.taps * packed.channels
        if isinstance(packed, Fans):
            fan = packed.weight.shape[2]
            sources += [_place(packed.weight, _INT8, rows * fan)[0], shift]
            sources += [_place(packed.to, _INT32, packed.channels)[0], fan, 0, 0]
        else:
            quads = -(-packed.channels // 4)
            sources += [_place(packed.weight, _UINT8, rows * in_rows)[0], shift, 0, 0]
            sources += [_place(packed.factors, _INT8, packed.taps * quads * 4 * in_rows)[0]]
            sources += [products_from(packed, at, forced or path)]
        sources += [int(zero is not None), zero or 0, _place(offset, _INT32, in_rows)[0]]
    values = (
        *extra_at,
        u_at[0],
        v_at[0],
        bias_at,
        int(per_pixel),
        *spikes_at,
        *(address for address, *_ in traces_at),
        *traces_at[0][1:],
        steps,
        samples,
        at.pixels,
        at.targets,
        at.block,
        at.lanes,
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


def sums_of(layout: Layout, arriving: Sequence[Arriving], batch: int) -> npt.NDArray[np.int32]:
    """What arrives in one step, alone: int32 [1, batch, *layout.shape]."""
    sums = np.zeros((1, batch, *layout.shape), np.int32)
    keeps = Population(name="sums", shape=(layout.targets * layout.pixels,), reset="none", state_bits=32)
    no_bias = np.zeros((layout.blocks, 1, layout.lanes), np.int32)
    run([prepare(keeps, layout, (1, batch), arriving, None, None, sums[0], no_bias, None, None, may_wrap=False)])
    return sums


_UINT8, _INT8, _INT32, _INT64 = ("u", 1), ("i", 1), ("i", 4), ("i", 8)


def _place(
    a: npt.NDArray[Any] | None, of: tuple[str, int], size: int, lead: tuple[int, ...] = (), writes: bool = False
) -> tuple[int, int, int]:
    """Address of an array [*lead, ...] with ``size`` values side by side in the rest, and the strides of ``lead``.

    Zeros for None. An array that a kernel would step out of is refused with an AssertionError.
    """
    return (0, 0, 0) if a is None else _compiled.place(a, *of, size, writes, *lead)
