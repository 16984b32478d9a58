"""Export: any trained network in, one exact description out, and files of it.

Names are imported on first use, so that importing the room imports neither torch nor onnx.
"""

from __future__ import annotations

from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UnsupportedError
from ..network import Connection as Connection
from ..network import Conv2d as Conv2d
from ..network import Dense as Dense
from ..network import Input as Input
from ..network import Network as Network
from ..network import Population as Population
from ..network import Readout as Readout
from ..network import Scale as Scale
from ..recipes import trained_networks

if TYPE_CHECKING:
    from .bit_search import MixedPrecision as MixedPrecision
    from .bit_search import mixed_precision as mixed_precision
    from .folding import Folded as Folded
    from .frameworks import from_torch as from_torch
    from .lowering import lower as lower
    from .netx.reading import load_net as load_net
    from .netx.writing import round_to_net as round_to_net
    from .netx.writing import save_net as save_net
    from .nir.reading import load_nir as load_nir
    from .nir.reading import nir_in_steps as nir_in_steps
    from .nir.real_network import NIRWarning as NIRWarning
    from .nir.writing import save_nir as save_nir
    from .onnx.executors import execute_file as execute_file
    from .onnx.executors import onnx_reference_executor as onnx_reference_executor
    from .onnx.executors import onnxruntime_executor as onnxruntime_executor
    from .onnx.file import load_onnx as load_onnx
    from .onnx.file import save_onnx as save_onnx
    from .onnx.graph import build_model as build_model
    from .quantization import QuantizeConfig as QuantizeConfig
    from .quantization import quantize as quantize
    from .quantization import quantize_with_latent as quantize_with_latent
    from .sensitivity import QuantizationReport as QuantizationReport
    from .sensitivity import quantization_report as quantization_report
    from .summary import Summary as Summary
    from .summary import render as render
    from .summary import summarize as summarize

_WHERE = {  # public name: its module
    "Folded": "folding",
    "MixedPrecision": "bit_search",
    "NIRWarning": "nir.real_network",
    "QuantizeConfig": "quantization",
    "Summary": "summary",
    "build_model": "onnx.graph",
    "execute_file": "onnx.executors",
    "from_torch": "frameworks",
    "load_net": "netx.reading",
    "load_nir": "nir.reading",
    "load_onnx": "onnx.file",
    "lower": "lowering",
    "mixed_precision": "bit_search",
    "nir_in_steps": "nir.reading",
    "QuantizationReport": "sensitivity",
    "quantization_report": "sensitivity",
    "onnx_reference_executor": "onnx.executors",
    "onnxruntime_executor": "onnx.executors",
    "quantize": "quantization",
    "quantize_with_latent": "quantization",
    "render": "summary",
    "round_to_net": "netx.writing",
    "save_net": "netx.writing",
    "save_nir": "nir.writing",
    "save_onnx": "onnx.file",
    "summarize": "summary",
}

_READERS = {".onnx": "load_onnx", ".nir": "load_nir", ".net": "load_net"}
_WRITERS = {".onnx": "save_onnx", ".nir": "save_nir", ".net": "save_net"}


def load(path: str | Path, **options: Any) -> Network:
    """Read a description from a file; the suffix says which format it is (.onnx, .nir, .net).

    Parameters
    ----------
    path : path
        Or the name of a trained network that comes with lapilli: :func:`lapilli.recipes.trained_networks`.
    **options
        What the format itself does not say: see :func:`load_nir` (``steps``, ``dt``, ``reset``, ``discretization``,
        ...) and :func:`load_net` (``steps``, ...). Files that lapilli wrote need none.

    Raises
    ------
    FileFormatError
        If the file is missing, damaged, or not what it claims to be.
    UnsupportedError
        If no reader exists for the suffix, an option does not belong to the format, or the file asks for something
        that cannot be represented.
    """
    name = str(path)
    if "." not in name and "/" not in name:
        trained = trained_networks()
        if name not in trained:
            raise UnsupportedError(
                f"network {name!r}: no trained network has that name; lapilli ships {', '.join(trained)}; or give "
                f"the path of a file ending in {', '.join(_READERS)}"
            )
        path = trained[name]
    return _call(_READERS, "read", path, (path,), options)


def save(network: Network, path: str | Path, **options: Any) -> Path:
    """Write a description to a file; the suffix says in which format (.onnx, .nir, .net). Returns the path.

    Parameters
    ----------
    network : Network
    path : path
    **options
        See :func:`save_nir` (``dt``, ``strict``) and :func:`save_onnx` (``external_data``).

    Raises
    ------
    FileFormatError
        If the file cannot be written.
    UnsupportedError
        If no writer exists for the suffix, an option is missing or does not belong to the format, or the format cannot
        represent the network.
    """
    return _call(_WRITERS, "write", path, (network, path), options)


def _call(
    table: dict[str, str], verb: str, path: str | Path, arguments: tuple[Any, ...], options: dict[str, Any]
) -> Any:
    suffix = Path(path).suffix.lower()
    if suffix not in table:
        raise UnsupportedError(f"{path}: lapilli cannot {verb} files ending in {suffix!r}; use {', '.join(table)}")
    function = __getattr__(table[suffix])
    known = {name: p for name, p in signature(function).parameters.items() if p.kind is p.KEYWORD_ONLY}
    foreign = sorted(set(options) - set(known))
    if foreign:
        raise UnsupportedError(f"{path}: {', '.join(foreign)}: a {suffix} file has no such option; leave it out")
    missing = sorted(name for name, p in known.items() if p.default is p.empty and name not in options)
    if missing:
        raise UnsupportedError(f"{path}: to {verb} a {suffix} file give {', '.join(missing)}; see docs/nir.md")
    return function(*arguments, **options)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_WHERE[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*_WHERE, *(n for n in globals() if n[0].isupper() or n in ("load", "save"))})
