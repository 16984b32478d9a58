"""From the description to an ordinary graph of Lava Processes.

One Process per population and per connection. The stock ``LIFReset``, ``GradedReluVec``, ``Dense``, ``Sparse``,
``Conv`` and ``DelayDense`` are used wherever they compute exactly what the description says, which is checked here, not
hoped for. Every population Process has the description's own shape (``(C, Y, X)`` in C order); only ``Conv`` lives in
Lava's ``(X, Y, C)``, and its ports are transposed where it is connected.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import singledispatch
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from ...bounds import largest_sum, population_bounds
from ...errors import UnsupportedError
from ...network import (
    DECAY_ONE,
    INPUT,
    MAX_PAYLOAD,
    Connection,
    Conv2d,
    Dense,
    IntArray,
    Network,
    Population,
    Scale,
)
from ..schedule import Schedule, make_schedule
from .compatibility import import_lava

BIAS_MANTISSA = (-4096, 4095)  # 13 bits with sign (lava.proc.lif.models.PyLifModelBitAcc)
BIAS_EXPONENT_MAX = 7  # 3 bits
THRESHOLD_GRID = 64  # Lava shifts the threshold's mantissa left by 6 bits
STOCK_STATE_BITS = 24
STOCK_FRACTION_BITS = 6
ConvolutionAs: TypeAlias = Literal["conv", "sparse"]

CONV_SIZE_MAX = 127  # Conv's model keeps its sizes in int8 and adds them without widening
CONV_SUM_BITS = 24  # Conv wraps its sums to 24 bits


@dataclass
class LavaNetwork:
    """A Lava graph that computes a description.

    Attributes
    ----------
    network : Network
    schedule : Schedule
    processes : dict of lava AbstractProcess
        By population: ``LIFReset`` or ``SoftResetLIF``, with ports ``a_in`` and ``s_out`` and Vars ``u`` and ``v``; or
        ``GradedReluVec``, whose Vars keep nothing.
    connections : dict of lava AbstractProcess
        By connection: ``Dense``, ``DelayDense``, ``Sparse`` or ``Conv``.
    delays : dict of lava AbstractProcess
        By connection, the ``AxonDelay`` in front of it, where there is one.
    activation_shift : dict of int
        By population: state units per unit of ``a_in``, as a power of two.
    source : FrameSource or None
        The input's Process, if an input was given. Otherwise connect your own: see :meth:`connect_input`.
    """

    network: Network
    schedule: Schedule
    processes: dict[str, Any] = field(default_factory=dict)
    connections: dict[str, Any] = field(default_factory=dict)
    delays: dict[str, Any] = field(default_factory=dict)
    activation_shift: dict[str, int] = field(default_factory=dict)
    source: Any = None

    def run_config(self) -> Any:
        """The run configuration that selects the fixed-point models."""
        from lava.magma.core.run_configs import Loihi2SimCfg

        return Loihi2SimCfg(select_tag="fixed_pt")

    def connect_input(self, port: Any) -> None:
        """Connect an OutPort of the input's shape, which sends step 1 of the first sample at chip step 1."""
        for c in self.network.outgoing(INPUT):
            _connect_source(self, c, port)

    def connect_activation(self, population: str, port: Any) -> None:
        """Connect an InPort of a population's shape to all that the population receives."""
        for c in self.network.incoming(population):
            _output_port(self.connections[c.name], self.network.shape_of(population)).connect(port)

    def run_steps(self, steps: int) -> None:
        """Run that many chip steps in this Python process; the first call compiles the graph."""
        from lava.magma.core.run_conditions import RunSteps

        next(iter(self.processes.values())).run(condition=RunSteps(num_steps=steps), run_cfg=self.run_config())

    def run(self, samples: int) -> None:
        """Run the chip steps of ``samples`` samples back to back, from the beginning."""
        self.run_steps(self.schedule.total_steps(samples))

    def stop(self) -> None:
        """End Lava's processes."""
        next(iter(self.processes.values())).stop()


def build(
    network: Network,
    frames: npt.NDArray[Any] | None = None,
    hold: int = 1,
    convolution: ConvolutionAs = "conv",
) -> LavaNetwork:
    """Build the Lava graph of a description.

    Parameters
    ----------
    network : Network
    frames : integer array [F, *shape], optional
        Encoded input, sample after sample; each frame is sent for ``hold`` chip steps. A constant input of B samples
        is ``frames[B]`` with ``hold = network.steps``; event frames are ``frames[B T]`` with ``hold = 1``.
    convolution : {"conv", "sparse"}
        The stock Process for convolutions. Lava's CPU model of ``Conv`` walks over all pairs of channels in Python;
        ``Sparse`` has the same weights written out as a matrix and is ten to a hundred times faster there.
        ``Sparse`` is also taken where ``Conv`` cannot be exact (see :data:`CONV_SIZE_MAX`).

    Raises
    ------
    UnsupportedError
        If Lava cannot represent something exactly; the message names it.
    MissingDependencyError
        If Lava is not installed.
    """
    import_lava()
    lava = LavaNetwork(network, make_schedule(network))
    for p in network.populations:
        lava.processes[p.name] = _neurons(lava, p)
    for c in network.connections:
        _add_connection(lava, c, convolution)
    if frames is not None:
        from .processes.frame_source import FrameSource

        lava.source = FrameSource(frames=frames, hold=hold, name="input")
        lava.connect_input(lava.source.s_out)
    return lava


