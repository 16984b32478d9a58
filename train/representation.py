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

    cov = sum_n x[n] (x) s[n] - N xw (x) sbar

This is computed in the forward pass, while ``x[n]`` and ``s[n]`` are at hand (one weight-gradient convolution over all
steps), and is no larger than the weights. ``covariance=False`` leaves this term out: faster, and no longer the exact
gradient.

From the last spiking layer to the scores, gradients do depend on the step (LIF weights its readout); that short way
runs on all steps as usual.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import singledispatchmethod
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..errors import UnsupportedError
from .model import SpikingSequential
from .neurons import (
    Accumulator,
    Neuron,
    mean_over_steps,
)
from .residual import PreActBlock
from .tssl import TSSLNeuron

Weights: TypeAlias = "nn.Conv2d | nn.Linear"
Norm: TypeAlias = "nn.BatchNorm1d | nn.BatchNorm2d"


class _Source:
    """Weights whose sums go into a batch normalization: what its gradient needs of them."""

    def __init__(self, weights: Weights, spikes: Tensor) -> None:
        self.weights = weights
        self.spikes: Tensor | None = spikes  # let go as soon as the covariance is there
        self.covariance: Tensor | None = None
        self.bias_covariance: Tensor | None = None

    def correlate(self, sums: Tensor, steps: int, beta: float) -> None:
        """``cov`` for the weights and for the bias, of their shapes."""
        spikes = cast("Tensor", self.spikes)
        weighted = mean_over_steps(sums, steps, beta)
        self.covariance = _to_weight(self.weights, spikes, sums)
        self.covariance -= _to_weight(self.weights, mean_over_steps(spikes, steps), weighted).mul_(steps)
        self.bias_covariance = _over_channels((mean_over_steps(sums, steps) - weighted).mul_(steps))


def _over_channels(x: Tensor) -> Tensor:
    """Sum of ``[B, C, ...]`` over all but the channels."""
    return x.sum([0, *range(2, x.ndim)])


def _to_weight(weights: Weights, inputs: Tensor, sums: Tensor) -> Tensor:
    """``sum_b sums[b] (x) inputs[b]``: the gradient of weights whose sums have the gradient ``sums``."""
    if isinstance(weights, nn.Linear):
        return sums.flatten(0, -2).T @ inputs.flatten(0, -2)
    return _convolution_backward(weights, inputs, sums, (False, True, False))[1]


def _to_input(weights: Weights, weight: Tensor, inputs: Tensor, sums: Tensor) -> Tensor:
    if isinstance(weights, nn.Linear):
        return sums @ weight
    return _convolution_backward(weights, inputs, sums, (True, False, False))[0]


def _convolution_backward(conv: nn.Conv2d, inputs: Tensor, sums: Tensor, wanted: tuple[bool, bool, bool]) -> Any:
    return torch.ops.aten.convolution_backward(
        sums, inputs, conv.weight.detach(), None, conv.stride, conv.padding, conv.dilation, False, [0, 0], conv.groups,
        wanted,
    )  # fmt: skip


