"""Spike trains of a description with TSSL-BP's gradient: the forward pass is exact, backward :mod:`.tssl`.

Every time step has a graph of its own. Synaptic sums are computed once, from the integers themselves, for both the
forward pass and the graph. The neurons run in the description's arithmetic; their gradient sees the membrane that
really was there before each reset, in units of the threshold, and the decays of the description as time constants.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..errors import UnsupportedError
from ..network import DECAY_ONE, INPUT, Network, Population
from .integer_forward import (
    digit_bits,
    exact_products,
    neuron_step,
    state_dtype,
    synapse_dtype,
    synapse_sum,
    weight_shift,
)
from .tssl import CHUNK, SPIKING_RATE, Dynamics, Version, spike_time_gradient


class _Neurons(torch.autograd.Function):
    """``apply(drive [T, B, *shape], bias [*shape], population, version)``: state units to spikes 0/1 in float32."""

    @staticmethod
    def forward(ctx: Any, drive: Tensor, bias: Tensor, population: Population, version: Version) -> Tensor:
        unit = population.threshold + 1.0
        spikes = torch.empty_like(drive, dtype=torch.float32)
        charged = torch.empty_like(spikes)
        for some in _chunks(drive):
            u = torch.zeros_like(drive[0, some])
            v = u + population.v_init
            for n in range(len(drive)):
                step = neuron_step(population, u, v, drive[n, some], bias)
                u, v = step.u, step.v
                charged[n, some] = step.charged / unit
                spikes[n, some] = cast("Tensor", step.fired)
        ctx.save_for_backward(charged, spikes)
        current, membrane = (1 - d / DECAY_ONE for d in (population.du, population.dv))
        ctx.how, ctx.unit = Dynamics(current, membrane, 1.0, version), unit
        ctx.drive, ctx.bias = drive.dtype, bias
        return spikes

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        charged, spikes = ctx.saved_tensors
        how: Dynamics = ctx.how
        spiking = how.version == "layer" and spikes.mean().item() > SPIKING_RATE
        to_drive = torch.empty_like(charged)
        to_bias = torch.zeros_like(charged[0, 0])
        for some in _chunks(charged):
            part = spike_time_gradient(grad[:, some], charged[:, some], spikes[:, some], how, spiking=spiking)
            to_bias += part.sum((0, 1))
            for t in range(len(part) - 2, -1, -1):
                part[t].add_(part[t + 1], alpha=how.current)
            to_drive[:, some] = part
        to_bias = (to_bias / ctx.unit).sum_to_size(ctx.bias.shape).to(ctx.bias)
        return to_drive.div_(ctx.unit).to(ctx.drive), to_bias, None, None


def _chunks(frames: Tensor) -> list[slice]:
    samples = max(1, CHUNK // frames[0, 0].numel())
    return [slice(start, start + samples) for start in range(0, frames.shape[1], samples)]


def spike_trains(
    network: Network, x: Tensor, weights: Mapping[str, Tensor], biases: Mapping[str, Tensor], version: Version
) -> tuple[dict[str, Tensor], Tensor]:
    """Spikes of every population with their graph, and the drive of a readout membrane.

    Parameters
    ----------
    network : Network
        Without cycles; populations that spike have reset "zero".
    x : integers [B, *shape] (the same at every step) or [T, B, *shape], floating point
    weights : by connection name
        Integers, with a graph.
    biases : by population name
        State units, with a graph.
    version : {"element", "layer"}

    Returns
    -------
    spikes : dict of float32 [T, B, *shape]
    drive : float [T, B, *shape]
        ``I 2^f`` of the last population without spikes; empty where all spike.

    Raises
    ------
    UnsupportedError
        If a population resets by subtraction, or its sums are too wide for floating point.
    """
    sent: dict[str, Tensor] = {INPUT: x}
    of_membrane = x.new_zeros(0)
    for p in network.flow:
        if p.reset == "subtract":
            raise UnsupportedError(f"population {p.name!r}: TSSL-BP's gradient is that of the reset to zero")
        kind = state_dtype(network, p, x.device)
        if kind == torch.int64 or any(digit_bits(network, c, x.device) for c in network.incoming(p.name)):
            raise UnsupportedError(f"population {p.name!r}: TSSL-BP's gradient needs sums within float64")
        with exact_products(x.device):
            drive = torch.zeros((), dtype=kind, device=x.device)
            for c in network.incoming(p.name):
                dtype = synapse_dtype(network, c, x.device)
                weight, source = weights[c.name].to(dtype), sent[c.source].to(dtype)
                if source.ndim == len(network.shape_of(c.source)) + 1:
                    total = synapse_sum(c, weight, source, p.shape).expand(network.steps, -1, *[-1] * len(p.shape))
                else:
                    total = synapse_sum(c, weight, source.flatten(0, 1), p.shape).unflatten(0, source.shape[:2])
                if c.delay:
                    late = total[: max(0, network.steps - c.delay)]
                    total = torch.cat([torch.zeros_like(total[: network.steps - len(late)]), late])
                drive = drive + total.to(kind) * 2.0 ** weight_shift(p, c)
        if p.spikes:
            sent[p.name] = cast("Tensor", _Neurons.apply(drive, biases[p.name].to(kind), p, version))
        else:
            of_membrane = drive
    del sent[INPUT]
    return sent, of_membrane
