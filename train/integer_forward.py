"""The description's integer arithmetic in torch, exact, batched and on any device.

Integers are held in floating point, where they are exact as long as nothing outgrows the mantissa (24 bits in float32,
53 in float64): :func:`_synapse_dtype` and :func:`_state_dtype` choose the type from worst-case bounds that hold for
every weight of the declared width, so that they stay true while weights are trained. Spikes, membranes and overflow
counts are those of :mod:`lapilli.sim.reference`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ..bounds import source_range
from ..errors import UnsupportedError
from ..network import DECAY_ONE, INPUT, Connection, Conv2d, Dense, Network, Population, Scale, Shape

CHUNK_ELEMENTS = 2**24  # of the largest floating-point array of one chunk of steps (64 MiB in float32)


@dataclass
class Outcome:
    """What :func:`run` gives; tensors are on the device of its input.

    Attributes
    ----------
    spikes : dict of uint8 [T, B, *shape]
    v_final : dict of float [B, *shape]
    current, u, v : dict of int64 [T, B, *shape]
        Of the traced populations.
    wraps, saturations : dict of int
        Overflow events; only if counted.
    mean_sent : dict of float32 [B, *shape]
        (Weighted) mean of what a population, or the input, sends.
    mean_input : dict of float32 [B, *shape]
        (Weighted) mean of ``u + b``, state units.
    """

    spikes: dict[str, Tensor] = field(default_factory=dict)
    v_final: dict[str, Tensor] = field(default_factory=dict)
    current: dict[str, Tensor] = field(default_factory=dict)
    u: dict[str, Tensor] = field(default_factory=dict)
    v: dict[str, Tensor] = field(default_factory=dict)
    wraps: dict[str, int] = field(default_factory=dict)
    saturations: dict[str, int] = field(default_factory=dict)
    mean_sent: dict[str, Tensor] = field(default_factory=dict)
    mean_input: dict[str, Tensor] = field(default_factory=dict)


def step_weights(population: Population, steps: int) -> list[float]:
    """DSR's weights of the steps: ``beta^(T - n) / sum`` with ``beta = 1 - dv/4096``; uniform where ``beta`` is 0."""
    beta = 1.0 - population.dv / DECAY_ONE if population.dv < DECAY_ONE else 1.0
    weights = [beta ** (steps - 1 - n) for n in range(steps)]
    total = math.fsum(weights)
    return [w / total for w in weights]


@contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """Keep convolutions to sums of products: no Winograd, no FFT (cuDNN and NNPACK may choose them), no autocast."""
    with ExitStack() as stack:
        stack.enter_context(torch.autocast(device.type, enabled=False))
        stack.enter_context(torch.backends.nnpack.flags(enabled=False))
        if device.type == "cuda":
            stack.enter_context(torch.backends.cudnn.flags(enabled=False, allow_tf32=False))
        yield


def synapse_sum(connection: Connection, weight: Tensor, x: Tensor, target: Shape) -> Tensor:
    """``W x`` of one connection without exponent: ``[B, *source]`` to ``[B, *target]``, in the dtype of both."""
    match connection.synapse:
        case Dense():
            return F.linear(x.flatten(1), weight).unflatten(1, target)
        case Conv2d(stride=stride, padding=padding, dilation=dilation, groups=groups):
            return F.conv2d(x, weight, None, stride, padding, dilation, groups)
        case Scale():
            return x * weight.reshape(-1, *[1] * (len(target) - 1))


def _largest_sum(network: Network, connection: Connection) -> int:
    """Bound on ``|W x|`` and its partial sums for any weights of the declared width."""
    shape = connection.synapse.weight.shape
    fan_in = 1 if isinstance(connection.synapse, Scale) else math.prod(shape[1:])
    low, high = source_range(network, connection)
    return fan_in * 2 ** (connection.weight_bits - 1) * max(abs(low), abs(high))


def _shift(population: Population, connection: Connection) -> int:
    return population.fraction_bits + connection.weight_exponent


