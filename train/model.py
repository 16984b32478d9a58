"""Sequential spiking networks in torch, built from a recipe's ``[network]`` section."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import DataError, RecipeError
from .config import ConvLayer, DropoutLayer, LinearLayer, NetworkConfig, PoolLayer
from .neurons import Accumulator, IFNeuron, LIFNeuron, Neuron, mean_over_steps

NEURON_SUFFIX = "_neuron"  # layer "conv1" has its weights in `conv1`, its neurons in `conv1_neuron`


class SpikingSequential(nn.Module):
    """Layers of weights and neurons, run for ``steps`` time steps.

    Attributes
    ----------
    layers : nn.Sequential
        Conv2d, BatchNorm2d, BatchNorm1d, AvgPool2d, Dropout, Flatten, Linear and neurons, on ``[T*B, ...]``.
        Batch normalization is the ordinary one, over time and batch together, as in DSR.
    input_shape : tuple of int
        Of one sample.
    steps : int
        ``N``.
    readout : {"rate", "membrane"}
        "rate": (weighted) mean of what the last neurons send; "membrane": the last layer is an
        :class:`Accumulator`.
    population_names : tuple of str
        Of every neuron layer in order, the accumulator too: ``conv1, conv2, fc1, ...``.
    """

    def __init__(
        self, layers: nn.Sequential, input_shape: tuple[int, ...], steps: int, readout: Literal["rate", "membrane"]
    ) -> None:
        super().__init__()
        self.layers = layers
        self.input_shape = input_shape
        self.steps = steps
        self.readout: Literal["rate", "membrane"] = readout

    @property
    def neurons(self) -> dict[str, Neuron | Accumulator]:
        """Neuron layers by population name, in order."""
        return {
            name.removesuffix(NEURON_SUFFIX): module
            for name, module in self.layers.named_children()
            if isinstance(module, (Neuron, Accumulator))
        }

    @property
    def population_names(self) -> tuple[str, ...]:
        """Names of the neuron layers, in order."""
        return tuple(self.neurons)

    def _after_each_layer(self, x: Tensor) -> Iterator[tuple[nn.Module, Tensor]]:
        axes = len(self.input_shape)
        if x.ndim not in (axes + 1, axes + 2) or tuple(x.shape[x.ndim - axes :]) != self.input_shape:
            raise DataError(
                f"input of shape {tuple(x.shape)} does not fit the network: give [samples, *{self.input_shape}] "
                f"or [steps, samples, *{self.input_shape}]"
            )
        constant = x.ndim == axes + 1
        if not constant:
            if len(x) != self.steps:
                raise DataError(f"the network runs {self.steps} steps; the input has {len(x)} frames")
            x = x.flatten(0, 1)
        for layer in self.layers:
            if constant and isinstance(layer, (Neuron, Accumulator)):
                # Direct coding shows the same input at every step, so the layers before the first neurons need
                # to run only once; batch statistics are those of the repeated batch.
                x = x.repeat(self.steps, *[1] * (x.ndim - 1))
                constant = False
            x = layer(x)
            yield layer, x

    def forward(self, x: Tensor) -> Tensor:
        """Class scores.

        Parameters
        ----------
        x : float [B, *input_shape] (direct coding: the same at every step) or [T, B, *input_shape] (frames)

        Returns
        -------
        float [B, classes]

        Raises
        ------
        DataError
            If the shape does not fit.
        """
        layer, out = None, x
        for layer, out in self._after_each_layer(x):  # noqa: B007
            pass
        return mean_over_steps(out, self.steps, layer.beta) if isinstance(layer, Neuron) else out

    @torch.no_grad()
    def record(self, x: Tensor) -> list[Tensor]:
        """Spikes of every spiking population in order, in eval mode: uint8 ``[T, B, ...]`` each.

        An accumulator at the end does not spike and has no entry, so the names are
        ``zip(model.population_names, spikes)``.
        """
        was_training = self.training
        self.eval()
        try:
            return [
                (out > 0).to(torch.uint8).unflatten(0, (self.steps, -1))
                for layer, out in self._after_each_layer(x)
                if isinstance(layer, Neuron)
            ]
        finally:
            self.train(was_training)

    def spike_rates(self, x: Tensor) -> dict[str, float]:
        """Mean spikes per neuron and step of every spiking population for a batch, in eval mode."""
        return {
            name: spikes.float().mean().item()
            for name, spikes in zip(self.population_names, self.record(x), strict=False)
        }


def _neuron(config: NetworkConfig) -> Neuron:
    if config.neuron == "if":
        return IFNeuron(
            config.steps,
            config.threshold,
            config.alpha,
            config.reset,
            config.threshold_bound,
            config.threshold_gradient_scale,
        )
    return LIFNeuron(
        config.steps,
        config.threshold,
        config.alpha,
        config.reset,
        config.threshold_bound,
        config.threshold_gradient_scale,
        config.tau,
        config.dt,
    )


def _pooled(where: str, layer: PoolLayer, shape: tuple[int, ...]) -> tuple[int, ...]:
    y, x = shape[1] // layer.size[0], shape[2] // layer.size[1]
    if y < 1 or x < 1:
        raise RecipeError(f"{where}: size {list(layer.size)} does not fit the {shape[1]}x{shape[2]} map that it gets")
    return shape[0], y, x


def _convolved(where: str, layer: ConvLayer, shape: tuple[int, ...]) -> tuple[int, ...]:
    for what, channels in (("input", shape[0]), ("output", layer.channels)):
        if channels % layer.groups:
            raise RecipeError(f"{where}: groups {layer.groups} does not divide its {channels} {what} channels")
    size = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(shape[1:], layer.kernel, layer.stride, layer.padding, layer.dilation, strict=True)
    ]
    if min(size) < 1:
        raise RecipeError(
            f"{where}: kernel {list(layer.kernel)} with padding {list(layer.padding)} does not fit the "
            f"{shape[1]}x{shape[2]} map that it gets"
        )
    return layer.channels, size[0], size[1]


def build(config: NetworkConfig, input_shape: tuple[int, ...], n_classes: int, *, seed: int = 0) -> SpikingSequential:
    """Build the network of a recipe with fresh weights.

    Convolutions start Kaiming-normal (fan-out) and biases at zero, as in DSR; dense weights as torch makes them.

    Parameters
    ----------
    config : NetworkConfig
    input_shape : tuple of int
        Of one sample: ``(channels, height, width)`` or ``(features,)``.
    n_classes : int
    seed : int
        Of the initial weights; torch's global generator is left as it was.

    Raises
    ------
    RecipeError
        If a layer does not fit what it gets; the message names the layer.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _build(config, tuple(input_shape), n_classes)


