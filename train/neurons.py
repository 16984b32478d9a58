"""DSR neurons: spikes forward, the clamp of the mean input backward (Meng et al., CVPR 2022; code qymeng94/DSR).

Tensors are time-major and flattened, ``[T*B, ...]``: step ``n`` of all samples, then step ``n + 1``. With threshold
``th``, ``beta = exp(-dt/tau)`` and ``V[0] = 0``::

                 IF                          LIF
    charge       U[n] = V[n-1] + I[n]        U[n] = beta V[n-1] + (1 - beta) I[n]
    fire         s[n] = 1 where U[n] >= alpha th, else 0
    reset        "subtract": V[n] = U[n] - th s[n]          "zero": V[n] = 0 where s[n]
    sent on      th s[n]                     (th/dt) s[n]

The backward pass never differentiates this. It takes the weighted mean of what a neuron sends for a clamp of the
weighted mean of its input (weights ``w_n = beta^(N-n)``, all 1 for IF), which with the soft reset it is, up to a
remainder that vanishes with N::

                 a = clamp(Ibar, 0, th)      a = clamp(Ibar/tau, 0, th/dt)
"""

from __future__ import annotations

import math
from enum import IntEnum
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Reset = Literal["subtract", "zero"]


def step_weights(steps: int, beta: float, like: Tensor) -> Tensor:
    """``beta^(N-n) / sum`` for n = 1..N, of the dtype and on the device of ``like``: ``[N]``, sum 1."""
    exponents = torch.arange(steps - 1, -1, -1, dtype=torch.float64)
    weights = beta**exponents
    return (weights / weights.sum()).to(like)


def mean_over_steps(x: Tensor, steps: int, beta: float = 1.0) -> Tensor:
    """Mean over time, weighted by ``beta^(N-n)``: ``[T*B, ...]`` to ``[B, ...]``."""
    frames = x.unflatten(0, (steps, -1))
    return frames.mean(0) if beta == 1.0 else torch.tensordot(step_weights(steps, beta, x), frames, 1)


class Membrane:
    """The membranes of a layer, step by step.

    Parameters
    ----------
    like : Tensor [B, ...]
        The current of one step, or what has its shape and dtype.
    threshold : Tensor, scalar
        ``th``.
    beta, alpha : float
    reset : {"subtract", "zero"}
    """

    def __init__(self, like: Tensor, threshold: Tensor, beta: float, alpha: float, reset: Reset) -> None:
        self.threshold = threshold
        self.fire_at = alpha * threshold
        self.beta = beta
        self.reset: Reset = reset
        self.v = torch.zeros_like(like)

    def step(self, current: Tensor) -> Tensor:
        """Charge, fire, reset: which neurons fire, bool ``[B, ...]``."""
        if self.beta == 1.0:
            self.v += current
        else:
            self.v.mul_(self.beta).add_((1 - self.beta) * current)
        fired = self.v >= self.fire_at
        if self.reset == "subtract":
            self.v -= self.threshold * fired
        else:
            self.v.masked_fill_(fired, 0)
        return fired


def _integrate(current: Tensor, threshold: Tensor, steps: int, beta: float, alpha: float, reset: Reset) -> Tensor:
    """Run the neurons: current ``[T*B, ...]`` to spikes 0/1 of the same shape and dtype."""
    frames = current.unflatten(0, (steps, -1))
    spikes = torch.empty_like(frames)
    membrane = Membrane(frames[0], threshold, beta, alpha, reset)
    for n in range(steps):
        spikes[n] = membrane.step(frames[n])
    return spikes.flatten(0, 1)


class SpikeFunction(torch.autograd.Function):
    """What neurons send at every step: ``SpikeFunction.apply(current, threshold, neuron)``."""

    @staticmethod
    def forward(ctx: Any, current: Tensor, threshold: Tensor, neuron: Neuron) -> Tensor:
        """Amplitude times spikes, like ``current [T*B, ...]``."""
        ctx.save_for_backward(neuron.region(mean_over_steps(current, neuron.steps, neuron.beta)))
        ctx.neuron = neuron
        spikes = _integrate(current, threshold, neuron.steps, neuron.beta, neuron.alpha, neuron.reset)
        return spikes.mul_(neuron.amplitude)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Gradient of the clamp at the mean current: the same for every step."""
        neuron: Neuron = ctx.neuron
        g = neuron.steps * mean_over_steps(grad, neuron.steps, neuron.beta)
        to_mean, to_threshold = neuron.clamp_gradient(g, *ctx.saved_tensors)
        return (to_mean / neuron.steps).expand(neuron.steps, *g.shape).flatten(0, 1), to_threshold, None


class RateFunction(torch.autograd.Function):
    """What neurons send on average when their current is constant: ``RateFunction.apply(current, threshold, neuron)``.

    Forward, the spikes of ``neuron.levels`` steps of the same current, exactly; backward, the clamp.
    """

    @staticmethod
    def forward(ctx: Any, current: Tensor, _threshold: Tensor, neuron: Neuron) -> Tensor:
        """Mean of what is sent, like ``current [B, ...]``."""
        ctx.save_for_backward(neuron.region(current))
        ctx.neuron = neuron
        return neuron.mean_sent(current)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Gradient of the clamp at this current."""
        return *ctx.neuron.clamp_gradient(grad, *ctx.saved_tensors), None


