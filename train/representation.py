"""DSR's backward pass without a time axis: the same gradients as autograd over all steps, in less time and memory.

A DSR neuron's backward pass (:mod:`.neurons`) asks for one thing of the gradients ``g[n]`` of what it sends: their sum
``G = N sum_n w_n g[n]``, with ``w_n = 1/N`` for IF and in proportion to ``beta^(N-n)`` for LIF. And it gives every step
the same gradient. So between two layers of neurons, gradients are carried once instead of N times, and activations are
kept as means over time. The forward pass is the ordinary one, without a graph.

With ``g[n] = G / N`` at every step, weights ``W`` on spikes ``s[n]`` with time mean ``sbar``::

    to the spikes   N sum_n w_n W^T g[n] = W^T G       to the weights   sum_n g[n] (x) s[n] = G (x) sbar

Batch normalization in training mode breaks the uniformity: its input ``x[n]`` gets a gradient with a part that is the
same at all steps, and ``c xhat[n]``, with one number ``c`` for a channel. ``G`` needs time means of ``x`` only. For the
weights before it, the second part adds ``(c / sigma) cov``, where ``xw`` is the mean of ``x`` with weights ``w_n``::

    cov = sum_n (x[n] - xw) (x) s[n]

This is computed in the forward pass, while ``x[n]`` and ``s[n]`` are at hand (one weight-gradient convolution over all
steps), and is no larger than the weights. ``covariance=False`` leaves this term out: faster, and no longer the exact
gradient. It is one number for a channel through sums of branches and through pooling, so ``cov`` goes there, too, and
through another batch normalization (the shortcuts of the ImageNet networks have one): that one passes the part on,
adds one of its own, and needs two sums over time more. Weights and flattening would mix the channels: refused.

Between the layers, spikes are kept as bits and everything else is computed in pieces (:mod:`.frames`). What stays for
the backward pass has no time axis: counts of spikes (a byte a neuron), where the mean current lies (a byte), means of
what is normalized, and ``cov``.

From the last spiking layer to the scores, gradients do depend on the step (LIF weights its readout); that short way
runs on all steps as usual.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import singledispatchmethod
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..errors import UnsupportedError
from .frames import (
    Constant,
    Dropped,
    Frames,
    FrozenNorm,
    Given,
    Mapped,
    Norm,
    Spikes,
    Sum,
    TrainedNorm,
    Weighted,
    Window,
    fire,
)
from .model import SpikingSequential
from .neurons import Accumulator, Neuron, mean_over_steps
from .residual import PreActBlock
from .tssl import TSSLNeuron


class _Spikes(torch.autograd.Function):
    """Neurons: to the carrier of what they send."""

    @staticmethod
    def forward(ctx: Any, carrier: Tensor, _threshold: Tensor, region: Tensor, neuron: Neuron) -> Tensor:
        ctx.save_for_backward(region)
        ctx.neuron = neuron
        return carrier.new_zeros(()).expand(carrier.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return *ctx.neuron.clamp_gradient(grad, *ctx.saved_tensors), None, None


class _LastSpikes(torch.autograd.Function):
    """The last spiking layer: to what it sends at all steps, each with a gradient of its own."""

    @staticmethod
    def forward(
        ctx: Any, _carrier: Tensor, _threshold: Tensor, region: Tensor, frames: Tensor, neuron: Neuron
    ) -> Tensor:
        ctx.save_for_backward(region)
        ctx.neuron = neuron
        return frames.view_as(frames)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        neuron: Neuron = ctx.neuron
        g = neuron.steps * mean_over_steps(grad, neuron.steps, neuron.beta)
        return *neuron.clamp_gradient(g, *ctx.saved_tensors), None, None, None


class _Pass:
    """One forward pass."""

    def __init__(self, window: Window, last: Neuron | None) -> None:
        self.window = window
        self.last = last
        self.where: list[str] = []

    def run(self, layers: nn.Module, x: Tensor, constant: bool) -> Tensor:
        """What the last layer gives, as :meth:`SpikingSequential._run` does."""
        value: Tensor | Frames = x if constant else Given(self.window, x)
        for name, layer in layers.named_children() if isinstance(layers, nn.Sequential) else [("layers", layers)]:
            if isinstance(value, Tensor) and constant:
                if not any(isinstance(m, (Neuron, Accumulator)) for m in layer.modules()):
                    value = layer(value)
                    continue
                constant = False
                value = Constant(self.window, value)
            with self._at(name):
                value = self.through(layer, value)
        if isinstance(value, Frames):
            raise UnsupportedError("train.backward: a network without spiking neurons has no representation; use steps")
        return value

    @contextmanager
    def _at(self, name: str) -> Iterator[None]:
        self.where.append(name)
        yield
        self.where.pop()

    def through(self, module: nn.Module, value: Tensor | Frames) -> Tensor | Frames:
        """One module; past the last spiking layer as usual."""
        return module(value) if isinstance(value, Tensor) else self.layer(module, value)

    def refuse(self, why: str) -> UnsupportedError:
        """Where, why, and what else."""
        return UnsupportedError(f"train.backward: layer {'.'.join(self.where)}: {why}; use train.backward = 'steps'")

    @singledispatchmethod
    def layer(self, module: nn.Module, flow: Frames) -> Tensor | Frames:  # noqa: ARG002
        """One module on all steps.

        Raises
        ------
        UnsupportedError
            If the gradient of this module cannot be carried by means over time.
        """
        raise self.refuse(f"{type(module).__name__} has no backward pass at the level of the representation")

    @layer.register
    def _(self, module: nn.Sequential, flow: Frames) -> Tensor | Frames:
        value: Tensor | Frames = flow
        for name, inner in module.named_children():
            with self._at(name):
                value = self.through(inner, value)
        return value

    @layer.register
    def _(self, block: PreActBlock, flow: Frames) -> Tensor | Frames:
        x = self._chain(flow, in_norm=block.in_norm, in_neuron=block.in_neuron)
        branch = self._chain(
            x, conv1=block.conv1, mid_norm=block.mid_norm, mid_neuron=block.mid_neuron, conv2=block.conv2
        )
        shortcut = self._chain(x, shortcut=block.shortcut)
        if isinstance(branch, Tensor) or isinstance(shortcut, Tensor):
            raise self.refuse("the last spiking layer is inside a block; put a neurons layer after it")
        return Sum(self.window, branch, shortcut)

    def _chain(self, value: Tensor | Frames, **modules: nn.Module) -> Tensor | Frames:
        for name, module in modules.items():
            with self._at(name):
                value = self.through(module, value)
        return value

    @layer.register(nn.Identity)
    @layer.register(nn.Flatten)
    @layer.register(nn.AvgPool2d)
    @layer.register(nn.AdaptiveAvgPool2d)
    def _(self, module: nn.Module, flow: Frames) -> Frames:
        return Mapped(self.window, flow, module)

    @layer.register
    def _(self, module: nn.Dropout, flow: Frames) -> Frames:
        return Dropped(self.window, flow, module) if module.training and module.p > 0 else flow

    @layer.register
    def _(self, module: nn.Conv2d, flow: Frames) -> Frames:
        if isinstance(module.padding, str) or module.padding_mode != "zeros":
            raise self.refuse(f"padding {module.padding!r} ({module.padding_mode})")
        return Weighted(self.window, flow, module)

    @layer.register
    def _(self, module: nn.Linear, flow: Frames) -> Frames:
        if len(flow.shape) != 1:
            raise self.refuse(f"a dense layer on {len(flow.shape)} axes; flatten them first")
        return Weighted(self.window, flow, module)

    @layer.register(nn.BatchNorm1d)
    @layer.register(nn.BatchNorm2d)
    def _(self, norm: Norm, flow: Frames) -> Frames:
        if not norm.training and norm.running_mean is not None:
            return FrozenNorm(self.window, flow, norm)
        if flow.uniform:
            raise self.refuse(
                "batch normalization in training mode after dropout, a frozen normalization, or weights or flattening "
                "without neurons before them"
            )
        return TrainedNorm(self.window, flow, norm)

    @layer.register
    def _(self, neuron: TSSLNeuron, flow: Frames) -> Tensor | Frames:  # noqa: ARG002
        raise self.refuse("TSSL-BP's gradient is another at every step")

    @layer.register
    def _(self, neuron: Neuron, flow: Frames) -> Tensor | Frames:
        bits, region = fire(neuron, flow)
        amplitude = neuron.amplitude
        if neuron is self.last:
            frames = bits.read(amplitude)
            return cast("Tensor", _LastSpikes.apply(flow.carrier, neuron.threshold, region, frames, neuron))
        carrier = cast("Tensor", _Spikes.apply(flow.carrier, neuron.threshold, region, neuron))
        return Spikes(self.window, bits, amplitude, carrier)


def scores(
    model: SpikingSequential, x: Tensor, *, covariance: bool = True, products: torch.dtype | None = None
) -> Tensor:
    """Class scores of a network, with the graph of its backward pass at the level of the representation.

    Parameters
    ----------
    model : SpikingSequential
    x : float [B, *input_shape] or [T, B, *input_shape]
    covariance : bool
        Whether the weights' gradients have the term ``(c / sigma) cov`` of batch normalization. Without it, training
        is faster and gradients are no longer exact.
    products : torch.dtype, optional
        Take the convolutions of the gradients in this type, ``torch.bfloat16`` for one. It changes no spike.

    Returns
    -------
    float [B, classes]
        Equal to ``model(x)``.

    Raises
    ------
    UnsupportedError
        If a layer's gradient cannot be carried by means over time; the message names the layer.
    """
    neurons = list(model.neurons.values())
    last = next((n for n in reversed(neurons) if isinstance(n, Neuron)), None)
    constant = x.ndim == len(model.input_shape) + 1
    if len({n.beta for n in neurons}) > 1:
        raise UnsupportedError("train.backward: neurons of different time constants; use train.backward = 'steps'")
    beta = neurons[0].beta if neurons else 1.0
    window = Window(model.steps, x.shape[0 if constant else 1], beta, covariance, products)
    out = _Pass(window, last).run(model.layers, x if constant else x.flatten(0, 1), constant)
    end = neurons[-1] if neurons else None
    return mean_over_steps(out, model.steps, end.beta) if isinstance(end, Neuron) else out


def obstacle(model: SpikingSequential) -> str | None:
    """Why :func:`scores` would refuse to train a network; None where it would not. The network stays as it was."""
    trial = copy.deepcopy(model).train()
    like = next(trial.parameters())
    try:
        with torch.random.fork_rng(devices=[]):
            scores(trial, like.new_zeros(2, *model.input_shape))
    except UnsupportedError as error:
        return str(error)
    return None
