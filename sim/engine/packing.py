"""How a population and its synapses lie in memory for the compiled kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ...network import Conv2d, Dense, Population, Scale, Shape, Synapse

LANES = 64  # weights of a row come in groups of 64 bytes, as kernels.c expects
VECTOR = 16  # neurons: the widest vector of 32-bit integers
CACHE = 640 * 1024  # bytes of weights that stay in a core's second-level cache beside the spikes
LARGEST_BLOCK = 256  # targets: more gain nothing, and two threads can share a layer of 512
MAX_ROWS = 2**31  # bytes: offsets of rows have 32 bits


@dataclass(frozen=True)
class Layout:
    """Where the neurons of a population lie: targets x pixels, cut into blocks of targets.

    Attributes
    ----------
    targets, pixels : int
        Channels and pixels, or all neurons and 1 where nothing arrives by a convolution.
    block : int
        Targets that are worked off together; the last block is filled up with neurons that never spike.
    """

    targets: int
    pixels: int
    block: int

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return -(-self.targets // self.block)

    @property
    def lanes(self) -> int:
        """Neurons of a block that have a state: whole vectors of them, where there is only one block."""
        return self.block if self.blocks > 1 else -(-self.targets // VECTOR) * VECTOR

    @property
    def shape(self) -> Shape:
        """Of an array with one value per neuron: (blocks, pixels, lanes)."""
        return (self.blocks, self.pixels, self.lanes)

    def arrange(self, values: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
        """[..., targets, n] to int32 [..., blocks, n, lanes]."""
        *lead, _, n = values.shape
        padded = np.zeros((*lead, self.blocks * self.lanes, n), np.int32)
        padded[..., : self.targets, :] = values
        return np.ascontiguousarray(padded.reshape(*lead, self.blocks, self.lanes, n).swapaxes(-1, -2))

    def restore(self, values: npt.NDArray[np.int32], shape: Shape) -> npt.NDArray[np.int64]:
        """[B, *self.shape] to int64 [B, *shape]."""
        by_target = values.transpose(0, 1, 3, 2).reshape(len(values), -1, self.pixels)[:, : self.targets]
        return by_target.reshape(len(values), *shape).astype(np.int64)


@dataclass(frozen=True)
class Rows:
    """A synapse as rows of weights: one row per (tap, input channel), added up for every event.

    Attributes
    ----------
    channels, pixels_in, taps : int
        Of a dense synapse: all source neurons, 1 and 1.
    under : int32 [pixels, taps]
        Input pixel under each tap, ``pixels_in`` in the padding.
    weight : uint8 [blocks, taps x channels, block]
        Weight + 128. A row is cut into groups of 64 targets; of these, target ``i`` is byte ``2 i`` and target
        ``32 + i`` byte ``2 i + 1``: the halves of one 16-bit lane.
    factors : int8 [blocks, taps, quads, block, 4]
        The same weights for products of all inputs, four channels at a time.
    """

    channels: int
    pixels_in: int
    taps: int
    under: npt.NDArray[np.int32]
    weight: npt.NDArray[np.uint8]
    factors: npt.NDArray[np.int8]


@dataclass(frozen=True)
class Fans:
    """A synapse in which a channel reaches few targets: one-to-one, depthwise, groups.

    Attributes
    ----------
    channels, pixels_in, taps, under
        As in :class:`Rows`.
    to : int32 [channels]
        First target of each channel.
    weight : int8 [taps, channels, fan]
        Of the targets from there on.
    """

    channels: int
    pixels_in: int
    taps: int
    under: npt.NDArray[np.int32]
    to: npt.NDArray[np.int32]
    weight: npt.NDArray[np.int8]


Packed: TypeAlias = Rows | Fans


def lay_out(population: Population, synapses: list[Synapse]) -> Layout:
    """Layout of a population at which these synapses arrive."""
    convolutions = [s for s in synapses if isinstance(s, Conv2d)]
    targets = population.shape[0] if convolutions else population.size
    rows = [s for s in convolutions if s.groups == 1] or [s for s in synapses if isinstance(s, Dense)]
    return Layout(targets, population.size // targets, _block(targets, sum(s.weight[0].size for s in rows)))


def pack(synapse: Synapse, source: Shape, target: Shape, layout: Layout) -> Packed | None:
    """Lay out a synapse; None where NumPy has to do: too large, or dense where neurons lie by pixels, or not."""
    size = int(np.prod(source))
    if isinstance(synapse, Dense):
        if layout.pixels > 1:
            return None
        return _rows(synapse.weight[:, :, None], np.zeros((1, 1), np.int32), 1, layout)
    if isinstance(synapse, Scale):
        channels = layout.targets
        weight = np.repeat(np.broadcast_to(synapse.weight, source[:1]), size // source[0])
        every = np.arange(layout.pixels, dtype=np.int32)[:, None]
        to = np.arange(channels, dtype=np.int32)
        return Fans(channels, layout.pixels, 1, every, to, weight[:: layout.pixels].reshape(1, channels, 1).copy())
    if layout.pixels != target[1] * target[2]:
        return None
    under, pixels_in = under_each_tap(synapse, source, target), source[1] * source[2]
    c_out, c_in, k_y, k_x = synapse.weight.shape
    if synapse.groups == 1:
        return _rows(synapse.weight.reshape(c_out, c_in, k_y * k_x), under, pixels_in, layout)
    fan = c_out // synapse.groups
    weight = synapse.weight.reshape(synapse.groups, fan, c_in, k_y * k_x).transpose(3, 0, 2, 1)
    to = np.repeat(np.arange(synapse.groups, dtype=np.int32) * fan, c_in)
    weight = np.ascontiguousarray(weight.reshape(k_y * k_x, source[0], fan))
    return Fans(source[0], pixels_in, k_y * k_x, under, to, weight)


def under_each_tap(synapse: Conv2d, source: Shape, target: Shape) -> npt.NDArray[np.int32]:
    """Input pixel under each tap at each output pixel: int32 [Y_out X_out, K_y K_x], ``Y X`` in the padding."""
    (py, px), (sy, sx), (dy, dx) = synapse.padding, synapse.stride, synapse.dilation
    _, _, k_y, k_x = synapse.weight.shape
    y = np.arange(target[1])[:, None] * sy + np.arange(k_y) * dy - py
    x = np.arange(target[2])[:, None] * sx + np.arange(k_x) * dx - px
    y, x = y[:, None, :, None], x[None, :, None, :]
    inside = (y >= 0) & (y < source[1]) & (x >= 0) & (x < source[2])
    return np.where(inside, y * source[2] + x, source[1] * source[2]).reshape(-1, k_y * k_x).astype(np.int32)


def _rows(weight: npt.NDArray[np.int8], under: npt.NDArray[np.int32], pixels_in: int, layout: Layout) -> Rows | None:
    """Pack int8 [targets, channels, taps]."""
    targets, channels, taps = weight.shape
    blocks, block = layout.blocks, layout.block
    if taps * channels * block > MAX_ROWS:
        return None
    rows = np.zeros((blocks * block, taps * channels), np.int8)
    rows[:targets] = weight.transpose(0, 2, 1).reshape(targets, taps * channels)
    biased = rows.view(np.uint8) ^ np.uint8(128)  # two's complement plus 128
    lanes = biased.reshape(blocks, block // LANES, 2, LANES // 2, taps * channels)
    packed = _aligned(lanes.transpose(0, 4, 1, 3, 2).reshape(blocks, taps * channels, block))
    quads = -(-channels // 4)
    filled = np.zeros((blocks * block, 4 * quads, taps), np.int8)
    filled[:targets, :channels] = weight
    fours = filled.reshape(blocks, block, quads, 4, taps).transpose(0, 4, 2, 1, 3)
    return Rows(channels, pixels_in, taps, np.ascontiguousarray(under), packed, _aligned(fours).view(np.int8))


def _block(targets: int, rows: int) -> int:
    """Targets summed together: all that registers hold, and no more than keeps the weights in the cache."""
    block = LANES
    while block < LARGEST_BLOCK and block < targets and 2 * block * rows <= CACHE:
        block *= 2
    return block


def _aligned(a: npt.NDArray[np.uint8] | npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    """Copy that starts at a multiple of 64 bytes: a row then never straddles a cache line."""
    room = np.empty(a.size + LANES, np.uint8)
    start = -room.__array_interface__["data"][0] % LANES
    out = room[start : start + a.size].reshape(a.shape)
    out[...] = a.view(np.uint8) if a.flags.c_contiguous else np.ascontiguousarray(a).view(np.uint8)
    return out
