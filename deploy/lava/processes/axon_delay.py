"""A relay that delays spikes: lava-nc delays them only in its dense and sparse connections."""

from __future__ import annotations

from typing import Any

import numpy as np
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.model.py.model import PyLoihiProcessModel
from lava.magma.core.model.py.ports import PyInPort, PyOutPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.process.ports.ports import InPort, OutPort
from lava.magma.core.process.process import AbstractProcess
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol


class AxonDelay(AbstractProcess):
    """Passes on what it receives, ``delay`` chip steps later, and only what was sent in the open part of a window.

    A spike that arrives after its sample's window must not act in the next sample's. So only steps
    ``1..last`` of every window pass; the rest, and all that comes before the first window, is dropped.

    Parameters
    ----------
    shape : tuple of int
    delay : int
        Chip steps, 0 or more.
    interval : int
        Length of a window in chip steps.
    first : int
        Chip step at which the sender's first window begins.
    last : int
        Number of open steps of a window; ``interval`` passes all.
    """

    def __init__(
        self, *, shape: tuple[int, ...], delay: int, interval: int = 1, first: int = 1, last: int = 1, **options: Any
    ) -> None:
        super().__init__(shape=shape, delay=delay, interval=interval, first=first, last=last, **options)
        self.s_in = InPort(shape=shape)
        self.s_out = OutPort(shape=shape)


@implements(proc=AxonDelay, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyAxonDelayFixed(PyLoihiProcessModel):
    """A ring of ``delay + 1`` past messages."""

    s_in: Any = LavaPyType(PyInPort.VEC_DENSE, np.int32)
    s_out: Any = LavaPyType(PyOutPort.VEC_DENSE, np.int32)

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.params = proc_params
        self.ring = np.zeros((proc_params["delay"] + 1, *proc_params["shape"]), np.int32)

    def run_spk(self) -> None:
        """Store this step's message and send the one of ``delay`` steps ago; like a neuron, within one step."""
        step = self.time_step - self.params["first"]
        is_open = step >= 0 and step % self.params["interval"] < self.params["last"]
        received = self.s_in.recv()
        slot = self.time_step % len(self.ring)
        self.ring[slot] = received if is_open else 0
        self.s_out.send(self.ring[(slot + 1) % len(self.ring)])
