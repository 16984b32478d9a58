"""Gradients of a convolution, kept away from a defect of torch's CPU kernels.

The gradient of the weights of a strided 1x1 convolution with fewer than 16 input channels, images in channels-last
format and more than one thread: oneDNN (3.13.3, in torch 2.15) writes past its buffers there, so training crashes
sooner or later, or goes on with what it destroyed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

NARROW = 16  # channels of a vector register


def convolution_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    wanted: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of the input and of the weights of a two-dimensional convolution without bias.

    Parameters
    ----------
    grad : float [B, C_out, Y', X']
        Of what it gives.
    x : float [B, C_in, Y, X]
    weight : float [C_out, C_in / groups, ky, kx]
    stride, padding, dilation : (vertical, horizontal)
    groups : int
    wanted : (bool, bool)
        Which of the two; the other one is None.
    """
    to_x: Tensor | None
    if _pointwise(weight.shape[2:], stride, padding):
        # It sees every stride-th pixel only. Without the others its stride is 1.
        seen = x[:, :, :: stride[0], :: stride[1]]
        to_seen, to_weight = _call(grad, seen, weight, (1, 1), padding, dilation, groups, wanted)
        if to_seen is None:
            return None, to_weight
        to_x = torch.zeros_like(x)
        to_x[:, :, :: stride[0], :: stride[1]] = to_seen
        return to_x, to_weight
    return _call(grad, x, weight, stride, padding, dilation, groups, wanted)


def _call(grad: Tensor, x: Tensor, weight: Tensor, *geometry: Any) -> tuple[Tensor | None, Tensor | None]:
    stride, padding, dilation, groups, wanted = geometry
    to_x, to_weight, _ = torch.ops.aten.convolution_backward(
        grad, x, weight, None, stride, padding, dilation, False, [0, 0], groups, (*wanted, False)
    )
    return to_x, to_weight


def bears_channels_last(model: nn.Module) -> bool:
    """Whether autograd can train a network with images in channels-last format."""
    return not any(
        isinstance(m, nn.Conv2d)
        and m.in_channels // m.groups < NARROW
        and not isinstance(m.padding, str)
        and _pointwise(m.kernel_size, m.stride, m.padding)
        for m in model.modules()
    )


def _pointwise(kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]) -> bool:
    """A 1x1 kernel on every other pixel, or fewer."""
    return tuple(kernel) == (1, 1) and tuple(stride) != (1, 1) and not any(padding)
