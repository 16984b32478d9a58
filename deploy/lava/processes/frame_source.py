"""Input that is streamed from an array, which may lie in a memory-mapped file."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.model.py.model import PyLoihiProcessModel
from lava.magma.core.model.py.ports import PyOutPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.process.ports.ports import OutPort
from lava.magma.core.process.process import AbstractProcess
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol


class FrameSource(AbstractProcess):
    """Sends each frame for ``hold`` chip steps, one after the other, then silence.

    ``RingBuffer`` copies all its data into a Var and repeats a constant image once per step; this does neither.

    Parameters
    ----------
    frames : integer array [F, *shape]
        May be a memory map; it is read frame by frame and must fit int32.
    hold : int
        Chip steps per frame: the window's length for a constant input, 1 for event frames.
    """

    def __init__(self, *, frames: npt.NDArray[Any], hold: int = 1, **options: Any) -> None:
        super().__init__(frames=frames, hold=hold, **options)
        self.s_out = OutPort(shape=frames.shape[1:])


@implements(proc=FrameSource, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyFrameSourceFixed(PyLoihiProcessModel):
    """Reads one frame per change."""

    s_out: Any = LavaPyType(PyOutPort.VEC_DENSE, np.int32)

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.frames: npt.NDArray[Any] = proc_params["frames"]
        self.hold: int = proc_params["hold"]
        self.current = -1
        self.frame = np.zeros(self.frames.shape[1:], np.int32)

    def run_spk(self) -> None:
        """Send the frame of this step."""
        index = (self.time_step - 1) // self.hold
        if index != self.current:
            self.current = index
            self.frame = np.array(self.frames[index], np.int32) if index < len(self.frames) else 0 * self.frame
        self.s_out.send(self.frame)
