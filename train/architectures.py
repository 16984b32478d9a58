"""Networks by name, as the layers that a recipe would list.

The networks of the DSR paper (code qymeng94/DSR): PreAct-ResNet-18 and 34 with a CIFAR or an ImageNet stem, the
CIFAR family of depth ``6 n + 2`` built from the same blocks, and VGG-11 for DVS-CIFAR10. Every max pooling is an
average pooling. And the plain networks of the TSSL-BP paper (code stonezwr/TSSL-BP). What a method has and the other
has not (batch normalization, biases, pooling by sums) follows from the method. Importing this module does not import
torch.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle

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

TSSL_POOLING = 1.1  # times the sum of a window: stonezwr/TSSL-BP layers/pooling.py


def layers_of(config: NetworkConfig) -> tuple[AnyLayer, ...]:
    """The layers of a network: its own, or those of its architecture."""
    layers = config.layers
    if config.architecture is not None:
        width, build = ARCHITECTURES[config.architecture]
        layers = build(config.width or width, config.stem)
    return tuple(_of_method(config.method, layer) for layer in layers)


def _of_method(method: str, layer: AnyLayer) -> AnyLayer:
    """A layer with what its method decides: DSR normalizes; TSSL-BP has no biases and sums where it pools."""
    tssl = method == "tssl-bp"
    update: dict[str, object] = {}
    if isinstance(layer, (ConvLayer, LinearLayer, NeuronLayer)) and layer.batch_norm is None:
        update["batch_norm"] = not tssl
    if tssl and isinstance(layer, (ConvLayer, LinearLayer)):
        update["bias"] = False
    if tssl and isinstance(layer, PoolLayer) and layer.gain is None:
        update["gain"] = TSSL_POOLING
    return layer.model_copy(update=update) if update else layer


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


def _convolutional(
    *parts: int | str, kernel: int, padding: tuple[int, ...], scale: float = 1.0, dropout: float = 0.0
) -> Callable[[int, str], tuple[AnyLayer, ...]]:
    """Convolutions (their channels), poolings ("P") and at last dense layers ("F300"), besides the one for classes."""
    first = next(part for part in parts if isinstance(part, int))

    def build(width: int, stem: str) -> tuple[AnyLayer, ...]:  # noqa: ARG001
        layers: list[AnyLayer] = []
        paddings = cycle(padding)
        for part, following in zip(parts, (*parts[1:], ""), strict=True):
            if part == "P":
                layers.append(PoolLayer())
            elif isinstance(part, int):
                zeros = next(paddings)
                channels = max(1, part * width // first)
                layers.append(
                    ConvLayer(channels=channels, kernel=(kernel, kernel), padding=(zeros, zeros), initial_scale=scale)
                )
            else:
                layers.append(LinearLayer(features=max(1, int(part[1:]) * width // first)))
            if dropout and following != "P":
                layers.append(DropoutLayer(p=dropout))
        return (*layers, LinearLayer())

    return build


def _mlp(width: int, stem: str) -> tuple[AnyLayer, ...]:  # noqa: ARG001
    return (LinearLayer(features=width), LinearLayer(features=width), LinearLayer())


_CIFAR10_CNN1 = (96, 256, "P", 384, "P", 384, 256, "F1024", "F1024")
_CIFAR10_CNN2 = (128, 256, "P", 512, "P", 1024, 512, "F1024", "F512")

# By name: channels of the first stage as published, and what makes the layers of (width, stem).
ARCHITECTURES: dict[str, tuple[int, Callable[[int, str], tuple[AnyLayer, ...]]]] = {
    "preact-resnet18": (64, _preact_18),
    "preact-resnet34": (64, _preact_34),
    **{f"preact-resnet{depth}": (16, _cifar_family(depth)) for depth in (20, 32, 44, 56, 110)},
    "vgg11": (64, _vgg11),
    # TSSL-BP: stonezwr/TSSL-BP README.md and Networks/*.yaml. The second CIFAR-10 network is in its
    # README only, so its padding, dropout and initial weights are taken from the first one.
    "mnist-cnn": (15, _convolutional(15, "P", 40, "P", "F300", kernel=5, padding=(0,))),
    "nmnist-cnn": (12, _convolutional(12, "P", 64, "P", kernel=5, padding=(1, 0))),
    "fashion-cnn": (32, _convolutional(32, "P", 64, "P", "F1024", kernel=5, padding=(2,))),
    "fashion-mlp": (400, _mlp),
    "cifar10-cnn1": (96, _convolutional(*_CIFAR10_CNN1, kernel=3, padding=(1,), scale=5.0, dropout=0.2)),
    "cifar10-cnn2": (128, _convolutional(*_CIFAR10_CNN2, kernel=3, padding=(1,), scale=5.0, dropout=0.2)),
}
