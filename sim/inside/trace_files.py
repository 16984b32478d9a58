"""Traces as files: NumPy's npz, a Zarr folder, or NIR data (HDF5, for the ``nir`` package's ``read_data``)."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import FileFormatError, MissingDependencyError
from ...whole_file import written_whole
from .traces import Traces

ABOUT = "about"  # name of the JSON text that says what the arrays are


def save_traces(traces: Traces, path: str | Path, dt: float = 1.0) -> Path:
    """Write traces; the suffix of ``path`` says how.

    ``.npz`` and ``.zarr`` hold ``POPULATION/QUANTITY`` ``[T, S, K]`` (spikes uint8, graded int32, the others int64),
    ``POPULATION/neurons``, ``samples`` and the JSON text ``about`` (in Zarr: attributes). ``.h5`` holds NIR data: a
    node per population, an observable per quantity as time-gridded data ``[S, T, K]`` (plain spikes bool, graded int32,
    the others int64),
    and the flat indices of the neurons beside the observables, where readers that do not know them pass them by.

    Parameters
    ----------
    traces : Traces
    path : path ending in .npz, .zarr or .h5
    dt : float
        Length of a step, for NIR data only; 1 means that times are counted in steps.

    Raises
    ------
    FileFormatError
        If the suffix is another, the folder does not exist, or the path is taken by something else.
    MissingDependencyError
        If Zarr is asked for and not installed.
    """
    path = Path(path)
    check_trace_path(path)
    try:
        WRITERS[path.suffix](traces, path, dt)
    except OSError as error:
        raise FileFormatError(f"{path}: cannot write the traces ({error.strerror or error})") from None
    return path


def check_trace_path(path: Path) -> None:
    """Refuse a path that :func:`save_traces` could not write, before anything is computed."""
    if path.suffix not in WRITERS:
        hint = "; a .nir file holds a network, NIR data go to .h5" if path.suffix == ".nir" else ""
        raise FileFormatError(f"{path}: traces are written as {', '.join(WRITERS)}, by suffix{hint}")
    if not path.parent.is_dir():
        raise FileFormatError(f"{path}: there is no folder {str(path.parent)!r}")
    if path.suffix == ".zarr":
        if find_spec("zarr") is None:
            raise MissingDependencyError(f"{path}: Zarr is not installed; pip install 'lapilli[zarr]', or write .npz")
        if path.exists() and not any((path / marker).exists() for marker in ("zarr.json", ".zgroup")):
            raise FileFormatError(f"{path}: is there already and is not a Zarr group; choose another name")
    elif path.is_dir():
        raise FileFormatError(f"{path}: is a folder")


def _arrays(traces: Traces) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    yield "samples", traces.samples
    for name, neurons in traces.neurons.items():
        yield f"{name}/neurons", neurons
        for quantity, values in traces.of(name).items():
            yield f"{name}/{quantity}", values


def _write_npz(traces: Traces, path: Path, dt: float) -> None:  # noqa: ARG001
    with written_whole(path) as temporary, temporary.open("wb") as file:
        arrays: dict[str, Any] = {**dict(_arrays(traces)), ABOUT: np.array(json.dumps(traces.about()))}
        np.savez_compressed(file, **arrays)


def _write_zarr(traces: Traces, path: Path, dt: float) -> None:  # noqa: ARG001
    zarr: Any = import_module("zarr")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        group = zarr.open_group(str(temporary), mode="w")
        group.attrs.update(traces.about())
        for name, values in _arrays(traces):
            create = getattr(group, "create_array", None) or group.create_dataset  # Zarr 3, Zarr 2
            create(name, data=values)
        if path.exists():
            shutil.rmtree(path)
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_nir(traces: Traces, path: Path, dt: float) -> None:
    import h5py
    import nir

    nodes = {}
    for name in traces.neurons:
        grids = {}
        for quantity, values in traces.of(name).items():
            by_sample = np.ascontiguousarray(values.transpose(1, 0, 2))
            plain = quantity == "spikes" and not traces.network.population(name).graded
            grids[quantity] = nir.TimeGriddedData(by_sample.astype(bool) if plain else by_sample, dt)
        nodes[name] = nir.NIRNodeData(grids)
    with written_whole(path) as temporary:
        nir.write_data(temporary, nir.NIRGraphData(nodes))
        with h5py.File(temporary, "r+") as file:
            file.attrs[ABOUT] = json.dumps(traces.about())
            file.create_dataset("samples", data=traces.samples)
            for name, neurons in traces.neurons.items():
                file.create_dataset(f"nodes/{name}/neurons", data=neurons)


WRITERS: dict[str, Callable[[Traces, Path, float], None]] = {
    ".npz": _write_npz,
    ".zarr": _write_zarr,
    ".h5": _write_nir,
}
