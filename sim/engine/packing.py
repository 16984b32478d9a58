"""Weights laid out for the compiled kernels, and which input pixel lies under which tap of a kernel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...network import Conv2d, Dense, Shape, Synapse

LANES = 64  # weights of a row come in groups of 64 bytes, as kernels.c expects
CACHE = 640 * 1024  # bytes of weights that stay in a core's second-level cache beside the spikes
LARGEST_BLOCK = 512
MAX_CHANNELS = 2**16 - 1  # event lists hold 16 bits per event
MAX_ROWS = 2**31  # bytes: offsets of rows have 32 bits


@dataclass(frozen=True)
class Packed:
    """A synapse as rows of weights: one row per (tap, input channel), added up for every event.

    Attributes
    ----------
    channels, targets : int
        Input channels and target channels of one group; of a dense synapse, all source and target neurons.
    pixels_in, pixels_out, taps : int
        1 for a dense synapse.
    source : int32 [pixels_out, taps]
        Input pixel under each tap, -1 in the padding.
    weight : uint8 [groups, blocks, taps x channels, block]
        Weight + 128. A row is cut into groups of 64 targets; of these, target ``i`` is byte ``2 i`` and target
        ``32 + i`` byte ``2 i + 1``: the halves of one 16-bit lane.
    """

    groups: int
    channels: int
    targets: int
    pixels_in: int
    pixels_out: int
    taps: int
    block: int
    source: npt.NDArray[np.int32]
    weight: npt.NDArray[np.uint8]


def pack(synapse: Synapse, source: Shape, target: Shape) -> Packed | None:
    """Lay out a synapse; None where the event kernel is no use (one-to-one, depthwise, too many channels)."""
    if isinstance(synapse, Dense):
        n_out, n_in = synapse.weight.shape
        return _packed(synapse.weight.reshape(1, n_out, n_in, 1), np.zeros((1, 1), np.int32), 1)
    if isinstance(synapse, Conv2d):
        c_out, c_in, k_y, k_x = synapse.weight.shape
        if synapse.groups > 1 and min(c_in, c_out // synapse.groups) < 16:
            return None
        weight = synapse.weight.reshape(synapse.groups, c_out // synapse.groups, c_in, k_y * k_x)
        return _packed(weight, under_each_tap(synapse, source, target), source[1] * source[2])
    return None


def under_each_tap(synapse: Conv2d, source: Shape, target: Shape) -> npt.NDArray[np.int32]:
    """Input pixel under each tap at each output pixel: int32 [Y_out X_out, K_y K_x], -1 in the padding."""
    (py, px), (sy, sx), (dy, dx) = synapse.padding, synapse.stride, synapse.dilation
    _, _, k_y, k_x = synapse.weight.shape
    y = np.arange(target[1])[:, None] * sy + np.arange(k_y) * dy - py
    x = np.arange(target[2])[:, None] * sx + np.arange(k_x) * dx - px
    y, x = y[:, None, :, None], x[None, :, None, :]
    inside = (y >= 0) & (y < source[1]) & (x >= 0) & (x < source[2])
    return np.where(inside, y * source[2] + x, -1).reshape(-1, k_y * k_x).astype(np.int32)


def _packed(weight: npt.NDArray[np.int8], source: npt.NDArray[np.int32], pixels_in: int) -> Packed | None:
    """Pack int8 [groups, targets, channels, taps]."""
    groups, targets, channels, taps = weight.shape
    block = _block(targets, taps * channels)
    if channels > MAX_CHANNELS or taps * channels * block > MAX_ROWS:
        return None
    blocks = -(-targets // block)
    rows = np.zeros((groups, blocks * block, taps * channels), np.int8)
    rows[:, :targets] = weight.transpose(0, 1, 3, 2).reshape(groups, targets, taps * channels)
    biased = rows.view(np.uint8) ^ np.uint8(128)  # two's complement plus 128
    lanes = biased.reshape(groups, blocks, block // LANES, 2, LANES // 2, taps * channels)
    return Packed(
        groups=groups,
        channels=channels,
        targets=targets,
        pixels_in=pixels_in,
        pixels_out=len(source),
        taps=taps,
        block=block,
        source=np.ascontiguousarray(source),
        weight=_aligned(lanes.transpose(0, 1, 5, 2, 4, 3).reshape(groups, blocks, taps * channels, block)),
    )


def _block(targets: int, rows: int) -> int:
    """Targets summed together: all that registers hold, and no more than keeps the weights in the cache."""
    block = LANES
    while block < LARGEST_BLOCK and block < targets and 2 * block * rows <= CACHE:
        block *= 2
    return block


def _aligned(a: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Copy that starts at a multiple of 64 bytes: a row then never straddles a cache line."""
    room = np.empty(a.size + LANES, np.uint8)
    start = -room.__array_interface__["data"][0] % LANES
    out = room[start : start + a.size].reshape(a.shape)
    out[...] = a
    return out
