"""Training on several processes: GPUs of one machine, or machines, started by ``torchrun``.

Every process holds the whole network and takes its share of each batch; gradients are averaged before every update,
so all processes keep the same weights, and those of one process up to the order of floating-point sums. Batch
normalization sees the share of one process, as in torch's DistributedDataParallel; its running statistics are those
of the first process. torch's own wrapper is not used because gradients at the level of the representation
(:mod:`.representation`) do not pass through a module's forward method.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import UnsupportedError


@dataclass(frozen=True)
class Workers:
    """The processes that train one network together.

    Attributes
    ----------
    rank : int
        Of this process, from 0.
    size : int
        Number of processes.
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def share(self, samples: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The part of a batch that this process takes; the parts differ by at most one sample."""
        return np.array_split(samples, self.size)[self.rank]

    def total(self, *values: float) -> list[float]:
        """Sums over all processes."""
        if self.size == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64, device=_device())
        dist.all_reduce(sums)
        return sums.tolist()

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Add up the gradients of all processes, in place."""
        if self.size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients])  # one message instead of many small ones
        dist.all_reduce(flat)
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def take_from_the_first(self, tensors: Iterable[Tensor]) -> None:
        """Values of the first process, such as running statistics of batch normalization, in place."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), 0)


ALONE = Workers()


def _device() -> str:
    return f"cuda:{torch.cuda.current_device()}" if dist.get_backend() == "nccl" else "cpu"


@contextmanager
def joined(device: str) -> Iterator[tuple[Workers, str]]:
    """Join the processes that ``torchrun`` started, if it did; yields them and the device of this process.

    Raises
    ------
    UnsupportedError
        If there are more processes on this machine than GPUs.
    """
    size, local = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
    if size == 1 or not dist.is_available():
        yield ALONE, device
        return
    on_gpu = device.startswith("cuda")
    if on_gpu:
        if local >= torch.cuda.device_count():
            raise UnsupportedError(
                f"device {device!r}: process {local} finds {torch.cuda.device_count()} GPUs here; "
                "start torchrun with --nproc-per-node of at most that number"
            )
        device = f"cuda:{local}"
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield Workers(dist.get_rank(), size), device
    finally:
        dist.destroy_process_group()
