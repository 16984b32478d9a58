"""Writes the value of a Var to a file at chosen steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.model.py.model import PyLoihiProcessModel
from lava.magma.core.model.py.ports import PyRefPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.process.ports.ports import RefPort
from lava.magma.core.process.process import AbstractProcess
from lava.magma.core.process.variable import Var
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol


class Probe(AbstractProcess):
    """Stores a Var's value after the chip steps ``first, first + every, ...``, ``count`` times.

    Parameters
    ----------
    var : Var
        Of any Process; read through a RefPort, in the management phase that follows the step.
    path : path
        A ``.npy`` file to be made, int64 ``[count, *var.shape]``.
    first, every, count : int
    """

    def __init__(self, *, var: Var, path: str | Path, first: int, every: int, count: int, **options: Any) -> None:
        np.lib.format.open_memmap(path, mode="w+", dtype=np.int64, shape=(count, *map(int, var.shape))).flush()
        super().__init__(path=str(path), first=first, every=every, count=count, **options)
        self.state = RefPort(var.shape)
        self.state.connect_var(var)


@implements(proc=Probe, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyProbeFixed(PyLoihiProcessModel):
    """Asks for a management phase only at the steps it stores."""

    state: Any = LavaPyType(PyRefPort.VEC_DENSE, np.int64)

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.first: int = proc_params["first"]
        self.every: int = proc_params["every"]
        self.file = np.lib.format.open_memmap(proc_params["path"], mode="r+")

    def post_guard(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Whether this step's value is wanted."""
        index, rest = divmod(self.time_step - self.first, self.every)
        return rest == 0 and 0 <= index < len(self.file)

    def run_post_mgmt(self) -> None:
        """Store the value."""
        if self.post_guard():
            self.file[(self.time_step - self.first) // self.every] = self.state.read()