def _synapse_dtype(network: Network, connection: Connection) -> torch.dtype:
    """Type in which ``W x`` is exact.

    float32 also asks for inputs of at most 8 bits: then products stay exact where the user allows TF32 or bfloat16.
    """
    low, high = source_range(network, connection)
    if max(abs(low), abs(high)) <= 256 and _largest_sum(network, connection) < 2**24:
        return torch.float32
    return torch.float64


def _state_dtype(network: Network, population: Population) -> torch.dtype:
    """Type in which the membrane's arithmetic is exact.

    Raises
    ------
    UnsupportedError
        If float64 is not enough.
    """
    incoming = list(network.incoming(population.name))
    total = sum(_largest_sum(network, c) << _shift(population, c) for c in incoming)
    if total >= 2**52:
        raise UnsupportedError(
            f"population {population.name!r}: synaptic sums may reach {total:.3g}, beyond the 52 bits that torch's "
            "float64 holds; run it with the engine 'reference'"
        )
    finest = min((_shift(population, c) for c in incoming), default=0)
    # Without decay, v + u + b is a sum of integers of state_bits bits, and u has the grid of its finest connection.
    if population.dv == 0 and population.du == DECAY_ONE and population.state_bits <= 24 and total >> finest < 2**23:
        return torch.float32
    return torch.float64


def _decay(x: Tensor, d: int) -> Tensor:
    """``trunc(x (4096 - d) / 4096)``."""
    if d == 0:
        return x
    return torch.zeros_like(x) if d == DECAY_ONE else torch.trunc(x * (DECAY_ONE - d) / DECAY_ONE)


def _wrap(x: Tensor, bits: int) -> Tensor:
    """Into ``-2^(bits-1) < x <= 2^(bits-1)``."""
    half = 2.0 ** (bits - 1)
    return x - 2 * half * torch.ceil((x - half) / (2 * half))


@torch.no_grad()
def run(
    network: Network,
    x: Tensor,
    weights: Mapping[str, Tensor],
    biases: Mapping[str, Tensor],
    *,
    keep: Collection[str] = (),
    trace: Collection[str] = (),
    count: bool = False,
    means: bool = False,
) -> Outcome:
    """Run a batch, layer by layer over all steps.

    Parameters
    ----------
    network : Network
        Its populations and geometry; the integers are taken from the next arguments.
    x : integers in any dtype [B, *shape] (the same at every step) or [T, B, *shape]
    weights : by connection name, integers in any dtype
    biases : by population name, integers in any dtype
    keep : names of populations
        Whose spikes are wanted. Others are dropped when nothing needs them any more.
    trace : names of populations
        Whose current, u and v are wanted at every step.
    count : bool
        Count overflow events.
    means : bool
        Take the (weighted) means over time that DSR's gradient needs.

    Raises
    ------
    UnsupportedError
        If the network has a cycle, or sums beyond 52 bits.
    """
    order = flow_order(network)
    batch = x.shape[0 if _constant(network, x) else 1]
    out = Outcome()
    sent: dict[str, Tensor] = {INPUT: x}
    if means:
        out.mean_sent[INPUT] = (x if _constant(network, x) else x.mean(0, dtype=torch.float32)).to(torch.float32)
    with exact_products(x.device):
        for i, p in enumerate(order):
            zeros = torch.zeros((batch, *p.shape), dtype=_state_dtype(network, p), device=x.device)
            _run_population(network, p, zeros, sent, weights, biases[p.name], out, p.name in trace, count, means)
            needed = {c.source for q in order[i + 1 :] for c in network.incoming(q.name)}
            for name in [name for name in sent if name not in needed]:
                if name in keep:
                    out.spikes[name] = sent[name]
                del sent[name]
    return out


def flow_order(network: Network) -> tuple[Population, ...]:
    """Populations so that every source comes before its target, delayed connections included.

    Raises
    ------
    UnsupportedError
        If the network has a cycle.
    """
    if not network.acyclic:
        raise UnsupportedError(
            f"network {network.name!r} is recurrent; torch runs networks without cycles only. Use the engine 'fast' "
            "or 'reference'"
        )
    return network.flow


