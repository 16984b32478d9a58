"""Networks by name, as the layers that a recipe would list.

The networks of the DSR paper (code qymeng94/DSR): PreAct-ResNet-18 and 34 with a CIFAR or an ImageNet stem, the
CIFAR family of depth ``6 n + 2`` built from the same blocks, and VGG-11 for DVS-CIFAR10. Every max pooling is an
average pooling. Importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable

from .config import (
    AdaptivePoolLayer,
    AnyLayer,
    BlockLayer,
    ConvLayer,
    DropoutLayer,
    LinearLayer,
    NetworkConfig,
    NeuronLayer,
    PoolLayer,
)


def layers_of(config: NetworkConfig) -> tuple[AnyLayer, ...]:
    """The layers of a network: its own, or those of its architecture."""
    if config.architecture is None:
        return config.layers
    width, build = ARCHITECTURES[config.architecture]
    return build(config.width or width, config.stem)


def _preact(blocks: tuple[int, ...], width: int, stem: str) -> tuple[AnyLayer, ...]:
    """Stages of ``blocks`` residual blocks; each stage but the first halves the map and doubles the channels."""
    imagenet = stem == "imagenet"
    layers: list[AnyLayer] = []
    if imagenet:
        layers.append(ConvLayer(channels=width, kernel=(7, 7), stride=(2, 2), padding=(3, 3)))
        layers.append(PoolLayer(size=(3, 3), stride=(2, 2), padding=(1, 1)))
    else:
        layers.append(ConvLayer(channels=width, padding=(1, 1), bias=False, batch_norm=False, neurons=False))
    for stage, count in enumerate(blocks):
        for block in range(count):
            stride = (2, 2) if stage > 0 and block == 0 else (1, 1)
            layers.append(
                BlockLayer(channels=width * 2**stage, stride=stride, bias=not imagenet, shortcut_norm=imagenet)
            )
    layers += [NeuronLayer(), PoolLayer(size="all", neurons=True), LinearLayer(bias=True)]
    return tuple(layers)


def _preact_18(width: int, stem: str) -> tuple[AnyLayer, ...]:
    return _preact((2, 2, 2, 2), width, stem)


def _preact_34(width: int, stem: str) -> tuple[AnyLayer, ...]:
    return _preact((3, 4, 6, 3), width, stem)


def _cifar_family(depth: int) -> Callable[[int, str], tuple[AnyLayer, ...]]:
    """He et al., CVPR 2016, section 4.2: three stages of ``n = (depth - 2) / 6`` blocks."""
    n = (depth - 2) // 6
    return lambda width, stem: _preact((n, n, n), width, stem)


def _vgg11(width: int, stem: str) -> tuple[AnyLayer, ...]:  # noqa: ARG001
    """``cifar/modules/vgg.py``: pools have no neurons; a map smaller than 7x7 is repeated before the dense layer."""
    layers: list[AnyLayer] = []
    for stage in ((1,), (2,), (4, 4), (8, 8), (8, 8)):
        for factor in stage:
            layers.append(ConvLayer(channels=width * factor, padding=(1, 1), bias=True))
            layers.append(DropoutLayer(p=0.1))
        layers.append(PoolLayer())
    layers += [AdaptivePoolLayer(size=(7, 7)), LinearLayer(bias=True, initial_std=0.01)]
    return tuple(layers)


# By name: channels of the first stage as published, and what makes the layers of (width, stem).
ARCHITECTURES: dict[str, tuple[int, Callable[[int, str], tuple[AnyLayer, ...]]]] = {
    "preact-resnet18": (64, _preact_18),
    "preact-resnet34": (64, _preact_34),
    **{f"preact-resnet{depth}": (16, _cifar_family(depth)) for depth in (20, 32, 44, 56, 110)},
    "vgg11": (64, _vgg11),
}
