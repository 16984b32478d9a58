"""Spiking networks in torch, built from a recipe's ``[network]`` section or from any module of our layers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import DataError
from .assembly import NEURON_SUFFIX, assemble
from .config import NetworkConfig
from .neurons import Accumulator, Neuron, mean_over_steps


def population_name(path: str) -> str:
    """Name of the population whose neurons are the module at this path: ``block1.in_neuron`` is ``block1_in``."""
    name = path.removesuffix(NEURON_SUFFIX).replace(".", "_")
    return name if name[:1].isalpha() else f"layer{name}"


class SpikingSequential(nn.Module):
    """Layers of weights and neurons, run for ``steps`` time steps.

    Attributes
    ----------
    layers : nn.Module
        In sequence Conv2d, BatchNorm2d, BatchNorm1d, AvgPool2d, Dropout, Flatten, Linear, residual blocks and
        neurons, on ``[T*B, ...]``; or any module made of these and additions that ends in neurons, which are
        registered in the order in which it calls them. Batch normalization is the ordinary one, over time and batch
        together, as in DSR.
    input_shape : tuple of int
        Of one sample.
    steps : int
        ``N``.
    readout : {"rate", "membrane"}
        "rate": (weighted) mean of what the last neurons send; "membrane": the last layer is an
        :class:`Accumulator`.
    population_names : tuple of str
        Of every neuron layer in order, the accumulator too: ``conv1, block1_in, block1_mid, fc1, ...``.
    """

    def __init__(
        self, layers: nn.Module, input_shape: tuple[int, ...], steps: int, readout: Literal["rate", "membrane"]
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
            population_name(path): module
            for path, module in self.layers.named_modules()
            if isinstance(module, (Neuron, Accumulator))
        }

    @property
    def population_names(self) -> tuple[str, ...]:
        """Names of the neuron layers, in order."""
        return tuple(self.neurons)

    def _run(self, x: Tensor) -> Tensor:
        """What the last layer gives for all steps: ``[T*B, ...]``, of an accumulator ``[B, ...]``."""
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
        for layer in self.layers if isinstance(self.layers, nn.Sequential) else [self.layers]:
            if constant and any(isinstance(module, (Neuron, Accumulator)) for module in layer.modules()):
                # Direct coding shows the same input at every step, so the layers before the first neurons need
                # to run only once; batch statistics are those of the repeated batch.
                x = x.repeat(self.steps, *[1] * (x.ndim - 1))
                constant = False
            x = layer(x)
        return x

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
        out = self._run(x)
        last = next(reversed(self.neurons.values()), None)
        return mean_over_steps(out, self.steps, last.beta) if isinstance(last, Neuron) else out

    @property
    def output_current_beta(self) -> float | None:
        """Synaptic current kept from step to step, where the readout sums the last spikes behind synapses."""
        last = next(reversed(self.neurons.values()), None)
        return last.current_beta or None if isinstance(last, Accumulator) and self.readout == "rate" else None

    def output_spikes(self, x: Tensor) -> Tensor:
        """Spikes of the last spiking neurons, times their amplitude, with the graph of all steps: ``[T, B, ...]``.

        Raises
        ------
        DataError
            If the shape does not fit, or no layer spikes.
        """
        last = next((n for n in reversed(self.neurons.values()) if isinstance(n, Neuron)), None)
        if last is None:
            raise DataError("the network has no spiking neurons, so there are no output spikes")
        seen: list[Tensor] = []

        def keep(_module: nn.Module, _args: Any, out: Tensor) -> None:
            seen.append(out)

        handle = last.register_forward_hook(keep)
        try:
            self._run(x)
        finally:
            handle.remove()
        return seen[0].unflatten(0, (self.steps, -1))

    @torch.no_grad()
    def record(self, x: Tensor) -> list[Tensor]:
        """Spikes of every spiking population in order, in eval mode: uint8 ``[T, B, ...]`` each.

        An accumulator at the end does not spike and has no entry, so the names are
        ``zip(model.population_names, spikes)``.
        """
        spikes: dict[str, Tensor] = {}

        def keep(name: str) -> Callable[..., None]:
            def hook(_module: nn.Module, _args: Any, out: Tensor) -> None:
                spikes[name] = (out > 0).to(torch.uint8).unflatten(0, (self.steps, -1))

            return hook

        spiking = {name: module for name, module in self.neurons.items() if isinstance(module, Neuron)}
        was_training = self.training
        self.eval()
        try:
            with ExitStack() as hooks:
                for name, module in spiking.items():
                    hooks.callback(module.register_forward_hook(keep(name)).remove)
                self._run(x)
        finally:
            self.train(was_training)
        return [spikes[name] for name in spiking]

    def spike_rates(self, x: Tensor) -> dict[str, float]:
        """Mean spikes per neuron and step of every spiking population for a batch, in eval mode."""
        return {
            name: spikes.float().mean().item()
            for name, spikes in zip(self.population_names, self.record(x), strict=False)
        }


def build(config: NetworkConfig, input_shape: tuple[int, ...], n_classes: int, *, seed: int = 0) -> SpikingSequential:
    """Build the network of a recipe with fresh weights.

    Convolutions start Kaiming-normal (fan-out) and biases at zero, as in DSR; dense weights as torch makes them.
    TSSL-BP: convolutions as torch makes them, dense weights Kaiming-normal.

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
        layers = assemble(config, tuple(input_shape), n_classes)
    return SpikingSequential(layers, tuple(input_shape), config.steps, config.readout)