# Populations


def bias_registers(bias: IntArray) -> tuple[IntArray, IntArray] | None:
    """Loihi's (mantissa, exponent) of each bias with ``mantissa << exponent == bias``, or None if one has none."""
    low, high = BIAS_MANTISSA
    mantissa, exponent = bias.copy(), np.zeros_like(bias)
    for e in range(1, BIAS_EXPONENT_MAX + 1):
        too_wide = (mantissa < low) | (mantissa > high)
        mantissa, exponent = np.where(too_wide, bias >> e, mantissa), np.where(too_wide, e, exponent)
    fits = (mantissa >= low) & (mantissa <= high) & (mantissa << exponent == bias)
    return (mantissa, exponent) if bool(fits.all()) else None


def fits_stock_lif(network: Network, p: Population) -> bool:
    """Whether Lava's ``LIFReset`` computes this population exactly, for any input.

    Lava wraps the current once where the description wraps it as often as needed, hence the bound on the drive.
    """
    low, high = population_bounds(network, p).drive
    return (
        p.reset == "zero"
        and not p.graded
        and p.v_init == 0
        and p.threshold % THRESHOLD_GRID == 0
        and p.state_bits == STOCK_STATE_BITS
        and p.fraction_bits == STOCK_FRACTION_BITS
        and all(c.weight_exponent >= 0 for c in network.incoming(p.name))
        and max(-low, high) < 2**STOCK_STATE_BITS
        and bias_registers(p.bias) is not None
    )


def _activation_shift(network: Network, p: Population) -> int:
    """State units per unit of ``a_in``, as a power of two; less than ``f`` where an exponent is negative.

    Then connections send in units of the smallest one, and the neuron shifts by as much less.
    """
    return p.fraction_bits + min(0, *(c.weight_exponent for c in network.incoming(p.name)), 0)


def fits_stock_relu(network: Network, p: Population) -> bool:
    """Whether Lava's ``GradedReluVec`` computes this population exactly, for any input.

    It sends what arrives, where that exceeds a threshold: no memory, no bias, no largest payload, no width to leave.
    """
    shift, bounds = _activation_shift(network, p), population_bounds(network, p)
    low, high = (reach >> shift for reach in bounds.drive)
    return (
        p.graded
        and p.du == p.dv == DECAY_ONE
        and not p.bias.any()
        and not (bounds.can_wrap or bounds.can_saturate)
        and p.payload_shift == shift
        and high <= p.payload_max
        and low > -MAX_PAYLOAD
    )


def _neurons(lava: LavaNetwork, p: Population) -> Any:
    window: dict[str, Any] = {
        "reset_interval": lava.schedule.interval,
        "reset_offset": lava.schedule.first_step(p.name),
        "name": p.name,
    }
    if fits_stock_lif(lava.network, p):
        from lava.proc.lif.process import LIFReset

        registers = bias_registers(p.bias)
        assert registers is not None
        mantissa, exponent = (np.broadcast_to(r, p.shape) for r in registers)
        lava.activation_shift[p.name] = p.fraction_bits
        return LIFReset(
            shape=p.shape,
            du=p.du - 1,  # Loihi adds 1 to du; -1 keeps the current for ever
            dv=p.dv,
            vth=p.threshold // THRESHOLD_GRID,
            bias_mant=mantissa,
            bias_exp=exponent,
            **window,
        )
    shift = lava.activation_shift[p.name] = _activation_shift(lava.network, p)
    if fits_stock_relu(lava.network, p):
        from lava.proc.graded.process import GradedReluVec

        return GradedReluVec(shape=p.shape, vth=p.threshold >> shift)
    from .processes.soft_reset_lif import SoftResetLIF

    return SoftResetLIF(
        shape=p.shape,
        threshold=p.threshold,
        reset=p.reset,
        reset_amount=p.reset_amount,
        du=p.du,
        dv=p.dv,
        bias=p.bias,
        v_init=p.v_init,
        payload_max=p.payload_max,
        payload_shift=p.payload_shift,
        fraction_bits=p.fraction_bits,
        state_bits=p.state_bits,
        activation_shift=shift,
        **window,
    )