class Region(IntEnum):
    """Where a mean current lies, as uint8: below the clamp's interval or on the bound of an open one, in it, above."""

    OUTSIDE = 0
    INSIDE = 1
    ABOVE = 2


def _regions(inside: Tensor, above: Tensor) -> Tensor:
    return inside.view(torch.uint8).add_(above.view(torch.uint8), alpha=Region.ABOVE.value)


class Neuron(nn.Module):
    """What IF and LIF layers share: one trained threshold for the layer, bounded below before every forward pass.

    Attributes
    ----------
    threshold : Parameter, scalar
        ``th``.
    amplitude : Tensor, scalar
        What a spike sends on: ``th`` (IF), ``th/dt`` (LIF).
    beta : float
        Membrane kept from one step to the next; 1 for IF.
    current_beta : float
        Synaptic current kept from one step to the next; 0 for DSR, whose neurons have none.
    levels : int or None
        Set by :mod:`.rates` only: a forward pass gets a mean current and stands for so many steps of it.
    """

    beta: float = 1.0
    current_beta: float = 0.0
    levels: int | None = None

    def __init__(
        self, steps: int, threshold: float, alpha: float, reset: Reset, bound: float, gradient_scale: float
    ) -> None:
        super().__init__()
        self.threshold = nn.Parameter(torch.tensor(float(threshold)))
        self.steps = steps
        self.alpha = alpha
        self.reset: Reset = reset
        self.bound = bound
        self.gradient_scale = gradient_scale

    @property
    def amplitude(self) -> Tensor:
        """What a spike sends on."""
        return self.threshold.detach().clamp(min=self.bound)

    def forward(self, current: Tensor) -> Tensor:
        """Current ``[T*B, ...]`` to amplitude times spikes, same shape."""
        self.keep_bound()
        function = SpikeFunction if self.levels is None else RateFunction
        return cast("Tensor", function.apply(current, self.threshold, self))

    @torch.no_grad()
    def keep_bound(self) -> None:
        """Raise the threshold to its lower bound; DSR does so before every forward pass."""
        self.threshold.clamp_(min=self.bound)

    def mean_sent(self, current: Tensor) -> Tensor:
        """Mean of what is sent in ``levels`` steps of a constant current: ``[B, ...]`` to the same shape."""
        levels = cast("int", self.levels)
        frames = current.repeat(levels, *[1] * (current.ndim - 1))
        spikes = _integrate(frames, self.threshold, levels, self.beta, self.alpha, self.reset)
        return mean_over_steps(spikes, levels).mul_(self.amplitude)

    def membrane(self, like: Tensor) -> Membrane:
        """Membranes at rest, for a current of one step ``like [B, ...]``."""
        return Membrane(like, self.threshold.detach(), self.beta, self.alpha, self.reset)

    def region(self, mean: Tensor) -> Tensor:
        """:class:`Region` of mean currents."""
        raise NotImplementedError

    def clamp_gradient(self, g: Tensor, region: Tensor) -> tuple[Tensor, Tensor]:
        """From the gradient to the mean of what is sent, that to the mean current and that to the threshold."""
        # The bits of a region are masks. A product with one of g's own type is several times as fast as with a bool.
        inside, above = (region & 1).to(g.dtype), (region >> 1).to(g.dtype)
        return g * inside, self.gradient_scale * (g * above).sum()

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return f"steps={self.steps}, threshold={self.threshold.item():.4g}, alpha={self.alpha}, reset={self.reset!r}"


