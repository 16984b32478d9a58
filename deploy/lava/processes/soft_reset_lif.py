"""The description's neuron as a Lava Process: what lava-nc has no stock Process for."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.model.py.model import PyLoihiProcessModel
from lava.magma.core.model.py.ports import PyInPort, PyOutPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.process.ports.ports import InPort, OutPort
from lava.magma.core.process.process import AbstractProcess
from lava.magma.core.process.variable import Var
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol

from lapilli.arithmetic import neuron_step  # pyright: ignore[reportMissingImports]
from lapilli.network import Population, Reset  # pyright: ignore[reportMissingImports]


class SoftResetLIF(AbstractProcess):
    """Leaky integrate-and-fire neurons that subtract a fixed amount from the membrane at a spike.

    Per chip step, in integers (:mod:`lapilli.arithmetic` is the model, to the last bit)::

        at the first step of a window:  u = 0, v = v_init
        u = trunc(u (4096 - du) / 4096) + a_in 2^activation_shift      wraps at state_bits
        v = trunc(v (4096 - dv) / 4096) + u + bias                     saturates at state_bits
        s = v > threshold;   v = v - reset_amount s

    With ``payload_max`` above 1 a spike is graded: ``clip(floor(v / 2^payload_shift), 1, payload_max)`` in place of 1.

    A window begins at every chip step ``t`` (the first is 1) with
    ``t % reset_interval == reset_offset % reset_interval``, as in Lava's ``LIFReset``. With ``reset="none"`` it is a
    readout accumulator and never spikes; ``reset="zero"`` is there for what ``LIFReset`` cannot hold (an initial
    membrane, a threshold between multiples of 64).

    Parameters
    ----------
    shape : tuple of int
    threshold, reset_amount, du, dv, bias, v_init, payload_max, payload_shift, fraction_bits, state_bits, reset
        As in :class:`lapilli.network.Population`, in state units; checked there.
    activation_shift : int, optional
        State units per unit of ``a_in`` as a power of two; ``fraction_bits`` unless given.
    reset_interval : int, optional
        Length of a window in chip steps; without it the state is never set again.
    reset_offset : int
        Phase of the windows.

    Attributes
    ----------
    a_in : InPort
        Sum of the incoming connections, int32.
    s_out : OutPort
        Spikes, 0 or 1 or payloads, int32.
    u, v : Var
        State after the step, int64.
    """

    def __init__(
        self,
        *,
        shape: tuple[int, ...],
        threshold: int = 0,
        reset: Reset = "subtract",
        reset_amount: int = 0,
        du: int = 4096,
        dv: int = 0,
        bias: npt.ArrayLike = 0,
        v_init: int = 0,
        payload_max: int = 1,
        payload_shift: int = 0,
        fraction_bits: int = 6,
        state_bits: int = 24,
        activation_shift: int | None = None,
        reset_interval: int | None = None,
        reset_offset: int = 0,
        **options: Any,
    ) -> None:
        population = Population(
            name="lava",
            shape=shape,
            threshold=threshold,
            reset=reset,
            reset_amount=reset_amount,
            du=du,
            dv=dv,
            bias=np.atleast_1d(np.asarray(bias)),
            v_init=v_init,
            payload_max=payload_max,
            payload_shift=payload_shift,
            fraction_bits=fraction_bits,
            state_bits=state_bits,
        )
        super().__init__(
            shape=shape,
            population=population,
            activation_shift=fraction_bits if activation_shift is None else activation_shift,
            reset_interval=reset_interval,
            reset_offset=reset_offset,
            **options,
        )
        self.a_in = InPort(shape=shape)
        self.s_out = OutPort(shape=shape)
        self.u = Var(shape=shape, init=0)
        self.v = Var(shape=shape, init=v_init)


@implements(proc=SoftResetLIF, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PySoftResetLIFFixed(PyLoihiProcessModel):
    """Fixed-point model: one call of the description's own arithmetic per step."""

    a_in: Any = LavaPyType(PyInPort.VEC_DENSE, np.int32)
    s_out: Any = LavaPyType(PyOutPort.VEC_DENSE, np.int32)
    u: Any = LavaPyType(np.ndarray, np.int64)
    v: Any = LavaPyType(np.ndarray, np.int64)

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.population: Population = proc_params["population"]
        self.shift: int = proc_params["activation_shift"]
        self.interval: int | None = proc_params["reset_interval"]
        self.offset: int = proc_params["reset_offset"]

    def run_spk(self) -> None:
        """Advance by one chip step."""
        drive = self.a_in.recv().astype(np.int64) << self.shift
        if self.interval is not None and (self.time_step - self.offset) % self.interval == 0:
            self.u[:] = 0
            self.v[:] = self.population.v_init
        step = neuron_step(self.population, self.u[np.newaxis], self.v[np.newaxis], drive[np.newaxis])
        self.u[:], self.v[:] = step.u[0], step.v[0]
        self.s_out.send(step.spikes[0].astype(np.int32))
