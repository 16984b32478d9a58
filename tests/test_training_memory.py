"""Training by representation keeps no time axis: the memory of a step hardly grows with the number of steps.

Counted are the bytes of all tensors alive after every operation, not times and not what an allocator reserves, so the
figures are the same on every machine.
"""

from __future__ import annotations

import gc
from functools import partial
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from lapilli.train import frames
from lapilli.train.config import NetworkConfig
from lapilli.train.model import build
from lapilli.train.representation import scores

WIDTH, SIDE, BATCH = 8, 8, 32
STEPS, WAYS = (4, 16, 32), ("steps", "representation")
pytestmark = pytest.mark.usefixtures("one_thread")

LAYERS = [
    {"type": "conv", "channels": WIDTH, "padding": 1, "neurons": False, "batch_norm": False},
    {"type": "block", "channels": WIDTH},
    {"type": "block", "channels": 2 * WIDTH, "stride": 2},
    {"type": "neurons"},
    {"type": "pool", "size": "all", "neurons": True},
    {"type": "linear"},
]


class Alive(TorchDispatchMode):
    """Counts the bytes of tensors that were made inside and are still there."""

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = {t.untyped_storage()._cdata for t in (*args, *kwargs.values()) if isinstance(t, torch.Tensor)}
        out = func(*args, **kwargs)
        made = [t for t in (out if isinstance(out, (tuple, list)) else [out]) if isinstance(t, torch.Tensor)]
        for storage in (t.untyped_storage() for t in made if t.device.type != "meta"):
            if storage._cdata not in given:  # else a view, or written in place
                self._made[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        if made:
            self.peak = max(self.peak, self.now())
        return out

    def now(self) -> int:
        """Bytes alive."""
        self._made = {key: made for key, made in self._made.items() if not made[0].expired()}
        return sum(size for _, size in self._made.values())


def measured(way: str, steps: int) -> tuple[int, int]:
    """Bytes kept for the backward pass, and the most at any moment of a training step."""
    model = build(
        NetworkConfig.model_validate({"layers": LAYERS, "steps": steps, "threshold": 1.0}), (3, SIDE, SIDE), 4
    )
    x = torch.randn(BATCH, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    forward = model if way == "steps" else partial(scores, model)
    with Alive() as alive:
        loss = torch.nn.functional.cross_entropy(forward(x), torch.arange(BATCH) % 4)
        kept = alive.now()
        loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    return kept, alive.peak


def test_memory_has_no_time_axis(monkeypatch: pytest.MonkeyPatch) -> None:
    # As small beside this network as they are beside one that training takes.
    monkeypatch.setattr(frames, "PIECE_BYTES", 2**18)
    monkeypatch.setattr(frames, "BLOCK_BYTES", 2**19)
    monkeypatch.setattr(frames, "CHANNELS_TOGETHER", 1)
    collecting = gc.isenabled()
    gc.disable()  # what only the collector of cycles would free counts as kept
    try:
        both = {(w, t): measured(w, t) for w in WAYS for t in STEPS}
        kept, peak = ({key: value[i] for key, value in both.items()} for i in range(2))
    finally:
        if collecting:
            gc.enable()
    for found in (kept, peak):  # autograd over all steps keeps a time axis, and the count sees it
        assert found["steps", 32] > 6 * found["steps", 4]
    # What grows are a few numbers of the last layers, which go to the scores step by step.
    assert kept["representation", 32] < 1.2 * kept["representation", 4]
    assert max(peak["representation", t] for t in STEPS) < 1.4 * peak["representation", 4]
    for steps in (16, 32):
        assert 4 * peak["representation", steps] < peak["steps", steps]
        assert 8 * kept["representation", steps] < kept["steps", steps]