# Connections


@dataclass(frozen=True)
class _Wiring:
    """What a synapse needs to know to become a Process."""

    connection: Connection
    source: tuple[int, ...]  # shapes
    target: tuple[int, ...]
    exponent: int  # of the weights relative to the target's unit of a_in, >= 0
    message_bits: int  # 0: plain spikes
    target_population: Population
    activation_shift: int
    largest: int  # magnitude that a sum without exponent can reach
    convolution: ConvolutionAs


def _add_connection(lava: LavaNetwork, c: Connection, convolution: ConvolutionAs) -> None:
    network = lava.network
    target = network.population(c.target)
    low, high = network.sent_range(c.source)
    shift = lava.activation_shift[c.target]
    wiring = _Wiring(
        connection=c,
        source=network.shape_of(c.source),
        target=target.shape,
        exponent=target.fraction_bits + c.weight_exponent - shift,
        message_bits=max(1, max(abs(low), abs(high)).bit_length()) if network.sends_graded(c.source) else 0,
        target_population=target,
        activation_shift=shift,
        largest=largest_sum(network, c),
        convolution=convolution,
    )
    extra = lava.schedule.extra_delay[c.name]
    process = _dense(c.synapse, wiring, extra) if _delays_itself(lava, c) else _process(c.synapse, wiring)
    lava.connections[c.name] = process
    _output_port(process, target.shape).connect(lava.processes[c.target].a_in)
    if c.source != INPUT:
        _connect_source(lava, c, lava.processes[c.source].s_out)


def _delays_itself(lava: LavaNetwork, c: Connection) -> bool:
    """Whether the connection is a ``DelayDense``: it waits, and no spike of it can outlive a window."""
    return isinstance(c.synapse, Dense) and c.delay == 0 and lava.schedule.extra_delay[c.name] > 0


def _connect_source(lava: LavaNetwork, c: Connection, port: Any) -> None:
    """Connect a sender to a connection, through a delay where one is due."""
    extra = lava.schedule.extra_delay[c.name]
    if (extra or c.delay) and not _delays_itself(lava, c):
        from .processes.axon_delay import AxonDelay

        relay = AxonDelay(
            shape=port.shape,
            delay=extra,
            interval=lava.schedule.interval,
            first=lava.schedule.first_step(c.source),
            last=lava.schedule.open_steps[c.name],
            name=f"{c.name}:delay",
        )
        port.connect(relay.s_in)
        lava.delays[c.name] = relay
        port = relay.s_out
    _input_port(port, lava.connections[c.name]).connect(lava.connections[c.name].s_in)


def _is_conv(process: Any) -> bool:
    return len(process.s_in.shape) == 3


def _input_port(port: Any, process: Any) -> Any:
    """A sender's port in the shape the connection takes: (X, Y, C) for Conv, flat for the others."""
    if _is_conv(process):
        return port.transpose([2, 1, 0])
    return port if len(port.shape) == 1 else port.flatten()


def _output_port(process: Any, target: tuple[int, ...]) -> Any:
    """A connection's output in the target's shape."""
    if _is_conv(process):
        return process.a_out.transpose([2, 1, 0])
    return process.a_out if len(target) == 1 else process.a_out.reshape(target)


@singledispatch
def _process(synapse: Any, wiring: _Wiring) -> Any:
    raise UnsupportedError(f"connection {wiring.connection.name!r}: Lava has no Process for {type(synapse).__name__}")


@_process.register
def _(synapse: Dense, wiring: _Wiring) -> Any:
    return _dense(synapse, wiring, delay=0)


@_process.register
def _(synapse: Scale, wiring: _Wiring) -> Any:
    from scipy.sparse import diags

    per_channel = synapse.weight.astype(np.int32).reshape(-1, *[1] * (len(wiring.source) - 1))
    return _sparse(diags(np.broadcast_to(per_channel, wiring.source).ravel(), dtype=np.int32), wiring)


@_process.register
def _(synapse: Conv2d, wiring: _Wiring) -> Any:
    if wiring.convolution == "sparse" or not _fits_stock_conv(synapse, wiring):
        return _sparse(conv_as_matrix(synapse, wiring.source, wiring.target), wiring)
    from lava.proc.conv.process import Conv

    c, y, x = wiring.source
    return Conv(
        # Conv ignores weight_exp and does not clip weights, so the exponent is multiplied in. Lava convolves, the
        # description (as PyTorch) correlates: the kernel is flipped. [C_out, C_in, Y, X] -> [C_out, X, Y, C_in].
        weight=(synapse.weight.astype(np.int64) << wiring.exponent).transpose(0, 3, 2, 1)[:, ::-1, ::-1].copy(),
        input_shape=(x, y, c),
        stride=(synapse.stride[1], synapse.stride[0]),
        padding=(synapse.padding[1], synapse.padding[0]),
        dilation=(synapse.dilation[1], synapse.dilation[0]),
        groups=synapse.groups,
        num_message_bits=wiring.message_bits,
        name=wiring.connection.name,
    )


