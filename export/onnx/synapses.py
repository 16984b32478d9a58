"""Connections of the description as standard ONNX operators.

Dense and convolutional synapses are ``MatMulInteger`` and ``ConvInteger`` on unsigned digits of 7 bits. Why 7: x86
processors without VNNI add pairs of 8-bit products in 16 bits, saturating, and 2 x 127 x 128 is the most that fits
(ONNX Runtime's kernels use ``vpmaddubsw`` there). Spikes are one digit. A graded input of more than 7 bits is split;
its highest digit carries the sign in a zero point, which is also what a convolution pads with. So sums are exact on
every processor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import singledispatchmethod
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from ...errors import UnsupportedError
from ...network import Connection, Conv2d, Dense, Population, Scale, Shape, Synapse

DIGIT_BITS = 7
DIGIT = 2**DIGIT_BITS
ACCUMULATOR = 2**31  # MatMulInteger and ConvInteger accumulate in int32


@dataclass
class Nodes:
    """Nodes of one graph under construction. A node is named by its first output, but for populations.

    No two values share a name: what belongs to a population or the input ends in one set of suffixes (``drive``,
    ``spikes``, ...), what belongs to a connection in another (``weight``, ``current``, ...).
    """

    nodes: list[onnx.NodeProto] = field(default_factory=list)

    def add(self, op: str, name: str, *inputs: str, outputs: Sequence[str] = (), domain: str = "", **given: Any) -> str:
        """Append a node; returns its first output."""
        values = list(outputs) or [name]
        self.nodes.append(helper.make_node(op, inputs, values, name=name, domain=domain, **given))
        return values[0]

    def constant(self, name: str, value: npt.ArrayLike, dtype: type[np.generic] = np.int64) -> str:
        """Append a constant tensor."""
        return self.add("Constant", name, value=numpy_helper.from_array(np.asarray(value, dtype), ""))

    def zeros(self, name: str, shape: str, dtype: type[np.generic] = np.int64) -> str:
        """Append a tensor of zeros of a shape that is known when the graph runs."""
        return self.add("ConstantOfShape", name, shape, value=numpy_helper.from_array(np.zeros(1, dtype), ""))


@dataclass(frozen=True)
class Digit:
    """Some bits of what a source sends: ``factor (value - zero)``, value uint8 in 0..127."""

    value: str
    factor: int = 1
    zero: int = 0


@dataclass(frozen=True)
class Sent:
    """What a source sends, as it arrives: an integer tensor ``[*lead, *shape]``, and the same as digits.

    ``lead`` is ``(T, "batch")``, ``("frames", "batch")`` (the input, of one frame or of T) or, inside the Scan of a
    cyclic network, ``("batch",)``.
    """

    value: str
    shape: Shape
    digits: tuple[Digit, ...]
    lead: tuple[int | str, ...]


def split(nodes: Nodes, value: str, stem: str, low: int, high: int) -> tuple[Digit, ...]:
    """Digits of an int32 value that is in ``low..high`` or 0."""
    low, high = min(low, 0), max(high, 0)
    digits: list[Digit] = []

    def as_digit(digit: str, zero: int = 0) -> None:
        name = f"{stem}_digit{len(digits)}"
        digits.append(Digit(nodes.add("Cast", name, digit, to=TensorProto.UINT8), 1 << DIGIT_BITS * len(digits), zero))

    while high - low >= DIGIT:
        i = len(digits)
        base = nodes.constant(f"{stem}_base{i}", DIGIT, np.int32)
        digit = nodes.add("Mod", f"{stem}_low{i}", value, base)  # has the sign of the divisor: 0..127
        rest = nodes.add("Sub", f"{stem}_rest{i}", value, digit)
        value = nodes.add("Div", f"{stem}_high{i}", rest, base)  # without remainder
        as_digit(digit)
        low, high = low >> DIGIT_BITS, high >> DIGIT_BITS
    if low < 0:
        value = nodes.add("Add", f"{stem}_shifted", value, nodes.constant(f"{stem}_zero", -low, np.int32))
    as_digit(value, -low)
    return tuple(digits)


def fits_accumulator(synapse: Synapse) -> bool:
    """Whether every partial sum over one digit stays in int32 even if a kernel shifts weights to 0..255 first."""
    fan_in = synapse.weight[0].size
    return fan_in * 255 * (DIGIT - 1) < ACCUMULATOR


@dataclass
class Synapses:
    """Writes connections into ``nodes``; constants go to ``outer``, the main graph, where runtimes fold them."""

    nodes: Nodes
    outer: Nodes

    def current(self, c: Connection, sent: Sent, target: Population, name: str) -> str:
        """The drive ``W x 2^(e+f)`` that one connection gives: int64 ``[*lead, *target.shape]``, under ``name``."""
        total = ""
        for i, (part, factor) in enumerate(self._sums(c.synapse, c, sent, target.shape)):
            if i == 0:
                total = part  # the lowest digit, of factor 1
                continue
            scaled = self.nodes.add(
                "Mul", f"{c.name}/part{i}", part, self.outer.constant(f"{c.name}/factor{i}", factor)
            )
            total = self.nodes.add("Add", f"{c.name}/sum_to{i}", total, scaled)
        one = self.outer.constant(f"{c.name}/weight_one", 1 << (target.fraction_bits + c.weight_exponent))
        return self.nodes.add("Mul", name, total, one)

    @singledispatchmethod
    def _sums(self, synapse: Synapse, c: Connection, sent: Sent, target: Shape) -> list[tuple[str, int]]:  # noqa: ARG002
        """``W x`` without exponent: int64 sums, one per digit from the lowest, with their factors."""
        raise UnsupportedError(f"connection {c.name!r}: {type(synapse).__name__} has no ONNX form")

    @_sums.register
    def _(self, synapse: Scale, c: Connection, sent: Sent, target: Shape) -> list[tuple[str, int]]:  # noqa: ARG002
        weight = self.outer.add("Cast", f"{c.name}/weight_int64", f"{c.name}/weight", to=TensorProto.INT64)
        per_channel = self.outer.constant(f"{c.name}/weight_shape", [-1, *[1] * (len(target) - 1)])
        weight = self.outer.add("Reshape", f"{c.name}/weight_by_channel", weight, per_channel)
        x = self.nodes.add("Cast", f"{c.name}/x", sent.value, to=TensorProto.INT64)
        return [(self.nodes.add("Mul", f"{c.name}/sum", x, weight), 1)]

    @_sums.register
    def _(self, synapse: Dense, c: Connection, sent: Sent, target: Shape) -> list[tuple[str, int]]:
        keep = [0] * len(sent.lead)
        weight = self.outer.add("Transpose", f"{c.name}/weight_transposed", f"{c.name}/weight", perm=[1, 0])
        flat = self.outer.constant(f"{c.name}/flat_shape", [*keep, synapse.weight.shape[1]])
        full = self.outer.constant(f"{c.name}/target_shape", [*keep, *target])
        if not fits_accumulator(synapse):  # int64 throughout
            weight = self.outer.add("Cast", f"{c.name}/weight_int64", weight, to=TensorProto.INT64)
            x = self.nodes.add("Cast", f"{c.name}/x", sent.value, to=TensorProto.INT64)
            x = self.nodes.add("Reshape", f"{c.name}/x_flat", x, flat)
            y = self.nodes.add("MatMul", f"{c.name}/sum_flat", x, weight)
            return [(self.nodes.add("Reshape", f"{c.name}/sum", y, full), 1)]
        sums: list[tuple[str, int]] = []
        for i, digit in enumerate(sent.digits):
            x = self.nodes.add("Reshape", f"{c.name}/x{i}", digit.value, flat)
            zero = self.outer.constant(f"{c.name}/zero{i}", digit.zero, np.uint8)
            y = self.nodes.add("MatMulInteger", f"{c.name}/int32_sum{i}", x, weight, zero)
            y = self.nodes.add("Cast", f"{c.name}/sum{i}_flat", y, to=TensorProto.INT64)
            sums.append((self.nodes.add("Reshape", f"{c.name}/sum{i}", y, full), digit.factor))
        return sums

    @_sums.register
    def _(self, synapse: Conv2d, c: Connection, sent: Sent, target: Shape) -> list[tuple[str, int]]:
        if not fits_accumulator(synapse):
            raise UnsupportedError(
                f"connection {c.name!r}: its sums may exceed 32 bits, which ONNX's ConvInteger cannot hold; "
                "split the convolution over input channels"
            )
        over_time = len(sent.lead) > 1  # ConvInteger has one batch axis
        flat = self.outer.constant(f"{c.name}/flat_shape", [-1, *sent.shape]) if over_time else ""
        full = self._with_lead(c, sent, target) if over_time else ""
        # ONNX Runtime before 1.24 convolves uint8 weights only: shift them, and take 128 as their zero.
        half = self.outer.constant(f"{c.name}/weight_zero_int32", 128, np.int32)
        weight = self.outer.add("Cast", f"{c.name}/weight_int32", f"{c.name}/weight", to=TensorProto.INT32)
        weight = self.outer.add("Add", f"{c.name}/weight_shifted", weight, half)
        weight = self.outer.add("Cast", f"{c.name}/weight_uint8", weight, to=TensorProto.UINT8)
        weight_zero = self.outer.constant(f"{c.name}/weight_zero", 128, np.uint8)
        sums: list[tuple[str, int]] = []
        for i, digit in enumerate(sent.digits):
            x = self.nodes.add("Reshape", f"{c.name}/x{i}", digit.value, flat) if over_time else digit.value
            y = self.nodes.add(
                "ConvInteger",
                f"{c.name}/int32_sum{i}",
                x,
                weight,
                self.outer.constant(f"{c.name}/zero{i}", digit.zero, np.uint8),
                weight_zero,
                kernel_shape=synapse.weight.shape[2:],
                strides=synapse.stride,
                pads=synapse.padding * 2,
                dilations=synapse.dilation,
                group=synapse.groups,
            )
            y = self.nodes.add("Cast", f"{c.name}/sum{i}_flat", y, to=TensorProto.INT64)
            if over_time:
                y = self.nodes.add("Reshape", f"{c.name}/sum{i}", y, full, allowzero=1)  # a batch may be empty
            sums.append((y, digit.factor))
        return sums

    def _with_lead(self, c: Connection, sent: Sent, target: Shape) -> str:
        """The shape ``[*sent.lead, *target]``; how many frames the input has is known only when the graph runs."""
        name = f"{c.name}/target_shape"
        if isinstance(sent.lead[0], int):
            return self.outer.constant(name, [sent.lead[0], -1, *target])
        lead = self.outer.add("Shape", f"{name}_lead", sent.value, start=0, end=2)
        return self.outer.add("Concat", name, lead, self.outer.constant(f"{name}_rest", target), axis=0)
