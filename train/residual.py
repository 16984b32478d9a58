"""The residual block of DSR's pre-activation ResNets (qymeng94/DSR ``cifar/modules/preresnet.py``)."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from .neurons import Neuron


class PreActBlock(nn.Module):
    """Two 3x3 convolutions, each after batch normalization and neurons, and a shortcut around them.

    ::

        x = N1(BN1(input))
        output = conv2(N2(BN2(conv1(x)))) + shortcut(x)

    The shortcut starts after the first neurons, so what is added to the sum of the second convolution is spikes times
    their amplitude. The block ends in a sum without neurons: the next block, or a neuron layer, begins with them.

    Parameters
    ----------
    channels_in, channels_out : int
    stride : (vertical, horizontal)
        Of the first convolution and the shortcut.
    neurons : (Neuron, Neuron)
        ``N1`` and ``N2``.
    bias : bool
        Whether the convolutions have trained biases (DSR's CIFAR networks: yes, its ImageNet networks: no).
    shortcut_norm : bool
        Batch normalization after the shortcut's convolution (ImageNet: yes).

    Attributes
    ----------
    shortcut : nn.Module
        Identity, or a 1x1 convolution where the shape changes.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        stride: tuple[int, int],
        neurons: tuple[Neuron, Neuron],
        *,
        bias: bool = True,
        shortcut_norm: bool = False,
    ) -> None:
        super().__init__()
        self.in_norm = nn.BatchNorm2d(channels_in)
        self.in_neuron = neurons[0]
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=bias)
        self.mid_norm = nn.BatchNorm2d(channels_out)
        self.mid_neuron = neurons[1]
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=bias)
        self.shortcut: nn.Module = nn.Identity()
        if channels_in != channels_out or stride != (1, 1):
            conv = nn.Conv2d(channels_in, channels_out, 1, stride, bias=bias)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(channels_out)) if shortcut_norm else conv

    def forward(self, x: Tensor) -> Tensor:
        """Current ``[T*B, C_in, Y, X]`` to the sum of both branches ``[T*B, C_out, Y', X']``."""
        x = self.in_neuron(self.in_norm(x))
        return cast("Tensor", self.conv2(self.mid_neuron(self.mid_norm(self.conv1(x)))) + self.shortcut(x))
