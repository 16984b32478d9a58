"""Descriptions on disk: ONNX files that any ONNX runtime executes and that lapilli reads back losslessly.

A file is the model of :func:`.graph.build_model` and one metadata entry, ``lapilli``: a JSON object with the
description but for its weights and biases, which are the model's initializers. Those of large networks are in a
second file (:mod:`.external`). ``docs/format.md`` specifies both.

The reader trusts nothing. It measures the file before it parses it, takes the description from the metadata and
the initializers, checks the digests, writes the model again and refuses the file unless both are the same:
so what another ONNX runtime executes is what lapilli describes.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto

from ... import __version__
from ...errors import DescriptionError, FileFormatError, UnsupportedError
from ...network import FORMAT_VERSIONS, Network, from_structure
from ...whole_file import written_whole
from .external import External, ExternalDataError, Place, layout, read, said_of, write
from .graph import build_model, initializers
from .protobuf_scan import NotProtobufError, fields_of

MAX_FILE_BYTES = 1_500_000_000  # below protobuf's 2 GiB
EXTERNAL_FROM = 256_000_000  # bytes of weights and biases; a model in one file takes some five times that to read
MAX_BYTES_BESIDE_TENSORS = 16_000_000  # bounds what parsing can allocate
MAX_PARTS = 4096  # populations and connections
MAX_AXES = 8  # of a tensor, before anything is computed from its shape
METADATA_KEY = "lapilli"
REEXPORT = "export the network again with lapilli"

_VERSION = re.compile(r"[0-9A-Za-z.+!_-]{1,64}")
_DTYPES: dict[int, np.dtype[Any]] = {TensorProto.INT8: np.dtype("<i1"), TensorProto.INT64: np.dtype("<i8")}

# Field numbers of onnx.proto that the size check needs, and the most fields that such a message has in our files.
_MODEL_GRAPH, _GRAPH_INITIALIZER, _TENSOR_RAW_DATA = 7, 5, 9
_MODEL_FIELDS, _GRAPH_FIELDS, _TENSOR_FIELDS = 64, 400_000, 16


def save_onnx(network: Network, path: str | Path, *, external_data: bool | None = None) -> Path:
    """Write a description as an ONNX file; the same network gives the same bytes.

    The file appears under its name only when it is complete, and after its data file.

    Parameters
    ----------
    network : Network
    path : path
    external_data : bool, optional
        Write tensors of 1 KiB and more to a second file, ``lapilli-DIGEST.data`` in the same folder; then neither
        writing nor reading takes more memory than the network itself. By default where weights and biases take more
        than 256 MB.

    Returns
    -------
    Path
        ``path``.

    Raises
    ------
    FileFormatError
        If the file cannot be written there.
    UnsupportedError
        If the network is too large for one file, or a connection has no exact ONNX form.
    """
    path = Path(path)
    parts = len(network.populations) + len(network.connections)
    if parts > MAX_PARTS:
        raise UnsupportedError(
            f"network {network.name!r}: {parts} populations and connections; a file holds {MAX_PARTS}"
        )
    weights = sum(array.nbytes for array in network.tensors().values())
    outside = weights > EXTERNAL_FROM if external_data is None else external_data
    if not outside and weights > MAX_FILE_BYTES - MAX_BYTES_BESIDE_TENSORS:
        raise UnsupportedError(
            f"network {network.name!r}: its arrays take {weights} bytes; one ONNX file holds "
            f"{MAX_FILE_BYTES - MAX_BYTES_BESIDE_TENSORS}; write external data"
        )
    digest = network.digest()
    external: External | None = None
    if outside:
        try:
            external = layout(digest, ((name, array.nbytes) for name, array in initializers(network)))
        except ExternalDataError as error:
            raise UnsupportedError(f"network {network.name!r}: {error}") from None
    data = _model(network, digest, external).SerializeToString(deterministic=True)
    beside = _bytes_beside_tensors(data)
    if beside > MAX_BYTES_BESIDE_TENSORS:
        raise UnsupportedError(
            f"network {network.name!r}: its structure and metadata take {beside} bytes; a file holds "
            f"{MAX_BYTES_BESIDE_TENSORS}; shorten the metadata"
        )
    if external is not None and external.places:
        with _written(path.with_name(external.location)) as temporary, temporary.open("wb") as file:
            write(file, external, dict(initializers(network)))
    with _written(path) as temporary:
        temporary.write_bytes(data)
    return path


def load_onnx(path: str | Path) -> Network:
    """Read a description; refuses by name whatever :func:`save_onnx` would not have written.

    A model of more than 1.5 GB is refused unread; a data file is opened only if it is a regular file beside the model,
    of the name and size that follow from the model.

    Raises
    ------
    FileFormatError
        With one line that says what is wrong where, and what to do.
    """
    path = Path(path)
    model = _parse(path, _read(path))
    try:
        text = _metadata_text(path, model)
        described = _json(path, text)
        arrays, external = _tensors(path, model.graph, described)
        network = _network(path, described, arrays)
        del arrays
        digest = _check_digests(path, described, network)
        _check_graph(path, model, network, digest, text, external)
    except UnicodeError as error:  # protobuf decodes a name when it is looked at
        _refuse(path, f"has a name that is not text ({error}); {REEXPORT}")
    return network


@contextmanager
def _written(path: Path) -> Iterator[Path]:
    try:
        with written_whole(path) as temporary:
            yield temporary
    except OSError as error:
        raise FileFormatError(f"{path}: cannot write ({error.strerror}); choose another path") from None


def _model(
    network: Network, digest: str, external: External | None, producer_version: str = __version__
) -> onnx.ModelProto:
    """The model of a file."""
    model = build_model(network, producer_version=producer_version, external=external)
    model.metadata_props.add(key=METADATA_KEY, value=_description_text(network, digest))
    return model


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _sha256(value: Any) -> str:
    return hashlib.sha256(_canonical(value).encode()).hexdigest()


def _description_text(network: Network, digest: str) -> str:
    """The metadata entry: all of the description that is not an initializer."""
    return _canonical(
        {
            "format_version": network.format_version,
            "structure": network.structure(),
            "input_scale": network.input.scale.tolist(),
            "input_zero": network.input.zero.tolist(),
            "digest": digest,
            "metadata": network.metadata,
            "metadata_sha256": _sha256(network.metadata),
        }
    )


def _refuse(path: Path, what: str) -> NoReturn:
    one_line = "".join(c if c.isprintable() else " " for c in what)
    raise FileFormatError(f"{path}: {one_line}") from None


def _read(path: Path) -> bytes:
    try:
        if path.is_dir():
            _refuse(path, "is a folder, not a file; name the .onnx file in it")
        if not path.exists():
            _refuse(path, "there is no such file; check the path")
        if not path.is_file():
            _refuse(path, "is not a regular file; copy it to one first")
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        _refuse(
            path, f"cannot be read ({getattr(error, 'strerror', None) or error}); check the path and its permissions"
        )
    if not data:
        _refuse(path, "is empty; copy or export it again")
    if len(data) > MAX_FILE_BYTES:
        _refuse(path, f"has more than {MAX_FILE_BYTES} bytes, the most that lapilli reads")
    return data


def _bytes_beside_tensors(data: bytes) -> int:
    """Bytes of a serialized model that are not the contents of tensors.

    Raises
    ------
    NotProtobufError
        If the data are truncated or something else, or a message has more fields than ours have.
    """
    graphs = [content for number, content in fields_of(memoryview(data), _MODEL_FIELDS) if number == _MODEL_GRAPH]
    if len(graphs) > 1:
        raise NotProtobufError(f"it has {len(graphs)} graphs")
    tensors = [t for graph in graphs for number, t in fields_of(graph, _GRAPH_FIELDS) if number == _GRAPH_INITIALIZER]
    contents = (c for t in tensors for number, c in fields_of(t, _TENSOR_FIELDS) if number == _TENSOR_RAW_DATA)
    return len(data) - sum(map(len, contents))


def _parse(path: Path, data: bytes) -> onnx.ModelProto:
    try:
        beside = _bytes_beside_tensors(data)
        if beside > MAX_BYTES_BESIDE_TENSORS:
            _refuse(path, f"has {beside} bytes beside its tensors, more than {MAX_BYTES_BESIDE_TENSORS}; {REEXPORT}")
        return onnx.ModelProto.FromString(data)
    except (NotProtobufError, DecodeError) as error:
        _refuse(path, f"is truncated or not an ONNX file ({error}); copy or export it again")


def _metadata_text(path: Path, model: onnx.ModelProto) -> str:
    entries = [entry.value for entry in model.metadata_props if entry.key == METADATA_KEY]
    if len(entries) != 1:
        _refuse(
            path,
            f"is ONNX, but not a lapilli file: it has {len(entries)} metadata entries 'lapilli' and needs 1; "
            "lapilli reads networks that it exported",
        )
    return entries[0]


def _json(path: Path, text: str) -> dict[str, Any]:
    try:
        described = json.loads(text)
    except (ValueError, RecursionError) as error:
        _refuse(path, f"metadata 'lapilli': not JSON ({type(error).__name__}: {error}); {REEXPORT}")
    if not isinstance(described, dict):
        _refuse(path, f"metadata 'lapilli': a {type(described).__name__}, not an object; {REEXPORT}")
    version = described.get("format_version")
    if version not in FORMAT_VERSIONS:
        known = " and ".join(map(str, FORMAT_VERSIONS))
        _refuse(path, f"format version {version!r:.40}; lapilli {__version__} reads {known}; use the one that wrote it")
    return described


def _tensors(
    path: Path, graph: onnx.GraphProto, described: dict[str, Any]
) -> tuple[dict[str, npt.NDArray[Any]], External | None]:
    """Initializers by name, each checked before it is read, and the data file they are in."""
    if len(graph.initializer) > MAX_PARTS:
        _refuse(path, f"has {len(graph.initializer)} initializers, more than {MAX_PARTS}; {REEXPORT}")
    kinds: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}
    for tensor in graph.initializer:
        where = f"initializer {tensor.name!r:.200}"
        if tensor.name in kinds:
            _refuse(path, f"{where}: occurs twice; {REEXPORT}")
        dtype = _DTYPES.get(tensor.data_type)
        if dtype is None:
            kind = (
                TensorProto.DataType.Name(tensor.data_type)
                if tensor.data_type in TensorProto.DataType.values()
                else "?"
            )
            _refuse(path, f"{where}: has type {kind}; weights are INT8 and biases INT64; {REEXPORT}")
        if len(tensor.dims) > MAX_AXES:
            _refuse(path, f"{where}: has {len(tensor.dims)} axes; weights have at most 4; {REEXPORT}")
        kinds[tensor.name] = tuple(tensor.dims), dtype
    outside = [t for t in graph.initializer if t.data_location != TensorProto.DEFAULT or len(t.external_data)]
    external = _external(path, outside, graph, described) if outside else None
    arrays: dict[str, npt.NDArray[Any]] = {}
    for tensor in graph.initializer:
        shape, dtype = kinds[tensor.name]
        size = len(tensor.raw_data)
        if external is not None and tensor.name in external.places:
            size = external.places[tensor.name].length
        if any(d < 0 for d in shape) or math.prod(shape) * dtype.itemsize != size:
            _refuse(
                path,
                f"initializer {tensor.name!r:.200}: {size} bytes do not make the shape {list(shape)}; {REEXPORT}",
            )
        if external is None or tensor.name not in external.places:
            arrays[tensor.name] = np.frombuffer(tensor.raw_data, dtype).reshape(shape)
    if external is not None:
        try:
            arrays |= read(path, external, kinds)
        except ExternalDataError as error:
            _refuse(path, str(error))
    return arrays, external


def _said_of(path: Path, tensor: TensorProto) -> tuple[str, Place]:
    try:
        return said_of(tensor)
    except ExternalDataError as error:
        _refuse(path, f"initializer {tensor.name!r:.200}: {error}; {REEXPORT}")


def _external(path: Path, outside: list[TensorProto], graph: onnx.GraphProto, described: dict[str, Any]) -> External:
    """The layout of the data file; refused unless the model says exactly that."""
    said: dict[str, tuple[str, Place]] = {}
    for tensor in outside:
        said[tensor.name] = _said_of(path, tensor)
    sizes = ((t.name, said[t.name][1].length if t.name in said else len(t.raw_data)) for t in graph.initializer)
    try:
        external = layout(str(described.get("digest")), sizes)
    except ExternalDataError as error:
        _refuse(path, f"{error}; {REEXPORT}")
    for name, (location, place) in said.items():
        if location != external.location:
            _refuse(
                path,
                f"initializer {name!r:.200}: names the data file {location!r:.200}; only {external.location} beside "
                f"the model is ever opened; {REEXPORT}",
            )
        if external.places.get(name) != place:
            _refuse(
                path,
                f"initializer {name!r:.200}: bytes {place.offset} to {place.offset + place.length} of the data file "
                f"are not its place; {REEXPORT}",
            )
    for name in external.places:
        if name not in said:
            _refuse(path, f"initializer {name!r:.200}: is in the model, and should be in the data file; {REEXPORT}")
    return external


def _network(path: Path, described: dict[str, Any], arrays: dict[str, npt.NDArray[Any]]) -> Network:
    try:
        structure, metadata = described["structure"], described["metadata"]
        parts = len(structure["populations"]) + len(structure["connections"])
        if parts > MAX_PARTS:
            _refuse(path, f"describes {parts} populations and connections, more than {MAX_PARTS}")
        for name in ("input_scale", "input_zero"):
            arrays[name.replace("_", "/")] = np.asarray(described[name], np.float64)
        return from_structure(structure, arrays, metadata)
    except DescriptionError as error:
        _refuse(path, f"{str(error)[:300]}; {REEXPORT}")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError, MemoryError) as error:
        _refuse(path, f"metadata 'lapilli': malformed ({type(error).__name__}: {str(error)[:200]}); {REEXPORT}")


def _check_digests(path: Path, described: dict[str, Any], network: Network) -> str:
    """The network's digest."""
    digest = network.digest()
    for name, found in (("digest", digest), ("metadata_sha256", _sha256(network.metadata))):
        if described.get(name) != found:
            _refuse(
                path,
                f"{name} is {str(described.get(name))[:12]}..., its contents have {found[:12]}...: "
                "the file was changed or damaged; copy or export it again",
            )
    return digest


