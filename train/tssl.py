"""TSSL-BP neurons: current-based LIF with a hard reset, and gradients by the shift of spike times.

Zhang & Li, Temporal Spike Sequence Learning via Backpropagation for Deep Spiking Neural Networks, NeurIPS 2020; code
stonezwr/TSSL-BP. Tensors are time-major and flattened, ``[T*B, ...]``, as for DSR. With ``x`` the weighted spikes that
arrive, time constants in steps and all states 0 at first::

    i[t] = (1 - 1/tau_s) i[t-1] + x[t]/tau_s           first-order synapse of unit area
    u[t] = (1 - 1/tau_m) v[t-1] + i[t]
    s[t] = 1 where u[t] > th, else 0
    v[t] = u[t] (1 - s[t])                             hard reset

The official code filters spikes where they are sent, ``a[t] = (1 - 1/tau_s) a[t-1] + s[t]/tau_s``, and weighs ``a``.
Without biases both are the same, forward and backward; here the filter is where Loihi has it, in the neuron that
receives, so that layers pass plain spikes and constant inputs are weighed once for all steps.

Backward, with ``g[t] = dL/da[t]``, so that ``E[t] = sum_{k>=t} (1/tau_s) (1 - 1/tau_s)^(k-t) g[k]`` is what arrives for
``s[t]``; ``D[t] = u[t] - v[t-1]``, the rise of the membrane (``dt_m/du = -1/D`` says how much earlier a spike comes for
a higher membrane); and ``sg``, the derivative of a sigmoid of ``(u - th)/0.2``. Two versions::

    "element"   J[t] = s[t] clip(1/D[t], 0, 8)
                q[t] = E[t] J[t] + q[t+1] (u[t] J[t]/tau_m where s[t], else 1 - 1/tau_m)
                dL/di[t] = E[t] sg[t] where a[t] < 1/(4 tau_s), else q[t]
    "layer"     R[t] = s[t] u[t]/tau_m (1 - 1/tau_m)^(n-t-1) g[n],  n the neuron's next spike; 0 without one
                e[t] = E[t] + sum_{k>=t} (1/tau_s) (1 - 1/tau_s)^(k-t) R[k]
                dL/di[t] = e[t] clip(1/D[t], -10, 10) s[t] where the layer spikes at a rate above 0.1, else e[t] sg[t]

"element" is the official code today, "layer" its state when the paper appeared; the second lines are the
intra-neuron dependency (a spike resets the membrane of the next one), and ``sg`` warms up neurons that hardly spike.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..errors import UnsupportedError
from .neurons import Neuron

Version = Literal["element", "layer"]

SIGMOID_WIDTH = 0.2
SIGMOID_REACH = 8.0  # of its argument
STEEPEST = {"element": (0.0, 8.0), "layer": (-10.0, 10.0)}  # range of 1/D
SPIKING_RATE = 0.1  # of a layer whose spike times are trained
CHUNK = 2**15  # neurons of a batch treated at a time, over all steps: what a core's cache holds


@dataclass(frozen=True)
class Dynamics:
    """Constants of a layer of neurons.

    Parameters
    ----------
    current, membrane : float
        Part kept from one step to the next: ``1 - 1/tau_s`` and ``1 - 1/tau_m``.
    threshold : float
    version : {"element", "layer"}
        Of the gradient.
    """

    current: float
    membrane: float
    threshold: float = 1.0
    version: Version = "element"


def _surrogate(u: Tensor, threshold: float) -> Tensor:
    z = torch.sub(u, threshold).div_(SIGMOID_WIDTH).clamp_(-SIGMOID_REACH, SIGMOID_REACH).sigmoid_()
    return z.addcmul_(z, z, value=-1).div_(SIGMOID_WIDTH)


def _filtered_back(x: Tensor, keep: float) -> None:
    """``(1 - keep) sum_{k>=t} keep^(k-t) x[k]`` in place, time first."""
    x.mul_(1 - keep)
    for t in range(len(x) - 2, -1, -1):
        x[t].add_(x[t + 1], alpha=keep)


def spike_time_gradient(to_spikes: Tensor, u: Tensor, spikes: Tensor, how: Dynamics, *, spiking: bool = True) -> Tensor:
    """Gradient to the current ``i`` from that to the spikes ``s`` (``E`` in the module's text).

    Parameters
    ----------
    to_spikes, u, spikes : float [T, ...]
        ``E``, the membrane before the reset, and 0/1.
    how : Dynamics
    spiking : bool
        Of version "layer": whether the whole layer spikes often enough.

    Returns
    -------
    float [T, ...]
    """
    steps = len(u)
    if how.version == "layer" and not spiking:
        return _with_resets(to_spikes, u, spikes, how).mul_(_surrogate(u, how.threshold))
    rise = u.clone()
    rise[1:].sub_(u[:-1]).addcmul_(u[:-1], spikes[:-1])
    steep = rise.reciprocal_().clamp_(*STEEPEST[how.version]).mul_(spikes)
    if how.version == "layer":
        return steep.mul_(_with_resets(to_spikes, u, spikes, how))
    # What q[t+1] is multiplied by.
    passed = torch.mul(u, steep).mul_(1 - how.membrane).add_(spikes, alpha=-how.membrane).add_(how.membrane)
    q = steep.mul_(to_spikes)
    for t in range(steps - 2, -1, -1):
        q[t].addcmul_(q[t + 1], passed[t])
    trace = spikes * (1 - how.current)
    for t in range(1, steps):
        trace[t].add_(trace[t - 1], alpha=how.current)
    return torch.where(trace < (1 - how.current) / 4, _surrogate(u, how.threshold).mul_(to_spikes), q)


def _with_resets(to_spikes: Tensor, u: Tensor, spikes: Tensor, how: Dynamics) -> Tensor:
    """``e`` of version "layer"."""
    # E[t] = (1 - keep) g[t] + keep E[t+1]
    g = to_spikes.clone()
    g[:-1].sub_(to_spikes[1:], alpha=how.current)
    g.div_(1 - how.current)
    resets = torch.mul(u, spikes).mul_(1 - how.membrane)
    at_next_spike = torch.zeros_like(g[0])
    for t in range(len(u) - 1, -1, -1):
        resets[t].mul_(at_next_spike)
        at_next_spike = torch.where(spikes[t] > 0, g[t], at_next_spike * how.membrane)
    _filtered_back(resets, how.current)
    return resets.add_(to_spikes)


class TSSLFunction(torch.autograd.Function):
    """``TSSLFunction.apply(x, steps, how)``: weighted spikes ``[T*B, ...]`` to spikes 0/1 of the same shape."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, steps: int, how: Dynamics) -> Tensor:
        """Run the neurons."""
        frames = x.reshape(steps, -1)
        u, spikes = torch.empty_like(frames), torch.empty_like(frames)
        for columns in _chunks(frames):
            i = torch.zeros_like(frames[0, columns])
            v = torch.zeros_like(i)
            for t in range(steps):
                i.mul_(how.current).add_(frames[t, columns], alpha=1 - how.current)
                now, fired = u[t, columns], spikes[t, columns]
                torch.add(i, v, alpha=how.membrane, out=now)
                fired.copy_(now > how.threshold)
                torch.addcmul(now, now, fired, value=-1, out=v)
        ctx.save_for_backward(u)
        ctx.how = how
        return spikes.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Gradient to ``x``."""
        (u,) = ctx.saved_tensors
        how: Dynamics = ctx.how
        to_spikes = grad.reshape(u.shape)
        spiking = how.version == "layer" and (u > how.threshold).float().mean().item() > SPIKING_RATE
        to_x = torch.empty_like(u)
        for columns in _chunks(u):
            part = u[:, columns]
            spikes = (part > how.threshold).to(u.dtype)
            to_current = spike_time_gradient(to_spikes[:, columns], part, spikes, how, spiking=spiking)
            _filtered_back(to_current, how.current)
            to_x[:, columns] = to_current
        return to_x.view(grad.shape), None, None


def _chunks(frames: Tensor) -> Iterator[slice]:
    return (slice(start, start + CHUNK) for start in range(0, frames.shape[1], CHUNK))


class TSSLNeuron(Neuron):
    """A layer of TSSL-BP neurons (module docstring); what they send are plain spikes.

    Parameters
    ----------
    steps : int
        ``T``; the leading axis of the input is ``T * B``.
    threshold : float
        Not trained.
    tau_m, tau_s : float
        Time constants of membrane and synapse in steps, at least 1.
    version : {"element", "layer"}
        Of the gradient.
    """

    def __init__(
        self, steps: int, threshold: float = 1.0, tau_m: float = 5.0, tau_s: float = 3.0, version: Version = "element"
    ) -> None:
        super().__init__(steps, threshold, 1.0, "zero", threshold, 0.0)
        self.threshold.requires_grad_(False)
        self.tau_m, self.tau_s = tau_m, tau_s
        self.version: Version = version
        self.beta = 1 - 1 / tau_m
        self.current_beta = 1 - 1 / tau_s

    @property
    def amplitude(self) -> Tensor:
        """1."""
        return torch.ones_like(self.threshold)

    @property
    def dynamics(self) -> Dynamics:
        """What the function needs to know."""
        return Dynamics(self.current_beta, self.beta, self.threshold.item(), self.version)

    def forward(self, current: Tensor) -> Tensor:
        """Weighted spikes ``[T*B, ...]`` to spikes, same shape.

        Raises
        ------
        UnsupportedError
            At the level of rates, which these neurons do not have.
        """
        if self.levels is not None:
            raise UnsupportedError("train.rate_epochs: TSSL-BP trains spike times, not rates; set it to 0")
        return cast("Tensor", TSSLFunction.apply(current, self.steps, self.dynamics))

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return (
            f"steps={self.steps}, threshold={self.threshold.item():.4g}, tau_m={self.tau_m}, tau_s={self.tau_s}, "
            f"version={self.version!r}"
        )


class SumPool2d(nn.AvgPool2d):
    """Pooling of TSSL-BP networks: ``gain`` times the sum over each window, without neurons."""

    def __init__(self, size: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], gain: float) -> None:
        super().__init__(size, stride, padding, divisor_override=1)
        self.gain = gain

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """``[T*B, C, Y, X]`` to ``[T*B, C, Y', X']``."""
        return super().forward(input) * self.gain

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return f"{super().extra_repr()}, gain={self.gain}"


class SharedDropout(nn.Dropout):
    """Dropout with one mask for all steps, and for whole rows of a map, as in the official code of TSSL-BP."""

    def __init__(self, p: float, steps: int) -> None:
        super().__init__(p)
        self.steps = steps

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """``[T*B, ...]`` to the same shape."""
        if not self.training:
            return input
        frames = input.unflatten(0, (self.steps, -1))
        shape = frames.shape[1:] if input.ndim == 2 else (*frames.shape[1:-1], 1)
        return (frames * F.dropout(frames.new_ones(shape), self.p)).flatten(0, 1)
