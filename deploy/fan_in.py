"""Synapses as a core stores them: how many there are between each source neuron and a range of target neurons."""

from __future__ import annotations

from functools import singledispatch

import numpy as np

from ..network import Conv2d, Dense, IntArray, Scale, Shape, Synapse


@singledispatch
def synapses_into(synapse: Synapse, source: Shape, target: Shape, first: int, stop: int) -> IntArray:
    """Synapses with a non-zero weight from each source neuron into target neurons ``first .. stop - 1``.

    Parameters
    ----------
    synapse : Dense, Conv2d or Scale
    source, target : shapes
    first, stop : int
        A range of target neurons in C order.

    Returns
    -------
    int64 [*source]
    """
    raise NotImplementedError(type(synapse).__name__)


@synapses_into.register
def _(synapse: Dense, source: Shape, target: Shape, first: int, stop: int) -> IntArray:  # noqa: ARG001
    return np.count_nonzero(synapse.weight[first:stop], axis=0).astype(np.int64).reshape(source)


@synapses_into.register
def _(synapse: Scale, source: Shape, target: Shape, first: int, stop: int) -> IntArray:  # noqa: ARG001
    per_channel = (synapse.weight != 0).astype(np.int64).reshape(-1, *[1] * (len(source) - 1))
    inside = np.zeros(int(np.prod(source)), np.int64)
    inside[first:stop] = 1
    return inside.reshape(source) * per_channel


@synapses_into.register
def _(synapse: Conv2d, source: Shape, target: Shape, first: int, stop: int) -> IntArray:
    (py, px), (sy, sx), (dy, dx) = synapse.padding, synapse.stride, synapse.dilation
    c_out, c_in, k_y, k_x = synapse.weight.shape
    _, y_out, x_out = target
    plane = y_out * x_out
    begin, end = first // plane, -(-stop // plane)  # channels that the range touches
    inside = np.zeros((end - begin) * plane, np.float32)  # counts stay far below 2^24: exact, and BLAS adds them
    inside[first - begin * plane : stop - begin * plane] = 1
    inside = inside.reshape(end - begin, plane)
    padded = np.zeros((source[0], source[1] + 2 * py, source[2] + 2 * px), np.int64)
    per_group = c_out // synapse.groups
    for group in range(begin // per_group, -(-end // per_group)):
        a, b = max(begin, group * per_group), min(end, (group + 1) * per_group)
        used = np.ascontiguousarray((synapse.weight[a:b] != 0).transpose(2, 3, 1, 0), np.float32)  # k_y, k_x, c_in, c
        channels = slice(group * c_in, (group + 1) * c_in)
        for i in range(k_y):
            for j in range(k_x):
                rows = slice(i * dy, i * dy + (y_out - 1) * sy + 1, sy)
                columns = slice(j * dx, j * dx + (x_out - 1) * sx + 1, sx)
                seen = used[i, j] @ inside[a - begin : b - begin]
                padded[channels, rows, columns] += seen.reshape(c_in, y_out, x_out).astype(np.int64)
    return padded[:, py : py + source[1], px : px + source[2]]


def kernel_weights(synapse: Conv2d, target: Shape, first: int, stop: int) -> int:
    """Weights of the kernels whose output channels the range of target neurons touches."""
    plane = target[1] * target[2]
    return int(np.count_nonzero(synapse.weight[first // plane : -(-stop // plane)]))