def _constant(network: Network, x: Tensor) -> bool:
    return x.ndim == len(network.input.shape) + 1


def _run_population(
    network: Network,
    p: Population,
    zeros: Tensor,
    sent: dict[str, Tensor],
    weights: Mapping[str, Tensor],
    bias: Tensor,
    out: Outcome,
    traced: bool,
    count: bool,
    means: bool,
) -> None:
    """Advance one population through the whole window; ``zeros [B, *shape]`` has its state's dtype."""
    bias = bias.to(zeros)
    u, v = zeros, zeros + p.v_init
    spikes = zeros.new_zeros((network.steps, *zeros.shape), dtype=torch.uint8) if p.spikes else None
    weight_of_step = step_weights(p, network.steps)
    mean_sent, mean_input = (torch.zeros_like(zeros, dtype=torch.float32) for _ in range(2))
    traces: dict[str, list[Tensor]] = {"current": [], "u": [], "v": []}
    wrapped = saturated = zeros.new_zeros((), dtype=torch.int64)
    limit = float(p.v_max)

    for n, drive in enumerate(_drives(network, p, sent, weights, zeros)):
        exact_u = _decay(u, p.du) + drive
        u = _wrap(exact_u, p.state_bits)
        exact_v = _decay(v, p.dv) + u + bias
        v = exact_v.clamp(-limit, limit)
        if count:
            wrapped = wrapped + (u != exact_u).sum()
            saturated = saturated + (v != exact_v).sum()
        if spikes is not None:
            fired = v > p.threshold
            spikes[n] = fired
            v = v.masked_fill(fired, 0.0) if p.reset == "zero" else v - p.reset_amount * fired
            if means:
                mean_sent += weight_of_step[n] * fired
        if means:
            mean_input += weight_of_step[n] * (u + bias)
        if traced:
            for name, value in (("current", drive), ("u", u), ("v", v)):
                traces[name].append(value.to(torch.int64))

    if spikes is not None:
        sent[p.name] = spikes
    out.v_final[p.name] = v
    if means:
        out.mean_sent[p.name], out.mean_input[p.name] = mean_sent, mean_input
    if count:
        out.wraps[p.name], out.saturations[p.name] = int(wrapped), int(saturated)
    if traced:
        out.current[p.name], out.u[p.name], out.v[p.name] = (torch.stack(traces[w]) for w in ("current", "u", "v"))


def _drives(
    network: Network, p: Population, sent: Mapping[str, Tensor], weights: Mapping[str, Tensor], zeros: Tensor
) -> Iterator[Tensor]:
    """``I 2^f`` of each step ``[B, *shape]``; the products of several steps are taken together."""
    incoming = [(c, weights[c.name].to(zeros.device, _synapse_dtype(network, c))) for c in network.incoming(p.name)]

    def product(c: Connection, weight: Tensor, x: Tensor) -> Tensor:
        return synapse_sum(c, weight, x.to(weight.dtype), p.shape).to(zeros.dtype) * 2.0 ** _shift(p, c)

    constant: dict[str, Tensor] = {
        c.name: product(c, weight, sent[INPUT])
        for c, weight in incoming
        if c.source == INPUT and _constant(network, sent[INPUT])
    }
    widest = max([p.size, *(math.prod(network.shape_of(c.source)) for c, _ in incoming if c.name not in constant)])
    chunk = max(1, min(network.steps, CHUNK_ELEMENTS // max(1, widest * len(zeros))))
    for start in range(0, network.steps, chunk):
        stop = min(start + chunk, network.steps)
        total = torch.zeros((stop - start, *zeros.shape), dtype=zeros.dtype, device=zeros.device)
        for c, weight in incoming:
            first = max(start, c.delay)  # the first step of this chunk at which something arrives
            if first >= stop:
                continue
            if c.name in constant:
                total[first - start :] += constant[c.name]
                continue
            x = sent[c.source][first - c.delay : stop - c.delay]
            total[first - start :] += product(c, weight, x.flatten(0, 1)).unflatten(0, x.shape[:2])
        yield from total