class _Difference(NamedTuple):
    where: str
    found: Any
    expected: Any


def _check_graph(
    path: Path, model: onnx.ModelProto, network: Network, digest: str, text: str, external: External | None
) -> None:
    """Refuse a file whose graph is not, to the last node, the one that its description writes."""
    version: str | bytes = model.producer_version  # older protobuf gives bytes for what is not text
    if not (isinstance(version, str) and _VERSION.fullmatch(version)):
        _refuse(path, f"producer version {version[:64]!r} is not a version; {REEXPORT}")
    try:
        expected = _model(network, digest, external, version)
    except UnsupportedError as error:
        _refuse(path, f"{error}; {REEXPORT}")
    if model.SerializeToString(deterministic=True) != expected.SerializeToString(deterministic=True):
        where = _first_difference(model, expected) if text == expected.metadata_props[0].value else "metadata 'lapilli'"
        _refuse(path, f"{where} is not what the description says; another program changed the file; {REEXPORT}")


def _first_difference(model: onnx.ModelProto, expected: onnx.ModelProto) -> str:
    """Name of the first part of a model that differs."""
    pairs = [("function", model.functions, expected.functions), ("node", model.graph.node, expected.graph.node)]
    pairs += [
        (what, getattr(model.graph, what), getattr(expected.graph, what)) for what in ("input", "output", "initializer")
    ]
    for what, found, wanted in pairs:
        for f, w in zip(found, wanted, strict=False):
            if f.SerializeToString(deterministic=True) != w.SerializeToString(deterministic=True):
                return f"{what} {w.name!r}"
        if len(found) != len(wanted):
            return f"the number of {what}s ({len(found)} for {len(wanted)})"
    return "the model's header"
