"""Writes what a port sends straight to a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.model.py.model import PyLoihiProcessModel
from lava.magma.core.model.py.ports import PyInPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.process.ports.ports import InPort
from lava.magma.core.process.process import AbstractProcess
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol


class Recorder(AbstractProcess):
    """Stores what it receives at chip steps ``first .. first + steps - 1``.

    Lava's ``RingBuffer`` and ``Monitor`` keep data in Vars, and reading a Var back costs about 11 microseconds per
    element. This writes to a memory-mapped file instead, which outlives the process that ran the model.

    Parameters
    ----------
    shape : tuple of int
    path : path
        A ``.npy`` file to be made, ``[steps, *shape]`` of ``dtype``.
    dtype : numpy dtype
    first, steps : int
    """

    def __init__(
        self, *, shape: tuple[int, ...], path: str | Path, dtype: Any, first: int, steps: int, **options: Any
    ) -> None:
        np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=(steps, *map(int, shape))).flush()
        super().__init__(shape=shape, path=str(path), first=first, steps=steps, **options)
        self.a_in = InPort(shape=shape)


@implements(proc=Recorder, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyRecorderFixed(PyLoihiProcessModel):
    """One assignment into the memory map per step."""

    a_in: Any = LavaPyType(PyInPort.VEC_DENSE, np.int32)

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.first: int = proc_params["first"]
        self.file = np.lib.format.open_memmap(proc_params["path"], mode="r+")

    def run_spk(self) -> None:
        """Store this step's message."""
        received = self.a_in.recv()
        step = self.time_step - self.first
        if 0 <= step < len(self.file):
            self.file[step] = received
