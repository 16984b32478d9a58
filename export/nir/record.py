"""The exact description inside a NIR file that lapilli wrote.

The graph's metadata has a JSON text ``lapilli`` (structure, digest, what NIR cannot say) and the arrays that are not
weights. Weights are read from the graph's nodes. The reader builds the graph again from what it has read, and refuses
the file unless both are the same: so what another tool reads is what lapilli describes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from ... import __version__
from ...errors import DescriptionError, FileFormatError, UnsupportedError
from ...network import Network, from_structure
from .tree import build_tree, weight_nodes

KEY = "lapilli"
RECORD_VERSION = 1
_ARRAY = "lapilli array "  # before the description's name of an array; '/' is '|', which HDF5 does not split at
_AS_IT_STANDS = "to import the graph as it stands, give steps, dt, reset and discretization"


def record_of(network: Network, dt: float, losses: list[str]) -> dict[str, Any]:
    """The metadata of a NIR graph that says what the graph cannot."""
    text = {
        "record_version": RECORD_VERSION,
        "lapilli": __version__,
        "dt": dt,
        "discretization": "euler",
        "not_said_by_nir": losses,
        "remarks": [
            "spikes cross all connections without a Delay within one step; a cycle takes one step",
            "weights are integers of few bits times a power of two, states are integers",
        ],
        "structure": network.structure(),
        "metadata": dict(network.metadata),
        "digest": network.digest(),
    }
    in_nodes = {f"{c.name}/weight" for c in network.connections if c.synapse.kind != "scale"}
    beside = {_key(k): v for k, v in network.tensors().items() if k not in in_nodes}
    return {KEY: json.dumps(text), **beside}


def _key(name: str) -> str:
    return _ARRAY + name.replace("/", "|")


def read_record(tree: Mapping[str, Any], called: str) -> Network | None:
    """The description that a NIR graph carries; None if it carries none.

    Raises
    ------
    FileFormatError
        If it is damaged, of another version, or not what the graph says.
    """
    beside = tree.get("metadata")
    if not isinstance(beside, Mapping) or not isinstance(beside.get(KEY), str):
        return None
    try:
        record = json.loads(beside[KEY])
        version = record["record_version"]
        if version != RECORD_VERSION:
            raise FileFormatError(
                f"{called}: its description has version {version!r}; this lapilli reads {RECORD_VERSION}"
            )
        structure, digest, dt = record["structure"], record["digest"], float(record["dt"])
        tensors = {k[len(_ARRAY) :].replace("|", "/"): np.asarray(v) for k, v in beside.items() if k.startswith(_ARRAY)}
        network = from_structure(structure, tensors | _weights(tree, structure), record["metadata"])
        same = network.digest() == digest and _same(build_tree(network, dt), tree)
    except (DescriptionError, UnsupportedError) as error:
        raise FileFormatError(f"{called}: its description is damaged ({error}); {_AS_IT_STANDS}") from None
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError) as error:
        said = f"{type(error).__name__}: {error}"[:200]
        raise FileFormatError(f"{called}: its description is malformed ({said}); {_AS_IT_STANDS}") from None
    if not same:
        raise FileFormatError(f"{called}: the graph was changed after lapilli wrote it; {_AS_IT_STANDS}")
    return network


class _Named:
    """As much of a network as :func:`weight_nodes` needs."""

    def __init__(self, structure: Mapping[str, Any]) -> None:
        self.populations = [_Item(p) for p in structure["populations"]]
        self.connections = [_Item(c) for c in structure["connections"]]


class _Item:
    def __init__(self, values: Mapping[str, Any]) -> None:
        self.__dict__.update({k: str(values[k]) for k in ("name", "source", "target") if k in values})


def _weights(tree: Mapping[str, Any], structure: Mapping[str, Any]) -> dict[str, Any]:
    """Integer weights from the graph's nodes; those of scales are beside it, in the shape they had."""
    names = weight_nodes(_Named(structure))  # pyright: ignore[reportArgumentType]
    return {
        f"{c['name']}/weight": np.asarray(tree["nodes"][names[c["name"]]]["weight"], np.float64)
        * 2.0 ** -int(c["weight_exponent"])
        for c in structure["connections"]
        if c["synapse"]["kind"] != "scale"
    }


def _same(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    """Whether two graphs have the same nodes, values and edges; metadata and text of single nodes do not count."""
    if sorted(ours["edges"]) != sorted((a, b) for a, b in theirs["edges"]) or set(ours["nodes"]) != set(
        theirs["nodes"]
    ):
        return False
    for name, node in ours["nodes"].items():
        other = theirs["nodes"][name]
        for key, value in node.items():
            equal = value == other[key] if isinstance(value, str) else np.array_equal(value, other[key])
            if not equal:
                return False
    return True
