"""Makes lava-dl 0.6.0's loader, ``lava.lib.dl.netx``, importable with nothing but lava-nc and h5py beside it.

netx needs torch in one module that lapilli does not use (``sequential_modules``), and slayer for one function that
reads resonate-and-fire neurons. slayer in turn needs torch, torchvision and OpenCV. So netx is imported while
stand-ins with the handful of names it looks up lie in :data:`sys.modules`. This is for a process that does nothing
else: the stand-ins stay there.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

from ...errors import MissingDependencyError
from .compatibility import import_lava

HOW_TO_GET_LAVA_DL = (
    "in a checkout of lapilli `uv sync` brings it; with pip: pip install h5py, "
    "then pip install --no-deps --ignore-requires-python lava-dl==0.6.0"
)


def import_netx() -> Any:
    """The module ``lava.lib.dl.netx.hdf5``.

    Raises
    ------
    MissingDependencyError
        If lava-nc, lava-dl or h5py is not installed.
    """
    import_lava()
    _stand_in("torch", tensor=_nothing, Tensor=type("Tensor", (), {}))
    slayer = _stand_in("lava.lib.dl.slayer")
    slayer.neuron = _stand_in("lava.lib.dl.slayer.neuron")  # pyright: ignore[reportAttributeAccessIssue]
    slayer.neuron.rf = _stand_in("lava.lib.dl.slayer.neuron.rf", neuron_params=_nothing)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        return importlib.import_module("lava.lib.dl.netx.hdf5")
    except ModuleNotFoundError as error:
        missing = error.name or ""
        what = "lava-dl 0.6.0" if missing.startswith("lava") else f"the package {missing!r}"
        raise MissingDependencyError(
            f"running lava-dl's loader needs {what}, which is not installed; {HOW_TO_GET_LAVA_DL}"
        ) from None


def _stand_in(name: str, **attributes: Any) -> ModuleType:
    module = ModuleType(name)
    module.__path__ = []  # a package, so that its submodules may be looked up
    for attribute, value in attributes.items():
        setattr(module, attribute, value)
    sys.modules[name] = module
    return module


def _nothing(*_: Any, **__: Any) -> Any:
    raise NotImplementedError("torch and slayer are stand-ins in this process")
