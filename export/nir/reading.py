"""Import of NIR files and graphs: read, put into steps, quantize.

NIR does not say how long a step is, how a neuron resets, or how its equation is discretized; these are arguments,
and they are never guessed. A file that lapilli wrote carries the exact description and needs no argument.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import numpy.typing as npt
from pydantic import ValidationError

from ...errors import FileFormatError, RecipeError, UnsupportedError
from ...network import MAX_STEPS, Network
from ..quantization import QuantizeConfig
from .discretization import Discretization, NirReset, discretize
from .graph import read_graph
from .real_network import NIRWarning, RealNetwork
from .record import read_record
from .rounding import quantize_real

__all__ = ["NIRWarning", "load_nir", "nir_in_steps"]


def load_nir(
    source: Any,
    *,
    steps: int | None = None,
    dt: float | None = None,
    reset: NirReset | None = None,
    discretization: Discretization | None = None,
    weight_bits: int | dict[str, int] = 8,
    input_range: tuple[float, float] | None = None,
    input_levels: int | None = None,
    calibration: npt.ArrayLike | None = None,
    config: QuantizeConfig | None = None,
    strict: bool = False,
    name: str | None = None,
) -> Network:
    """A description from a NIR file, or from a ``nir.NIRGraph`` in memory.

    Parameters
    ----------
    source : path or nir.NIRGraph
    steps : int
        Length of a sample's window, in steps.
    dt : float
        Length of a step, in the unit of the file's time constants (seconds, by NIR's convention; 1 where the
        exporter counts in steps, as Sinabs does). snnTorch 1.0 exports for ``dt=1e-4``.
    reset : {"subtract", "zero", "subtract-next"}
        NIR has "zero" only (more exactly: to ``v_reset``); networks are trained with others. "subtract-next"
        subtracts one step later, after the leak: snnTorch's ``reset_mechanism="subtract"`` with its ``reset_delay``.
    discretization : {"euler", "exponential"}
        What is lost of a state in a step: ``dt / tau`` or ``1 - exp(-dt / tau)``.
    weight_bits : int or dict of int
        2 to 8, sign included; by population, or for all.
    input_range, input_levels
        Real range of the input and number of integer levels above zero, see :class:`QuantizeConfig`. With neither
        these nor ``calibration`` the input is spikes, 0 or 1.
    calibration : float [samples, *input_shape] (or with steps), optional
        Inputs whose range is taken.
    config : QuantizeConfig, optional
        Instead of ``weight_bits``, ``input_range`` and ``input_levels``.
    strict : bool
        Refuse what is otherwise a :class:`NIRWarning`.
    name : str, optional
        Of the network; default: the file's name.

    Raises
    ------
    FileFormatError
        If the file is missing, damaged, or not NIR.
    UnsupportedError
        If an argument is missing, or the graph has something that a description cannot express.
    RecipeError
        If a setting of the quantization is wrong.
    DataError
        If calibration data do not fit.
    """
    tree, called = _tree(source)
    said = {"steps": steps, "dt": dt, "reset": reset, "discretization": discretization}
    if all(value is None for value in said.values()):
        network = read_record(tree, called)
        if network is not None:
            return network
    real = _in_steps(tree, called, said, name, strict)
    if config is None:
        options = {"weight_bits": weight_bits, "input_range": input_range, "input_levels": input_levels}
        try:
            config = QuantizeConfig.model_validate(options)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise RecipeError(f"{where or 'quantization'}: {first['msg']}") from None
    origin = {"format": "NIR", "file": called, **said, "notes": list(real.notes)}
    return quantize_real(real, config, calibration, {"origin": origin})


def nir_in_steps(
    source: Any,
    *,
    steps: int | None = None,
    dt: float | None = None,
    reset: NirReset | None = None,
    discretization: Discretization | None = None,
    strict: bool = False,
    name: str | None = None,
) -> RealNetwork:
    """A NIR file or graph in steps but not quantized: float64, to compare with; see :func:`load_nir`."""
    tree, called = _tree(source)
    said = {"steps": steps, "dt": dt, "reset": reset, "discretization": discretization}
    return _in_steps(tree, called, said, name, strict)


def _in_steps(
    tree: Mapping[str, Any], called: str, said: Mapping[str, Any], name: str | None, strict: bool
) -> RealNetwork:
    _check_arguments(called, said)
    try:
        graph = read_graph(tree)
        return discretize(graph, **said, name=name or Path(called).stem[:200], strict=strict)
    except (UnsupportedError, FileFormatError) as error:
        raise type(error)(f"{called}: {error}") from None


def _tree(source: Any) -> tuple[Mapping[str, Any], str]:
    """The nested dictionary of a file or graph, and what to call it."""
    if hasattr(source, "to_dict"):
        return source.to_dict(), "nir graph"
    from .hdf5 import read_tree

    return read_tree(source), str(source)


def _check_arguments(called: str, said: Mapping[str, Any]) -> None:
    why = {
        "steps": "the number of steps a sample takes",
        "dt": "the length of a step in the unit of the file's time constants",
        "reset": f"one of {', '.join(get_args(NirReset))}",
        "discretization": f"one of {', '.join(get_args(Discretization))}",
    }
    missing = [key for key, value in said.items() if value is None]
    if missing:
        needed = "; ".join(f"{key} ({why[key]})" for key in missing)
        raise UnsupportedError(
            f"{called}: NIR does not say, and lapilli does not guess, {needed}; give them to load_nir or lapilli export"
        )
    if isinstance(said["steps"], bool) or not isinstance(said["steps"], int) or not 1 <= said["steps"] <= MAX_STEPS:
        raise UnsupportedError(f"steps {said['steps']!r}: give an integer in 1..{MAX_STEPS}")
    if said["reset"] not in get_args(NirReset):
        raise UnsupportedError(f"reset {said['reset']!r}: give {why['reset']}")
    if said["discretization"] not in get_args(Discretization):
        raise UnsupportedError(f"discretization {said['discretization']!r}: give {why['discretization']}")
    if not isinstance(said["dt"], (int, float)) or not 0 < said["dt"] < float("inf"):
        raise UnsupportedError(f"dt {said['dt']!r}: give a positive number")
