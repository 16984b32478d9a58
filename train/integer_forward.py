"""The description's integer arithmetic in torch, exact, batched and on any device.

Integers are held in floating point, where they are exact as long as nothing outgrows the mantissa (24 bits in float32,
53 in float64): :func:`synapse_dtype` and :func:`state_dtype` choose the type from worst-case bounds that hold for
every weight of the declared width, so that they stay true while weights are trained. Where floating point does not
reach, because sums are wider or the device has no float64, states are int64 and products are taken of a few bits of the
input at a time. Spikes, membranes and overflow counts are those of :mod:`lapilli.sim.reference`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

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
    spikes : dict of uint8 or int32 [T, B, *shape]
    v_final : dict of float [B, *shape]
    current, u, v : dict of int64 [T, B, *shape]
        Of the traced populations.
    wraps, saturations : dict of int
        Overflow events; only if counted.
    mean_sent : dict of float32 [B, *shape]
        (Weighted) mean of what a population, or the input, sends.
    mean_input : dict of float32 [B, *shape]
        (Weighted) mean of ``u + b``, state units; of ``I 2^f + b``, before it wraps, where the current has no memory.
        Without leak in the membrane, both means are exact sums, divided once.
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


def leaks(population: Population) -> bool:
    """Whether the membrane keeps a part of itself, so that later steps weigh more."""
    return 0 < population.dv < DECAY_ONE


def step_weights(population: Population, steps: int) -> list[float]:
    """DSR's weights of the steps: ``beta^(T - n) / sum`` with ``beta = 1 - dv/4096``; uniform where ``beta`` is 0."""
    beta = 1.0 - population.dv / DECAY_ONE if leaks(population) else 1.0
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