class IFNeuron(Neuron):
    """A layer of integrate-and-fire neurons (module docstring, left column).

    Parameters
    ----------
    steps : int
        ``N``; the leading axis of the input is ``N * B``.
    threshold, alpha, bound : float
        Initial ``th``, the fraction of it at which neurons fire, and its lower bound (DSR's IF settings).
    reset : {"subtract", "zero"}
    gradient_scale : float
        Factor on the gradient of ``th``; 1 in the official CIFAR code, 0.001 in its ImageNet code.
    """

    def __init__(
        self,
        steps: int,
        threshold: float = 6.0,
        alpha: float = 0.5,
        reset: Reset = "subtract",
        bound: float = 0.01,
        gradient_scale: float = 1.0,
    ) -> None:
        super().__init__(steps, threshold, alpha, reset, bound, gradient_scale)

    def mean_sent(self, current: Tensor) -> Tensor:
        """As for every neuron; with the soft reset at once: ``k`` spikes need ``levels I >= (k - 1 + alpha) th``."""
        if self.reset != "subtract":
            return super().mean_sent(current)
        levels = cast("int", self.levels)
        # Divided last: the reciprocal of th would round, and lose the spike of a current that meets th exactly.
        spikes = (current * levels).div_(self.threshold.detach()).add_(1 - self.alpha).floor_().clamp_(0, levels)
        return spikes.mul_(self.amplitude / levels)

    def region(self, mean: Tensor) -> Tensor:
        """Of ``clamp(Ibar, 0, th)``; the interval is closed, as in the official code."""
        # What is above the threshold is above 0 as well: 0 + 0, 1 + 0, 1 + 1.
        return (mean >= 0).view(torch.uint8).add_((mean > self.threshold).view(torch.uint8))


class LIFNeuron(Neuron):
    """A layer of leaky integrate-and-fire neurons (module docstring, right column).

    Parameters
    ----------
    steps : int
        ``N``; the leading axis of the input is ``N * B``.
    threshold, alpha, bound : float
        Initial ``th``, the fraction of it at which neurons fire, and its lower bound (DSR's LIF settings).
    reset : {"subtract", "zero"}
    gradient_scale : float or None
        Factor on the gradient of ``th``; None: ``dt``, as in the official code (the clamp's own would be ``1/dt``).
    tau, dt : float
        Time constant and time step, in one unit. The official code computes ``beta`` in float32; here it is the
        nearest double.
    """

    def __init__(
        self,
        steps: int,
        threshold: float = 0.3,
        alpha: float = 0.3,
        reset: Reset = "subtract",
        bound: float = 0.0005,
        gradient_scale: float | None = None,
        tau: float = 1.0,
        dt: float = 0.05,
    ) -> None:
        super().__init__(steps, threshold, alpha, reset, bound, dt if gradient_scale is None else gradient_scale)
        self.tau = tau
        self.dt = dt
        self.beta = math.exp(-dt / tau)

    @property
    def amplitude(self) -> Tensor:
        """What a spike sends on."""
        return self.threshold.detach().clamp(min=self.bound) / self.dt

    def region(self, mean: Tensor) -> Tensor:
        """Of ``clamp(Ibar/tau, 0, th/dt)``; the interval is open, as in the official code."""
        ceiling = self.threshold * (self.tau / self.dt)
        return _regions((mean > 0) & (mean < ceiling), mean > ceiling)

    def clamp_gradient(self, g: Tensor, region: Tensor) -> tuple[Tensor, Tensor]:
        """That to the mean current over ``tau``; that to the threshold as in the official code, times ``dt``."""
        to_mean, to_threshold = super().clamp_gradient(g, region)
        return to_mean / self.tau, to_threshold


class Accumulator(nn.Module):
    """The readout "membrane": neurons that integrate like the others, never fire, and are read after the last step.

    IF: ``V[N] / N``, the mean of the current. LIF: ``V[N] / (1 - beta^N)``, its mean weighted by ``beta^(N-n)``.
    So a constant current ``I`` reads ``I`` in both. TSSL-BP: ``V[N] / N``, the mean of the current after its synapses.
    The gradient is exact.

    Parameters
    ----------
    steps : int
        ``N``.
    beta : float
        Membrane kept from one step to the next; 1 for IF.
    current_beta : float
        Synaptic current kept from one step to the next, with ``beta`` 1 only: ``i[n] = current_beta i[n-1]
        + (1 - current_beta) I[n]`` is what the membrane sums.
    """

    reset: ClassVar[str] = "none"

    def __init__(self, steps: int, beta: float = 1.0, current_beta: float = 0.0) -> None:
        super().__init__()
        self.steps = steps
        self.beta = beta
        self.current_beta = current_beta

    def forward(self, current: Tensor) -> Tensor:
        """Current ``[T*B, ...]`` to its (weighted) mean ``[B, ...]``."""
        if not self.current_beta:
            return mean_over_steps(current, self.steps, self.beta)
        left = torch.arange(self.steps, 0, -1, dtype=torch.float64)  # steps over which a spike's current is summed
        weights = ((1 - self.current_beta**left) / self.steps).to(current)
        return torch.tensordot(weights, current.unflatten(0, (self.steps, -1)), 1)

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return f"steps={self.steps}, beta={self.beta:.6g}, current_beta={self.current_beta:.6g}"


def input_gain(neurons: Neuron | Accumulator) -> float:
    """``k``: what one step's input adds to the membrane: 1 (IF), ``1 - beta`` (LIF), ``1/tau_s`` (TSSL-BP)."""
    if neurons.current_beta:
        return 1.0 - neurons.current_beta
    return 1.0 if neurons.beta == 1.0 else 1.0 - neurons.beta