class _Sums(torch.autograd.Function):
    """Weights: ``(mean [B, ...] in, weight, bias)`` to the mean of the sums and a probe of zeros ``[C_out]``."""

    @staticmethod
    def forward(
        ctx: Any, _flow: Tensor, weight: Tensor, bias: Tensor | None, mean_in: Tensor, mean_out: Tensor, source: _Source
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(mean_in, weight)
        ctx.source, ctx.has_bias = source, bias is not None
        return mean_out.view_as(mean_out), weight.new_zeros(len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, probe: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        mean_in, weight = ctx.saved_tensors
        source: _Source = ctx.source
        to_input = _to_input(source.weights, weight, mean_in, grad) if ctx.needs_input_grad[0] else None
        to_weight = _to_weight(source.weights, mean_in, grad)
        if source.covariance is not None:
            to_weight += probe.view(-1, *[1] * (weight.ndim - 1)) * source.covariance
        to_bias = None
        if ctx.has_bias:
            to_bias = _over_channels(grad)
            if source.bias_covariance is not None:
                to_bias += probe * source.bias_covariance
        return to_input, to_weight, to_bias, None, None, None


class _Normalized(torch.autograd.Function):
    """Batch normalization in training mode: ``(flow, probe, gamma, beta, ...)`` to the normalized mean."""

    @staticmethod
    def forward(
        ctx: Any,
        _flow: Tensor,
        _probe: Tensor | None,
        gamma: Tensor | None,
        beta: Tensor | None,
        xbar: Tensor,
        weighted: Tensor,
        centre: Tensor,
        inverse: Tensor,
        mean_out: Tensor,
        steps: int,
    ) -> Tensor:
        ctx.save_for_backward(xbar, weighted, gamma, centre, inverse)
        ctx.steps, ctx.has_probe, ctx.has_beta = steps, _probe is not None, beta is not None
        return mean_out.view_as(mean_out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        xbar, weighted, gamma, centre, inverse = ctx.saved_tensors
        shape = [1, -1, *[1] * (grad.ndim - 2)]
        xhat = (xbar - centre.view(shape)) * inverse.view(shape)
        count = ctx.steps * grad.numel() / grad.shape[1]
        to_beta, to_gamma = _over_channels(grad), _over_channels(grad * xhat)
        scale = inverse if gamma is None else gamma * inverse
        # At each step dx[n] = scale (g[n] - mean g - xhat[n] mean(g xhat)); their sum needs a mean of xhat only.
        c = -scale * to_gamma / count
        uniform = scale.view(shape) * (grad - (ctx.steps / count) * to_beta.view(shape))
        to_flow = uniform + (ctx.steps * c * inverse).view(shape) * (weighted - centre.view(shape))
        return (
            to_flow,
            c * inverse if ctx.has_probe else None,
            None if gamma is None else to_gamma,
            to_beta if ctx.has_beta else None,
            *[None] * 6,
        )


class _Spikes(torch.autograd.Function):
    """Neurons: ``(flow, threshold, weighted mean current, what they send, neuron)`` to its mean."""

    @staticmethod
    def forward(ctx: Any, _flow: Tensor, threshold: Tensor, current: Tensor, frames: Tensor, neuron: Neuron) -> Tensor:
        ctx.save_for_backward(current, threshold.detach().clone())
        ctx.neuron = neuron
        return mean_over_steps(frames, neuron.steps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _clamp_gradient(ctx.neuron, grad, *ctx.saved_tensors)


class _LastSpikes(torch.autograd.Function):
    """The last spiking layer: as :class:`_Spikes`, to all steps, each with a gradient of its own."""

    @staticmethod
    def forward(ctx: Any, _flow: Tensor, threshold: Tensor, current: Tensor, frames: Tensor, neuron: Neuron) -> Tensor:
        ctx.save_for_backward(current, threshold.detach().clone())
        ctx.neuron = neuron
        return frames.view_as(frames)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        neuron: Neuron = ctx.neuron
        g = neuron.steps * mean_over_steps(grad, neuron.steps, neuron.beta)
        return _clamp_gradient(neuron, g, *ctx.saved_tensors)


def _clamp_gradient(neuron: Neuron, g: Tensor, current: Tensor, threshold: Tensor) -> tuple[Tensor | None, ...]:
    to_flow, to_threshold = neuron.clamp_gradient(g, current, threshold)
    return to_flow, neuron.gradient_scale * to_threshold, None, None, None


class _Dropped(torch.autograd.Function):
    """Dropout with another mask at every step: ``(flow, mean of the kept, mean of the masks)``."""

    @staticmethod
    def forward(ctx: Any, _flow: Tensor, mean_out: Tensor, kept: Tensor) -> Tensor:
        ctx.save_for_backward(kept)
        return mean_out.view_as(mean_out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad * ctx.saved_tensors[0], None, None


@dataclass(frozen=True)
class _Flow:
    """What passes between two layers: all steps without gradient, and their mean with one.

    Attributes
    ----------
    frames : Tensor [T*B, ...]
    mean : Tensor [B, ...]
        Its gradient stands for ``N sum_n w_n g[n]`` of the gradients of the frames.
    probe : Tensor [C], optional
        Zeros; their gradient is ``c / sigma`` of the batch normalization that follows.
    sources : tuple of _Source
        The weights whose sums are in the frames.
    uniform : bool
        The gradient arriving here must be the same at all steps.
    """

    frames: Tensor
    mean: Tensor
    probe: Tensor | None = None
    sources: tuple[_Source, ...] = ()
    uniform: bool = False


@dataclass
class _Pass:
    """One forward pass."""

    steps: int
    beta: float
    last: Neuron | None
    covariance: bool
    where: list[str] = field(default_factory=list)

    def run(self, layers: nn.Module, x: Tensor, constant: bool) -> Tensor:
        """What the last layer gives, as :meth:`SpikingSequential._run` does."""
        value: Tensor | _Flow = x if constant else _Flow(x.detach(), mean_over_steps(x, self.steps))
        for name, layer in layers.named_children() if isinstance(layers, nn.Sequential) else [("layers", layers)]:
            if isinstance(value, Tensor) and constant:
                if not any(isinstance(m, (Neuron, Accumulator)) for m in layer.modules()):
                    value = layer(value)
                    continue
                constant = False
                value = _Flow(value.detach().repeat(self.steps, *[1] * (value.ndim - 1)), value)
            with self._at(name):
                value = self.through(layer, value)
        if isinstance(value, _Flow):
            raise UnsupportedError("train.backward: a network without spiking neurons has no representation; use steps")
        return value

    @contextmanager
    def _at(self, name: str) -> Iterator[None]:
        self.where.append(name)
        yield
        self.where.pop()

    def through(self, module: nn.Module, value: Tensor | _Flow) -> Tensor | _Flow:
        """One module; past the last spiking layer as usual."""
        return module(value) if isinstance(value, Tensor) else self.layer(module, value)

    def refuse(self, why: str) -> UnsupportedError:
        """Where, why, and what else."""
        return UnsupportedError(f"train.backward: layer {'.'.join(self.where)}: {why}; use train.backward = 'steps'")

    @singledispatchmethod
    def layer(self, module: nn.Module, flow: _Flow) -> Tensor | _Flow:  # noqa: ARG002
        """One module on all steps.

        Raises
        ------
        UnsupportedError
            If the gradient of this module cannot be carried by means over time.
        """
        raise self.refuse(f"{type(module).__name__} has no backward pass at the level of the representation")

    @layer.register
    def _(self, module: nn.Sequential, flow: _Flow) -> Tensor | _Flow:
        value: Tensor | _Flow = flow
        for name, inner in module.named_children():
            with self._at(name):
                value = self.through(inner, value)
        return value

    @layer.register
    def _(self, block: PreActBlock, flow: _Flow) -> Tensor | _Flow:
        x = self._chain(flow, in_norm=block.in_norm, in_neuron=block.in_neuron)
        branch = self._chain(
            x, conv1=block.conv1, mid_norm=block.mid_norm, mid_neuron=block.mid_neuron, conv2=block.conv2
        )
        shortcut = self._chain(x, shortcut=block.shortcut)
        if isinstance(branch, Tensor) or isinstance(shortcut, Tensor):
            raise self.refuse("the last spiking layer is inside a block; put a neurons layer after it")
        probes = [p for p in (branch.probe, shortcut.probe) if p is not None]
        return _Flow(
            branch.frames + shortcut.frames,
            branch.mean + shortcut.mean,
            torch.stack(probes).sum(0) if probes else None,
            branch.sources + shortcut.sources,
            branch.uniform or shortcut.uniform,
        )

    def _chain(self, value: Tensor | _Flow, **modules: nn.Module) -> Tensor | _Flow:
        for name, module in modules.items():
            with self._at(name):
                value = self.through(module, value)
        return value

    @layer.register(nn.Identity)
    @layer.register(nn.Flatten)
    def _(self, module: nn.Module, flow: _Flow) -> _Flow:
        return replace(flow, frames=_without_graph(module, flow.frames), mean=module(flow.mean))

    @layer.register(nn.AvgPool2d)
    @layer.register(nn.AdaptiveAvgPool2d)
    def _(self, module: nn.Module, flow: _Flow) -> _Flow:
        # Pooled sums: the gradient of a batch normalization after this is not one number a channel times x[n].
        frames = _without_graph(module, flow.frames)
        return _Flow(frames, module(flow.mean), uniform=flow.uniform or bool(flow.sources))

    @layer.register
    def _(self, module: nn.Dropout, flow: _Flow) -> _Flow:
        if not module.training or module.p == 0:
            return flow
        kept = module(torch.ones_like(flow.frames))  # 0 or 1 / (1 - p), another for every step
        frames = flow.frames * kept
        means = (mean_over_steps(frames, self.steps), mean_over_steps(kept, self.steps, self.beta))
        return _Flow(frames, cast("Tensor", _Dropped.apply(flow.mean, *means)), uniform=True)

    @layer.register(nn.Conv2d)
    @layer.register(nn.Linear)
    def _(self, module: Weights, flow: _Flow) -> _Flow:
        if isinstance(module, nn.Conv2d) and (isinstance(module.padding, str) or module.padding_mode != "zeros"):
            raise self.refuse(f"padding {module.padding!r} ({module.padding_mode})")
        source = _Source(module, flow.frames)
        frames = _without_graph(module, flow.frames)
        means = (mean_over_steps(flow.frames, self.steps), mean_over_steps(frames, self.steps))
        out, probe = cast("Any", _Sums.apply(flow.mean, module.weight, module.bias, *means, source))
        return _Flow(frames, out, probe, (source,), flow.uniform or bool(flow.sources))

    @layer.register(nn.BatchNorm1d)
    @layer.register(nn.BatchNorm2d)
    def _(self, norm: Norm, flow: _Flow) -> _Flow:
        if not norm.training and norm.running_mean is not None:
            return _Flow(_without_graph(norm, flow.frames), norm(flow.mean), uniform=True)
        if flow.uniform:
            raise self.refuse("batch normalization in training mode after dropout, pooling or another normalization")
        with torch.no_grad():
            for source in flow.sources:
                if self.covariance:
                    source.correlate(flow.frames, self.steps, self.beta)
                source.spikes = None
            momentum = norm.momentum
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked.add_(1)
                momentum = 1 / float(norm.num_batches_tracked) if momentum is None else momentum
            frames, centre, inverse = torch.native_batch_norm(
                flow.frames,
                norm.weight,
                norm.bias,
                norm.running_mean,
                norm.running_var,
                True,
                momentum or 0.0,
                norm.eps,
            )
            x = flow.frames
            means = (mean_over_steps(x, self.steps), mean_over_steps(x, self.steps, self.beta))
            mean_out = mean_over_steps(frames, self.steps)
        out = _Normalized.apply(
            flow.mean, flow.probe, norm.weight, norm.bias, *means, centre, inverse, mean_out, self.steps
        )
        return _Flow(frames, cast("Tensor", out), uniform=True)

    @layer.register
    def _(self, neuron: TSSLNeuron, flow: _Flow) -> Tensor | _Flow:  # noqa: ARG002
        raise self.refuse("TSSL-BP's gradient is another at every step")

    @layer.register
    def _(self, neuron: Neuron, flow: _Flow) -> Tensor | _Flow:
        frames = _without_graph(neuron, flow.frames)
        current = mean_over_steps(flow.frames, self.steps, neuron.beta)
        function = _LastSpikes if neuron is self.last else _Spikes
        out = cast("Tensor", function.apply(flow.mean, neuron.threshold, current, frames, neuron))
        return out if neuron is self.last else _Flow(frames, out)


@torch.no_grad()
def _without_graph(module: nn.Module, frames: Tensor) -> Tensor:
    return module(frames)


def scores(model: SpikingSequential, x: Tensor, *, covariance: bool = True) -> Tensor:
    """Class scores of a network, with the graph of its backward pass at the level of the representation.

    Parameters
    ----------
    model : SpikingSequential
    x : float [B, *input_shape] or [T, B, *input_shape]
    covariance : bool
        Whether the weights' gradients have the term ``(c / sigma) cov`` of batch normalization. Without it, training
        is faster and gradients are no longer exact.

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
    one_pass = _Pass(model.steps, neurons[0].beta if neurons else 1.0, last, covariance)
    out = one_pass.run(model.layers, x if constant else x.flatten(0, 1), constant)
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