def _as_matrix_product(connection: Connection, weight: Tensor, x: Tensor, target: Shape) -> Tensor:
    """:func:`synapse_sum` with convolutions as one matrix product of all samples.

    For accelerators: a product is a sum of products in any library, and torch's own convolutions, which are left
    without cuDNN, go through the samples one by one.
    """
    synapse = connection.synapse
    if not isinstance(synapse, Conv2d):
        return synapse_sum(connection, weight, x, target)
    (py, px), (sy, sx), (dy, dx) = synapse.padding, synapse.stride, synapse.dilation
    c_out, c_in, k_y, k_x = weight.shape
    groups, (_, y_out, x_out) = synapse.groups, target
    padded = F.pad(x, (px, px, py, py)).unflatten(1, (groups, c_in))
    windows = padded.unfold(3, dy * (k_y - 1) + 1, sy).unfold(4, dx * (k_x - 1) + 1, sx)[..., ::dy, ::dx]
    patches = windows.permute(1, 2, 5, 6, 0, 3, 4).reshape(groups, c_in * k_y * k_x, -1)
    sums = weight.reshape(groups, c_out // groups, -1) @ patches
    return sums.reshape(c_out, len(x), y_out, x_out).movedim(0, 1)


def _by_matrices(device: torch.device) -> bool:
    return device.type != "cpu"


def _fan_in(connection: Connection) -> int:
    shape = connection.synapse.weight.shape
    return 1 if isinstance(connection.synapse, Scale) else math.prod(shape[1:])


def _largest_sum(network: Network, connection: Connection) -> int:
    """Bound on ``|W x|`` and its partial sums for any weights of the declared width."""
    low, high = source_range(network, connection)
    return _fan_in(connection) * 2 ** (connection.weight_bits - 1) * max(abs(low), abs(high))


def weight_shift(population: Population, connection: Connection) -> int:
    """``f + e``: a weight of 1 counts ``2^(f + e)`` state units."""
    return population.fraction_bits + connection.weight_exponent


def _has_float64(device: torch.device) -> bool:
    return device.type != "mps"


def synapse_dtype(network: Network, connection: Connection, device: torch.device) -> torch.dtype:
    """Type in which ``W x`` is exact.

    float32 also asks for inputs of at most 8 bits: then products stay exact where the user allows TF32 or bfloat16.
    """
    low, high = source_range(network, connection)
    narrow = max(abs(low), abs(high)) <= 256 and _largest_sum(network, connection) < 2**24
    return torch.float32 if narrow or not _has_float64(device) else torch.float64


def digit_bits(network: Network, connection: Connection, device: torch.device) -> int | None:
    """Bits of the input that one product can take with exact sums; None where it takes the whole input.

    Raises
    ------
    UnsupportedError
        If a neuron hears so many others that not even single bits can be summed exactly.
    """
    dtype = synapse_dtype(network, connection, device)
    limit = 2**24 if dtype == torch.float32 else 2**53
    if _largest_sum(network, connection) < limit:
        return None
    largest = (limit - 1) // (_fan_in(connection) * 2 ** (connection.weight_bits - 1))
    if largest < 1:
        raise UnsupportedError(
            f"connection {connection.name!r}: {_fan_in(connection)} synapses on a neuron are more than {dtype} sums "
            f"exactly on {device}; run it with the engine 'fast'"
        )
    bits = (largest + 1).bit_length() - 1
    return min(bits, 8) if dtype == torch.float32 else bits


def state_dtype(network: Network, population: Population, device: torch.device) -> torch.dtype:
    """Type in which the membrane's arithmetic is exact."""
    incoming = list(network.incoming(population.name))
    total = sum(_largest_sum(network, c) << weight_shift(population, c) for c in incoming)
    finest = min((weight_shift(population, c) for c in incoming), default=0)
    # Without decay, v + u + b is a sum of integers of state_bits bits, and u has the grid of its finest connection.
    if population.dv == 0 and population.du == DECAY_ONE and population.state_bits <= 24 and total >> finest < 2**23:
        return torch.float32
    return torch.float64 if total < 2**52 and _has_float64(device) else torch.int64


def _decay(x: Tensor, d: int) -> Tensor:
    """``trunc(x (4096 - d) / 4096)``."""
    if d == 0:
        return x
    if d == DECAY_ONE:
        return torch.zeros_like(x)
    return torch.div(x * (DECAY_ONE - d), DECAY_ONE, rounding_mode="trunc")


def _wrap(x: Tensor, bits: int) -> Tensor:
    """Into ``-2^(bits-1) < x <= 2^(bits-1)``."""
    half = 2 ** (bits - 1)
    if not x.is_floating_point():
        return half - torch.remainder(half - x, 2 * half)
    return x - 2.0 * half * torch.ceil((x - half) / (2.0 * half))


class Step(NamedTuple):
    """One time step of a population; all ``[B, *shape]``."""

    exact_u: Tensor  # before it wraps
    u: Tensor
    exact_v: Tensor  # before it saturates
    charged: Tensor  # membrane before the reset
    v: Tensor  # after it
    fired: Tensor | None  # what is sent: bool, or payloads as int32; None where there are no spikes


def neuron_step(p: Population, u: Tensor, v: Tensor, drive: Tensor, bias: Tensor) -> Step:
    """Advance a population, as :func:`lapilli.arithmetic.neuron_step` does; ``drive`` is ``I 2^f``."""
    exact_u = _decay(u, p.du) + drive
    u = _wrap(exact_u, p.state_bits)
    exact_v = _decay(v, p.dv) + u + bias
    charged = exact_v.clamp(-p.v_max, p.v_max)
    if p.reset == "none":
        return Step(exact_u, u, exact_v, charged, charged, None)
    fired = charged > p.threshold
    sent = _payload(p, charged) * fired if p.graded else fired
    v = charged.masked_fill(fired, 0) if p.reset == "zero" else charged - p.reset_amount * sent
    return Step(exact_u, u, exact_v, charged, v, sent)


def _payload(p: Population, charged: Tensor) -> Tensor:
    """``clip(floor(v / 2^g), 1, m)``, as int32."""
    shifted = (
        torch.floor(charged * 2.0**-p.payload_shift) if charged.is_floating_point() else charged >> p.payload_shift
    )
    return shifted.clamp(1, p.payload_max).to(torch.int32)


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
        If a neuron has more synapses than the device sums exactly.
    """
    constant = is_constant(network, x)
    batch = x.shape[0 if constant else 1]
    out = Outcome()
    sent: dict[str, Tensor] = {INPUT: x}
    if means:
        out.mean_sent[INPUT] = (x if constant else x.mean(0, dtype=torch.float32)).to(torch.float32)
    layers: dict[str, _Layer] = {}
    with exact_products(x.device):
        for first in range(0, network.steps, network.steps_at_once):
            window = range(first, min(first + network.steps_at_once, network.steps))
            for i, p in enumerate(network.flow):
                if first == 0:
                    size = (batch, *p.shape)
                    layers[p.name] = _Layer(
                        network, p, sent, weights, biases[p.name], size, x.device, p.name in trace, means
                    )
                layers[p.name].advance(window, count)
                if window.stop < network.steps:
                    continue
                layers.pop(p.name).finish(out, count)
                needed = {c.source for q in network.flow[i + 1 :] for c in network.incoming(q.name)}
                for name in [name for name in sent if name not in needed and name not in layers]:
                    if name in keep:
                        out.spikes[name] = sent[name]
                    del sent[name]
    return out


def is_constant(network: Network, x: Tensor) -> bool:
    """Whether the input is one frame for all steps."""
    return x.ndim == len(network.input.shape) + 1


def weighted_sum(x: Tensor, weight_of_step: Sequence[float] | None) -> Tensor:
    """Sum over steps ``[T, B, ...]``: float32, weighted, or of integers, exact."""
    if weight_of_step is None:
        return x.sum(0)
    total = torch.zeros(x.shape[1:], dtype=torch.float32, device=x.device)
    for weight, frame in zip(weight_of_step, x, strict=True):
        total += weight * frame
    return total


def input_sum(
    network: Network, p: Population, sent: Mapping[str, Tensor], weights: Mapping[str, Tensor], bias: Tensor
) -> Tensor:
    """(Weighted) sum over all steps of ``I 2^f + b``: ``u + b`` before it wraps, where the current has no memory.

    One product for each connection. Exact, if the membrane does not leak; weights of steps are as :func:`step_weights`
    has them.

    Parameters
    ----------
    network : Network
    p : Population
    sent : by source, integers [T, B, *shape], or the input [B, *shape]
    weights : by connection name, integers in any dtype
    bias : integers

    Returns
    -------
    float64 [B, *shape]
        float32 on a device without float64.
    """
    each = step_weights(p, network.steps) if leaks(p) else None
    wide = torch.float64 if _has_float64(bias.device) else torch.float32
    total = (1 if each else network.steps) * bias.to(wide)
    for c in network.incoming(p.name):
        steps, x = max(0, network.steps - c.delay), sent[c.source]
        late = each[network.steps - steps :] if each else None
        if c.source == INPUT and is_constant(network, x):
            x = x.to(wide) * (math.fsum(late) if late is not None else steps)
        else:
            x = weighted_sum(x[:steps], late)
        narrow = each is not None or max(1, steps) * _largest_sum(network, c) < 2**24
        weight = weights[c.name].to(bias.device, torch.float32 if narrow else wide)
        with exact_products(x.device):
            product = synapse_sum(c, weight, x.to(weight.dtype), p.shape)
        total = total + product.to(wide) * 2.0 ** weight_shift(p, c)
    return total


class _Layer:
    """A population while it runs: its state, its spikes so far and what is collected of it."""

    def __init__(
        self,
        network: Network,
        p: Population,
        sent: dict[str, Tensor],
        weights: Mapping[str, Tensor],
        bias: Tensor,
        size: Shape,
        device: torch.device,
        traced: bool,
        means: bool,
    ) -> None:
        zeros = torch.zeros(size, dtype=state_dtype(network, p, device), device=device)
        self.p, self.network, self.sent = p, network, sent
        self.u, self.v = zeros, zeros + p.v_init
        self.bias = bias.to(zeros)
        self.incoming = [
            (c, weights[c.name].to(device, synapse_dtype(network, c, device))) for c in network.incoming(p.name)
        ]
        self.constant: dict[str, Tensor] = {
            c.name: self._product(c, weight, sent[INPUT])
            for c, weight in self.incoming
            if c.source == INPUT and is_constant(network, sent[INPUT])
        }
        if p.spikes:
            dtype = torch.int32 if p.graded else torch.uint8
            sent[p.name] = zeros.new_zeros((network.steps, *zeros.shape), dtype=dtype)
        self.means, self.weights = means, weights
        self.weight_of_step = step_weights(p, network.steps) if leaks(p) else None
        self.sums_inputs = means and p.du != DECAY_ONE  # without memory in the current, one product at the end does
        sums = torch.float32 if leaks(p) else torch.float64 if _has_float64(device) else torch.int64
        self.sent_sum, self.input_sum = (torch.zeros_like(zeros, dtype=dtype) for dtype in (torch.float32, sums))
        self.traces: dict[str, list[Tensor]] | None = {"current": [], "u": [], "v": []} if traced else None
        self.wrapped = self.saturated = zeros.new_zeros((), dtype=torch.int64)

    def advance(self, window: range, count: bool) -> None:
        """Take the steps of the window."""
        p, u, v = self.p, self.u, self.v
        for n, drive in zip(window, self._drives(window), strict=True):
            step = neuron_step(p, u, v, drive, self.bias)
            u, v = step.u, step.v
            if count:
                self.wrapped = self.wrapped + (u != step.exact_u).sum()
                self.saturated = self.saturated + (step.charged != step.exact_v).sum()
            if step.fired is not None:
                self.sent[p.name][n] = step.fired
            if self.means:
                weight = self.weight_of_step[n] if self.weight_of_step else 1
                if self.sums_inputs:
                    self.input_sum += weight * (u + self.bias)
                if step.fired is not None:
                    self.sent_sum += weight * step.fired
            if self.traces:
                for name, value in (("current", drive), ("u", u), ("v", v)):
                    self.traces[name].append(value.to(torch.int64))
        self.u, self.v = u, v

    def finish(self, out: Outcome, count: bool) -> None:
        """Hand over what was collected."""
        name = self.p.name
        out.v_final[name] = self.v
        if self.means:
            if not self.sums_inputs:
                self.input_sum = input_sum(self.network, self.p, self.sent, self.weights, self.bias)
            total = 1 if self.weight_of_step else self.network.steps
            out.mean_sent[name], out.mean_input[name] = (s.float() / total for s in (self.sent_sum, self.input_sum))
        if count:
            out.wraps[name], out.saturations[name] = int(self.wrapped), int(self.saturated)
        if self.traces:
            out.current[name], out.u[name], out.v[name] = (torch.stack(self.traces[w]) for w in ("current", "u", "v"))

    def _product(self, c: Connection, weight: Tensor, x: Tensor) -> Tensor:
        """``W x 2^(e + f)`` in the type of the state."""
        multiply = _as_matrix_product if _by_matrices(x.device) else synapse_sum
        shift, state = weight_shift(self.p, c), self.v.dtype
        bits = digit_bits(self.network, c, x.device)
        if bits is None:
            sums = multiply(c, weight, x.to(weight.dtype), self.p.shape).to(state)
            return sums * 2.0**shift if state.is_floating_point else sums << shift
        x = x.to(torch.int64)
        low, high = source_range(self.network, c)
        total = torch.zeros((), dtype=torch.int64, device=x.device)
        for k in range(0, max(abs(low), abs(high)).bit_length() + 1, bits):
            rest = x >> k  # its lowest digit is never negative; the last one takes the sign
            digit = rest if k + bits > max(abs(low), abs(high)).bit_length() else rest & (2**bits - 1)
            total = total + (multiply(c, weight, digit.to(weight.dtype), self.p.shape).to(torch.int64) << k)
        return (total << shift).to(state)

    def _drives(self, window: range) -> Iterator[Tensor]:
        """``I 2^f`` of each step ``[B, *shape]``; the products of several steps are taken together."""
        network, p, zeros = self.network, self.p, self.v
        widest = max(
            [p.size, *(_widest(network, c, zeros.device) for c, _ in self.incoming if c.name not in self.constant)]
        )
        chunk = max(1, min(len(window), CHUNK_ELEMENTS // max(1, widest * len(zeros))))
        for start in window[::chunk]:
            stop = min(start + chunk, window.stop)
            total = torch.zeros((stop - start, *zeros.shape), dtype=zeros.dtype, device=zeros.device)
            for c, weight in self.incoming:
                first = max(start, c.delay)  # the first step of this chunk at which something arrives
                if first >= stop:
                    continue
                if c.name in self.constant:
                    total[first - start :] += self.constant[c.name]
                    continue
                x = self.sent[c.source][first - c.delay : stop - c.delay]
                total[first - start :] += self._product(c, weight, x.flatten(0, 1)).unflatten(0, x.shape[:2])
            yield from total


def _widest(network: Network, c: Connection, device: torch.device) -> int:
    """Elements that a product holds for one sample at one step."""
    source = math.prod(network.shape_of(c.source))
    if not _by_matrices(device) or not isinstance(c.synapse, Conv2d):
        return source
    return max(source, _fan_in(c) * c.synapse.groups * math.prod(network.shape_of(c.target)[1:]))
