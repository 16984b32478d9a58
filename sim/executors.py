"""Executors by name; each is imported only when it is asked for."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from ..errors import HOW_TO_GET_LAVA, MissingDependencyError, UnsupportedError
from ..recording import Executor

# Strings, so that nothing of torch, ONNX Runtime or Lava is imported before somebody names it.
_PLACES = {
    "reference": ".sim.reference:reference",
    "fast": ".sim.engine.batched:fast",
    "torch": ".train.executor:torch_executor",
    "onnxruntime": ".export.onnx.executors:onnxruntime_executor",
    "onnx-reference": ".export.onnx.executors:onnx_reference_executor",
    "lava": ".deploy.lava.executor:lava_executor",
    "netx": ".deploy.lava.netx:netx_executor",
}
# Packages that an executor imports only once it runs; their absence is better known before hours of training.
_NEEDS = {"lava": "lava", "netx": "lava"}
_PACKAGE = __name__.partition(".")[0]

_REMEDIES = {
    "lava": HOW_TO_GET_LAVA,
    "torch": "pip install torch",
    "onnxruntime": "pip install onnxruntime",
    "onnx": "pip install onnx",
}


def names() -> tuple[str, ...]:
    """Every executor that :func:`find` knows."""
    return tuple(_PLACES)


def find(name: str) -> Executor:
    """The executor of that name; ``torch:cuda``, ``torch:cuda:1``, ``torch:mps``: torch on that device.

    Raises
    ------
    UnsupportedError
        If there is no such executor, or torch cannot use that device.
    MissingDependencyError
        If a package it needs is not installed; the message says how to get it.
    """
    whole, (name, colon, device) = name, name.partition(":")
    if name not in _PLACES:
        raise UnsupportedError(f"there is no executor {whole!r}; lapilli has {', '.join(_PLACES)}")
    if colon and name != "torch":
        raise UnsupportedError(f"executor {whole!r}: only torch runs on another device, for example torch:cuda")
    if colon:
        found = _imported(name, ".train.executor:on_device")
        return found(device)
    if name in _NEEDS and find_spec(_NEEDS[name]) is None:
        raise _missing(name, _NEEDS[name])
    return _imported(name, _PLACES[name])


def for_device(engine: str | None, device: str | None) -> str:
    """The name of an engine on a device: ``torch:cuda`` on the device cuda.

    Parameters
    ----------
    engine : str or None
        None: torch on a GPU, else fast.
    device : str or None
        None or cpu: the CPU.

    Raises
    ------
    UnsupportedError
        If the engine does not run on that device.
    """
    if device is None or device == "cpu":
        return engine or "fast"
    if engine not in (None, "torch"):
        raise UnsupportedError(f"engine {engine!r} does not run on device {device!r}; use torch there, or device cpu")
    return f"torch:{device}"


def _imported(name: str, place: str) -> Any:
    module, _, function = place.partition(":")
    try:
        return getattr(import_module(module, _PACKAGE), function)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ("", _PACKAGE):
            raise
        raise _missing(name, missing) from None


def name_of(executor: Executor) -> str:
    """What to call an executor that was given itself, not by name."""
    return getattr(executor, "__name__", type(executor).__name__)


def _missing(name: str, package: str) -> MissingDependencyError:
    remedy = _REMEDIES.get(package, f"pip install {package}")
    return MissingDependencyError(f"executor {name!r} needs the package {package!r}, which is not installed; {remedy}")