def _fits_stock_conv(synapse: Conv2d, wiring: _Wiring) -> bool:
    """Whether Lava's ``Conv`` computes this exactly: sizes in int8, sums wrapped to 24 bits, never beyond int32."""
    padded = [size + 2 * p for size, p in zip(wiring.source[1:], synapse.padding, strict=True)]
    reach = [d * (k - 1) + 1 for d, k in zip(synapse.dilation, synapse.weight.shape[2:], strict=True)]
    sizes_fit = max(*padded, *reach, *synapse.stride, synapse.groups) <= CONV_SIZE_MAX
    scaled = wiring.largest << wiring.exponent
    # A wrapped sum is still right modulo 2^24, and after the neuron's shift modulo the state's width or more.
    wrap_is_harmless = CONV_SUM_BITS + wiring.activation_shift >= wiring.target_population.state_bits
    return sizes_fit and scaled < 2**31 and (scaled < 2 ** (CONV_SUM_BITS - 1) or wrap_is_harmless)


def conv_as_matrix(synapse: Conv2d, source: tuple[int, ...], target: tuple[int, ...]) -> Any:
    """The convolution as a sparse int32 matrix ``[N_out, N_in]`` over C-ordered neurons."""
    from scipy.sparse import csr_matrix

    (py, px), (sy, sx), (dy, dx) = synapse.padding, synapse.stride, synapse.dilation
    index = np.arange(int(np.prod(source))).reshape(source)
    padded = np.pad(index, ((0, 0), (py, py), (px, px)), constant_values=-1)
    c_out, c_in, k_y, k_x = synapse.weight.shape
    y_out, x_out = target[1:]
    rows, columns, values = [], [], []
    for i in range(k_y):
        for j in range(k_x):
            seen = padded[:, i * dy : i * dy + (y_out - 1) * sy + 1 : sy, j * dx : j * dx + (x_out - 1) * sx + 1 : sx]
            for o in range(c_out):
                first = o // (c_out // synapse.groups) * c_in  # first input channel of the group of o
                column = seen[first : first + c_in]
                row = np.broadcast_to(np.arange(y_out * x_out).reshape(y_out, x_out) + o * y_out * x_out, column.shape)
                value = np.broadcast_to(synapse.weight[o, :, i, j, None, None], column.shape)
                used = (column >= 0) & (value != 0)
                rows.append(row[used])
                columns.append(column[used])
                values.append(value[used].astype(np.int32))
    entries = (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns)))
    return csr_matrix(entries, shape=(int(np.prod(target)), index.size), dtype=np.int32)


def _weight_options(wiring: _Wiring) -> dict[str, Any]:
    """Options for int8 weights as the chip stores them: doubled, of mixed sign, with one exponent less.

    At 8 bits and mixed sign Loihi drops the lowest bit of a weight, so only even ones in -256..254 survive: exactly
    the doubled int8 ones, whatever signs a matrix has. Lava shifts after it has summed, and a sum of even weights is
    even, so the exponent -1 rounds nothing.
    """
    from lava.utils.weightutils import SignMode

    if 2 * wiring.largest >= 2**31:
        raise UnsupportedError(
            f"connection {wiring.connection.name!r}: sums can reach {wiring.largest}, and Lava sums doubled weights in "
            f"32 bits; let {wiring.connection.source!r} send fewer than {wiring.message_bits} bits"
        )
    return {
        "num_weight_bits": 8,
        "sign_mode": SignMode.MIXED,
        "weight_exp": wiring.exponent - 1,
        "num_message_bits": wiring.message_bits,
        "name": wiring.connection.name,
    }


def _dense(synapse: Any, wiring: _Wiring, delay: int) -> Any:
    from lava.proc.dense.process import DelayDense
    from lava.proc.dense.process import Dense as LavaDense

    weights = 2 * synapse.weight.astype(np.int32)
    if delay == 0:
        return LavaDense(weights=weights, **_weight_options(wiring))
    return DelayDense(weights=weights, delays=delay, max_delay=delay, **_weight_options(wiring))


def _sparse(weights: Any, wiring: _Wiring) -> Any:
    from lava.proc.sparse.process import Sparse

    options = _weight_options(wiring)
    # Binary spikes as 1-bit messages are the same integers; Lava multiplies messages and gathers columns for spikes,
    # which is nine times slower for a sparse matrix (0.08 against 0.7 ms for 512 x 1024, 14 % filled).
    return Sparse(weights=2 * weights, **{**options, "num_message_bits": max(1, wiring.message_bits)})
