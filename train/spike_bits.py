"""Spikes of a layer at all steps, a bit each: a 32nd of their size in float32."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

Part: TypeAlias = tuple[slice, slice]  # of the samples, and of the channels
ALL = slice(None)


def empty(shape: tuple[int, ...], dtype: torch.dtype, like: Tensor) -> Tensor:
    """Uninitialized, on the device and in the memory format of ``like``."""
    return torch.empty(shape, dtype=dtype, device=like.device, memory_format=layout(like, len(shape)))


def layout(like: Tensor, axes: int) -> torch.memory_format:
    """``channels_last`` where ``like`` is, and nothing else."""
    plain = (
        like.ndim != 4 or axes != 4 or like.is_contiguous() or not like.is_contiguous(memory_format=torch.channels_last)
    )
    return torch.contiguous_format if plain else torch.channels_last


class SpikeBits:
    """Spikes 0/1 of ``steps`` steps; step ``n`` is bit ``n % 8`` of byte ``n // 8``.

    Parameters
    ----------
    steps : int
    shape : tuple of int
        ``(B, C, ...)``.
    like : Tensor
        Whose device and memory format they take.

    Attributes
    ----------
    counts : uint8 [B, C, ...], or wider where there are more than 255 steps
        Spikes of each neuron.
    """

    def __init__(self, steps: int, shape: tuple[int, ...], like: Tensor) -> None:
        self.steps = steps
        self.counts = empty(shape, torch.uint8 if steps < 2**8 else torch.int32, like).zero_()
        self._bytes = empty((-(-steps // 8) * shape[0], *shape[1:]), torch.uint8, like).zero_()

    def write(self, step: int, part: Part, fired: Tensor) -> None:
        """Set a step of some neurons, once: bool ``[b, c, ...]``."""
        bits = fired.view(torch.uint8)
        self.counts[part].add_(bits)
        self._byte(step)[part].bitwise_or_(bits << step % 8)

    def read(self, amplitude: Tensor, part: Part = (ALL, ALL)) -> Tensor:
        """``amplitude s[n]`` of some neurons, in the dtype of the amplitude, a scalar: ``[T*b, c, ...]``."""
        like = self.counts[part]
        out = empty((self.steps * like.shape[0], *like.shape[1:]), amplitude.dtype, self.counts)
        for n, frame in enumerate(out.unflatten(0, (self.steps, -1))):
            # The bit is 0 or a power of two, so the product is exact.
            torch.mul(self._byte(n)[part] & (1 << n % 8), amplitude * 0.5 ** (n % 8), out=frame)
        return out

    def _byte(self, step: int) -> Tensor:
        """The bits of 8 steps, this one among them."""
        return self._bytes.unflatten(0, (-1, len(self.counts)))[step // 8]
