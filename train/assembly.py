"""From the layers of a recipe to torch modules with fresh weights."""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from functools import singledispatchmethod
from typing import cast

import torch
from torch import nn

from ..errors import RecipeError
from .architectures import layers_of
from .config import (
    AdaptivePoolLayer,
    BlockLayer,
    ConvLayer,
    DropoutLayer,
    LinearLayer,
    NetworkConfig,
    NeuronLayer,
    PoolLayer,
    Section,
)
from .neurons import Accumulator, IFNeuron, LIFNeuron, Neuron
from .residual import PreActBlock
from .tssl import SharedDropout, SumPool2d, TSSLNeuron

NEURON_SUFFIX = "_neuron"  # layer "conv1" has its weights in `conv1`, its neurons in `conv1_neuron`


def assemble(config: NetworkConfig, input_shape: tuple[int, ...], n_classes: int) -> nn.Sequential:
    """The layers of a network, their names ``conv1, conv1_norm, conv1_neuron, pool1, block1, fc1, ...``.

    Raises
    ------
    RecipeError
        If a layer does not fit what it gets; the message names the layer.
    """
    layers = layers_of(config)
    assembly = _Assembly(config, input_shape)
    for i, layer in enumerate(layers):
        kind = f"network.layers.{i}" if config.architecture is None else f"{config.architecture}, layer {i + 1}"
        assembly.where = f"{kind} ({cast('ConvLayer', layer).type})"
        assembly.is_last = i == len(layers) - 1
        if assembly.is_last and isinstance(layer, LinearLayer):
            if layer.features not in (None, n_classes):
                raise RecipeError(
                    f"{assembly.where}: features {layer.features} is not the number of classes, {n_classes}; "
                    "leave it out"
                )
            layer = layer.model_copy(update={"features": n_classes})
        assembly.add(layer)
    return nn.Sequential(assembly.modules)