def _build(config: NetworkConfig, input_shape: tuple[int, ...], n_classes: int) -> SpikingSequential:
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    counts = {"conv": 0, "fc": 0, "pool": 0, "dropout": 0}
    shape = input_shape

    def name_for(kind: str) -> str:
        counts[kind] += 1
        return f"{kind}{counts[kind]}"

    def add_neurons(name: str, *, last: bool) -> None:
        neurons: nn.Module = _neuron(config)
        if last and config.readout == "membrane":
            neurons = Accumulator(config.steps, _neuron(config).beta)
        modules[name + NEURON_SUFFIX] = neurons

    for i, layer in enumerate(config.layers):
        where = f"network.layers.{i} ({layer.type})"
        if isinstance(layer, (ConvLayer, PoolLayer)) and len(shape) != 3:
            raise RecipeError(f"{where}: needs an image of shape (channels, height, width), not {shape}")
        match layer:
            case ConvLayer():
                name = name_for("conv")
                out = _convolved(where, layer, shape)
                bias = not layer.batch_norm if layer.bias is None else layer.bias
                conv = nn.Conv2d(
                    shape[0], out[0], layer.kernel, layer.stride, layer.padding, layer.dilation, layer.groups, bias
                )
                nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
                if conv.bias is not None:
                    nn.init.zeros_(conv.bias)
                modules[name] = conv
                if layer.batch_norm:
                    modules[f"{name}_norm"] = nn.BatchNorm2d(out[0])
                add_neurons(name, last=False)
                shape = out
            case PoolLayer():
                shape = _pooled(where, layer, shape)
                modules[name_for("pool")] = nn.AvgPool2d(layer.size)
            case DropoutLayer():
                modules[name_for("dropout")] = nn.Dropout(layer.p)
            case LinearLayer():
                last = i == len(config.layers) - 1
                features = n_classes if layer.features is None else layer.features
                if last and features != n_classes:
                    raise RecipeError(
                        f"{where}: features {features} is not the number of classes, {n_classes}; leave it out"
                    )
                if len(shape) > 1:
                    modules["flatten"] = nn.Flatten()
                name = name_for("fc")
                linear = nn.Linear(
                    math.prod(shape), features, bias=not layer.batch_norm if layer.bias is None else layer.bias
                )
                if linear.bias is not None:
                    nn.init.zeros_(linear.bias)
                modules[name] = linear
                if layer.batch_norm:
                    modules[f"{name}_norm"] = nn.BatchNorm1d(features)
                add_neurons(name, last=last)
                shape = (features,)
    return SpikingSequential(nn.Sequential(modules), input_shape, config.steps, config.readout)
