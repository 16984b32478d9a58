"""Makes lava-nc 0.10.0 importable on Python 3.11 and later.

lava-nc was archived in August 2024 and was released for Python 3.10 only. One thing in it stops the import on newer
Python: ``lava.magma.compiler.var_model`` has dataclasses whose fields default to an instance of another dataclass.
Since 3.11 :mod:`dataclasses` refuses any default that is not hashable ("mutable default ... use default_factory"),
and a dataclass that compares by value is not hashable unless told so. So that one module is imported here, before
anything else of Lava, while ``dataclasses.dataclass`` means ``dataclass(unsafe_hash=True)``. Nothing is written to
disk, nothing of Lava is changed but the hash of those few records, and ``dataclass`` is put back at once.

Lava also needs NumPy below 2.4: its ``reshape`` and ``flatten`` ports call ``numpy.reshape(newshape=...)``, which
2.4 removed.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import sys
import threading
from typing import Any

from ...errors import HOW_TO_GET_LAVA, MissingDependencyError

_BROKEN = "lava.magma.compiler.var_model"
_lock = threading.Lock()


def _hashable(ordinary: Any) -> Any:
    """``dataclass`` for one import: makes the classes of the broken module hashable, all others as ever."""

    @functools.wraps(ordinary)
    def dataclass(cls: type | None = None, /, **options: Any) -> Any:
        def decorate(cls: type) -> type:
            extra = {"unsafe_hash": True} if cls.__module__ == _BROKEN else {}
            return ordinary(cls, **extra, **options)

        return decorate if cls is None else decorate(cls)

    return dataclass


def import_lava() -> None:
    """Import Lava's core so that every later ``import lava...`` works; does nothing the second time.

    Raises
    ------
    MissingDependencyError
        If lava-nc is not installed, or NumPy is too new for it.
    """
    with _lock:
        if _BROKEN in sys.modules:
            return
        ordinary = dataclasses.dataclass
        if sys.version_info >= (3, 11):
            dataclasses.dataclass = _hashable(ordinary)
        try:
            importlib.import_module(_BROKEN)
        except ModuleNotFoundError as error:
            if (error.name or "").split(".")[0] != "lava":
                raise MissingDependencyError(
                    f"Lava needs the package {error.name!r}, which is not installed; {HOW_TO_GET_LAVA}"
                ) from None
            raise MissingDependencyError(
                f"running on Lava needs lava-nc 0.10.0, which is not installed; {HOW_TO_GET_LAVA}"
            ) from None
        finally:
            dataclasses.dataclass = ordinary
        import numpy as np

        if tuple(int(part) for part in np.__version__.split(".")[:2]) >= (2, 4):
            raise MissingDependencyError(
                f"lava-nc 0.10.0 needs NumPy below 2.4 (its reshape ports), this is {np.__version__}; "
                "install 'numpy<2.4' beside it"
            )


def available() -> bool:
    """Whether Lava can be used here."""
    try:
        import_lava()
    except MissingDependencyError:
        return False
    return True
