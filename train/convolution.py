"""Gradients of a convolution, kept away from a defect of torch's CPU kernels.

The gradient of the weights of a strided 1x1 convolution with fewer than 16 input channels, images in channels-last
format and more than one thread: oneDNN (3.13.3, in torch 2.15) writes past its buffers there, so training crashes
sooner or later, or goes on with what it destroyed.
"""

from __future__ import annotations

from collections.abc import Sequence

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
    seen, pixels = x, (..., slice(None, None, stride[0]), slice(None, None, stride[1]))
    skips = _skips_pixels(weight.shape[2:], stride, padding)
    if skips:  # what is left has stride 1
        seen, stride = x[pixels], (1, 1)
    to_seen, to_weight, _ = torch.ops.aten.convolution_backward(
        grad, seen, weight, None, stride, padding, dilation, False, [0, 0], groups, (*wanted, False)
    )
    if not skips or to_seen is None:
        return to_seen, to_weight
    to_x = torch.zeros_like(x)
    to_x[pixels] = to_seen
    return to_x, to_weight


def bears_channels_last(model: nn.Module) -> bool:
    """Whether autograd can train a network with images in channels-last format."""
    return not any(
        isinstance(m, nn.Conv2d)
        and m.in_channels // m.groups < NARROW
        # With a stride, the only padding that has a name is "valid": none.
        and _skips_pixels(m.kernel_size, m.stride, (0, 0) if isinstance(m.padding, str) else m.padding)
        for m in model.modules()
    )


def _skips_pixels(kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]) -> bool:
    """A 1x1 kernel with a stride sees every stride-th pixel, and no others."""
    return tuple(kernel) == (1, 1) and tuple(stride) != (1, 1) and not any(padding)
