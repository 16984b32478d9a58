"""Fixtures that several files of tests ask for by name."""

from __future__ import annotations

import pytest


@pytest.fixture
def one_thread():
    """Torch on one thread: of many small operations, more would wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