class _Assembly:
    """Modules so far, and the shape of what the next layer gets."""

    def __init__(self, config: NetworkConfig, input_shape: tuple[int, ...]) -> None:
        self.config = config
        self.shape = input_shape
        self.modules: OrderedDict[str, nn.Module] = OrderedDict()
        self.counts: Counter[str] = Counter()
        self.where = ""
        self.is_last = False

    @singledispatchmethod
    def add(self, layer: Section) -> None:
        """Append a layer's modules."""
        raise NotImplementedError(type(layer).__name__)

    @add.register
    def _(self, layer: ConvLayer) -> None:
        channels, _, _ = self._image()
        for what, number in (("input", channels), ("output", layer.channels)):
            if number % layer.groups:
                raise RecipeError(f"{self.where}: groups {layer.groups} does not divide its {number} {what} channels")
        shape = self._convolved(layer.channels, layer.kernel, layer.stride, layer.padding, layer.dilation)
        bias = not layer.batch_norm if layer.bias is None else layer.bias
        conv = nn.Conv2d(
            channels, layer.channels, layer.kernel, layer.stride, layer.padding, layer.dilation, layer.groups, bias
        )
        self._initialize(conv, layer.initial_scale)
        name = self._name("conv")
        self.modules[name] = conv
        if layer.batch_norm:
            self.modules[f"{name}_norm"] = nn.BatchNorm2d(layer.channels)
        if layer.neurons:
            self._add_neurons(name)
        self.shape = shape

    @add.register
    def _(self, layer: BlockLayer) -> None:
        channels, _, _ = self._image()
        shape = self._convolved(layer.channels, (3, 3), layer.stride, (1, 1), (1, 1))
        block = PreActBlock(
            channels,
            layer.channels,
            layer.stride,
            (self._neuron(), self._neuron()),
            bias=layer.bias,
            shortcut_norm=layer.shortcut_norm,
        )
        for module in block.modules():
            if isinstance(module, nn.Conv2d):
                self._initialize(module)
        self.modules[self._name("block")] = block
        self.shape = shape

    @add.register
    def _(self, layer: NeuronLayer) -> None:
        name = self._name("neurons")
        if layer.batch_norm:
            norm = nn.BatchNorm2d if len(self.shape) == 3 else nn.BatchNorm1d
            self.modules[f"{name}_norm"] = norm(self.shape[0])
        self._add_neurons(name)

    @add.register
    def _(self, layer: PoolLayer) -> None:
        channels, *size = self._image()
        window = (size[0], size[1]) if layer.size == "all" else layer.size
        stride = layer.stride or window
        out = [(n + 2 * p - w) // s + 1 for n, p, w, s in zip(size, layer.padding, window, stride, strict=True)]
        if min(out) < 1:
            raise RecipeError(
                f"{self.where}: size {list(window)} does not fit the {size[0]}x{size[1]} map that it gets"
            )
        if any(2 * p > w for p, w in zip(layer.padding, window, strict=True)):
            raise RecipeError(f"{self.where}: padding {list(layer.padding)} is more than half of size {list(window)}")
        name = self._name("pool")
        mean = nn.AvgPool2d(window, stride, layer.padding)
        self.modules[name] = mean if layer.gain is None else SumPool2d(window, stride, layer.padding, layer.gain)
        if layer.neurons:
            self._add_neurons(name)
        self.shape = (channels, out[0], out[1])

    @add.register
    def _(self, layer: AdaptivePoolLayer) -> None:
        channels, _, _ = self._image()
        self.modules[self._name("pool")] = nn.AdaptiveAvgPool2d(layer.size)
        self.shape = (channels, *layer.size)

    @add.register
    def _(self, layer: DropoutLayer) -> None:
        tssl = self.config.method == "tssl-bp"
        self.modules[self._name("dropout")] = SharedDropout(layer.p, self.config.steps) if tssl else nn.Dropout(layer.p)

    @add.register
    def _(self, layer: LinearLayer) -> None:
        assert layer.features is not None
        if len(self.shape) > 1:
            self.modules["flatten"] = nn.Flatten()
        bias = not layer.batch_norm if layer.bias is None else layer.bias
        linear = nn.Linear(math.prod(self.shape), layer.features, bias=bias)
        if layer.initial_std is not None:
            nn.init.normal_(linear.weight, 0.0, layer.initial_std)
        elif self.config.method == "tssl-bp":
            nn.init.kaiming_normal_(linear.weight)
        _scale(linear, layer.initial_scale)
        if linear.bias is not None:
            nn.init.zeros_(linear.bias)
        name = self._name("fc")
        self.modules[name] = linear
        if layer.batch_norm:
            self.modules[f"{name}_norm"] = nn.BatchNorm1d(layer.features)
        self._add_neurons(name)
        self.shape = (layer.features,)

    def _name(self, kind: str) -> str:
        self.counts[kind] += 1
        return f"{kind}{self.counts[kind]}"

    def _image(self) -> tuple[int, int, int]:
        if len(self.shape) != 3:
            raise RecipeError(f"{self.where}: needs an image of shape (channels, height, width), not {self.shape}")
        return self.shape[0], self.shape[1], self.shape[2]

    def _convolved(
        self,
        channels: int,
        kernel: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
    ) -> tuple[int, int, int]:
        _, height, width = self._image()
        geometry = zip((height, width), kernel, stride, padding, dilation, strict=True)
        size = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in geometry]
        if min(size) < 1:
            raise RecipeError(
                f"{self.where}: kernel {list(kernel)} with padding {list(padding)} does not fit the "
                f"{height}x{width} map that it gets"
            )
        return channels, size[0], size[1]

    def _neuron(self) -> Neuron:
        c = self.config
        if c.method == "tssl-bp":
            return TSSLNeuron(c.steps, c.threshold, c.tau_m, c.tau_s, c.gradient)
        shared = (c.steps, c.threshold, c.alpha, c.reset, c.threshold_bound, c.threshold_gradient_scale)
        return IFNeuron(*shared) if c.neuron == "if" else LIFNeuron(*shared, c.tau, c.dt)

    def _add_neurons(self, name: str) -> None:
        neuron = self._neuron()
        accumulator = Accumulator(self.config.steps, neuron.beta)
        if self.config.method == "tssl-bp":
            accumulator = Accumulator(self.config.steps, 1.0, neuron.current_beta)
        reads_membrane = self.is_last and self.config.readout == "membrane"
        self.modules[name + NEURON_SUFFIX] = accumulator if reads_membrane else neuron
        if self.is_last and self.config.method == "tssl-bp" and not reads_membrane:
            self.modules["readout" + NEURON_SUFFIX] = accumulator  # sums the spikes of each class behind a synapse

    def _initialize(self, conv: nn.Conv2d, scale: float = 1.0) -> None:
        """Kaiming-normal (fan-out) for DSR; torch's for TSSL-BP, Kaiming-normal (fan-in) in its older version."""
        if self.config.method == "dsr":
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        elif self.config.gradient == "layer":
            nn.init.kaiming_normal_(conv.weight)
        _scale(conv, scale)
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)


def _scale(module: nn.Conv2d | nn.Linear, scale: float) -> None:
    if scale != 1.0:
        with torch.no_grad():
            module.weight.mul_(scale)
