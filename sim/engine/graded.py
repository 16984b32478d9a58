"""Integers of several bits as bytes, for the products of the compiled kernel.

A number ``x`` between ``low`` and ``high`` becomes ``x - base >= 0`` with ``base = min(low, 0)``, in one plane of bytes
or more: ``x = base + sum of 256^k plane_k``. So ``W x`` is one product of bytes per plane, each shifted by ``8 k``, and
``base W 1``, which is the same for every input and is added to the sum of plane 0. In the padding, and before anything
has arrived, bytes are those of ``x = 0``. All of it is exact modulo 2^32, whatever overflows on the way; and what
arrives in all is known to fit (:func:`lapilli.sim.engine.kernels.fits`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...network import Scale, Synapse
from .packing import Layout


@dataclass(frozen=True)
class Graded:
    """How the numbers of one connection become bytes.

    Attributes
    ----------
    base : int
        What is subtracted from them: at most 0.
    planes : int
        Bytes that a number takes then.
    offset : int32 [blocks, 1, block]
        ``base W 1`` of every target, modulo 2^32.
    """

    base: int
    planes: int
    offset: npt.NDArray[np.int32]

    @classmethod
    def of(cls, low: int, high: int, synapse: Synapse, layout: Layout) -> Graded:
        """For numbers from ``low`` to ``high``."""
        base = min(low, 0)
        planes = max(1, -(-(max(high, 0) - base).bit_length() // 8))
        sums = np.zeros(layout.targets, np.int64)
        if not isinstance(synapse, Scale):
            sums = synapse.weight.reshape(len(synapse.weight), -1).sum(axis=1, dtype=np.int64)
        offset = np.zeros((layout.blocks, 1, layout.block), np.int32)
        offset.flat[: layout.targets] = (sums * base).astype(np.int32)
        return cls(base, planes, offset)

    def zero(self, plane: int) -> int:
        """The byte that stands for 0."""
        return -self.base >> 8 * plane & 255

    def bytes_of(
        self, x: npt.NDArray[Any], buffer: Callable[[int, int], npt.NDArray[np.uint8]]
    ) -> list[npt.NDArray[np.uint8]]:
        """The planes of ``x``, uint8 and of its shape; ``buffer(k, size)`` gives the memory of plane ``k``."""
        planes = [buffer(k, x.size).reshape(x.shape) for k in range(self.planes)]
        if self.planes == 1:  # in bytes, which wrap
            np.copyto(planes[0], x, casting="unsafe")
            np.add(planes[0], np.uint8(self.zero(0)), out=planes[0])
            return planes
        whole = np.subtract(x, self.base, dtype=np.int64, order="C").astype("<i4").view(np.uint8).reshape(*x.shape, 4)
        for k, plane in enumerate(planes):
            np.copyto(plane, whole[..., k])
        return planes
