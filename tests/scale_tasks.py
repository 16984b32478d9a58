"""Tasks for workers: found there by name, so they stand in a module of their own."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from lapilli.errors import DataError


def square(shared: int, item: int) -> int:
    time.sleep(0.02 * (item % 3))  # so that results are not ready in order
    return shared + item * item


def dies_once(folder: str, item: int) -> int:
    """Task 3 takes its worker with it, the first time."""
    mark = Path(folder) / "died"
    if item == 3 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def always_dies(_shared: None, item: int) -> int:
    if item == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def complains(_shared: None, item: int) -> int:
    if item == 2:
        raise DataError("item 2 does not fit")
    return item
