"""Which neurons and which samples: NumPy's indexing, as text.

``hidden`` is a whole population, ``hidden[0:10]`` its first ten neurons, ``conv2[3,:,:]`` one channel, ``conv2[3,4,5]``
one neuron. As in NumPy an index is an integer or ``start:stop:step``, negative numbers count from the end, and axes
left out are taken whole.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ...errors import DataError, DescriptionError
from ...network import IntArray, Network, Shape

Select: TypeAlias = "str | Sequence[str] | Mapping[str, npt.ArrayLike]"

_TEXT = re.compile(r"(?P<name>[^\[\]]*)(?:\[(?P<index>[^\[\]]*)\])?")
_SLICE = re.compile(r"(-?\d+)?:(-?\d+)?(?::(-?\d+)?)?")


def select_neurons(net: Network, select: Select) -> dict[str, IntArray]:
    """Flat indices (C order) of chosen neurons by population, ascending, each once: int64 ``[K]``.

    Parameters
    ----------
    net : Network
    select : str, sequence of str, or mapping of population to flat indices
        Texts for the same population add up.

    Raises
    ------
    DescriptionError
        If a population does not exist, an index cannot be read or is out of range, or nothing is selected.
    """
    if isinstance(select, Mapping):
        chosen = [(name, _checked(net, name, indices)) for name, indices in select.items()]
    else:
        chosen = [_read(net, text) for text in ([select] if isinstance(select, str) else select)]
    if not chosen:
        raise DescriptionError("no neuron is selected; name a population, such as 'hidden' or 'conv2[3,:,:]'")
    merged: dict[str, IntArray] = {}
    for name, indices in chosen:
        merged[name] = np.union1d(merged.get(name, np.empty(0, np.int64)), indices)
    return merged


def select_samples(samples: str | Sequence[int] | npt.NDArray[np.integer], total: int) -> IntArray:
    """Indices of chosen samples, ascending, each once: int64 ``[S]``.

    Parameters
    ----------
    samples : str or sequence of int
        Text: integers and slices, separated by commas, such as ``"0:4,17,-1"``.
    total : int
        Number of samples there are.

    Raises
    ------
    DataError
        If the text cannot be read, a sample does not exist, or none is selected.
    """
    parts = samples.split(",") if isinstance(samples, str) else [str(int(s)) for s in samples]
    everything = np.arange(total)
    chosen = []
    for part in (p.strip() for p in parts):
        index = _index(part)
        if index is None:
            raise DataError(f"samples {part!r}: give integers and slices, such as 0:4,17")
        if isinstance(index, int) and not -total <= index < total:
            raise DataError(f"there is no sample {index}; the data have {total}, numbered from 0")
        chosen.append(np.atleast_1d(everything[index]))
    found = np.unique(np.concatenate(chosen)) if chosen else everything[:0]
    if not found.size:
        raise DataError(f"samples {samples!r} select none of the {total}")
    return found


def name_neuron(population: str, shape: Shape, neuron: int) -> str:
    """A neuron in the syntax of :func:`select_neurons`: ``conv2[3,4,5]``."""
    return f"{population}[{','.join(str(int(i)) for i in np.unravel_index(neuron, shape))}]"


def _index(text: str) -> int | slice | None:
    """An integer or a slice; None if the text is neither."""
    if re.fullmatch(r"-?\d+", text):
        return int(text)
    match = _SLICE.fullmatch(text)
    if match is None or (match[3] is not None and int(match[3]) == 0):
        return None
    return slice(*(None if part is None else int(part) for part in match.groups()))


def _read(net: Network, text: str) -> tuple[str, IntArray]:
    match = _TEXT.fullmatch(text.strip())
    if match is None:
        raise DescriptionError(f"selection {text!r} cannot be read; write it like 'hidden[0:10]' or 'conv2[3,:,:]'")
    population = net.population(match["name"])
    flat = np.arange(population.size).reshape(population.shape)
    if match["index"] is None:
        return population.name, flat.ravel()
    indices = [_index(part.strip()) for part in match["index"].split(",")]
    if None in indices:
        wrong = match["index"].split(",")[indices.index(None)].strip()
        raise DescriptionError(f"selection {text!r}: {wrong!r} is neither an integer nor a slice like 0:10 or :")
    if len(indices) > flat.ndim:
        raise DescriptionError(
            f"selection {text!r} has {len(indices)} indices; {population.name!r} has shape {population.shape}"
        )
    for index, size in zip(indices, flat.shape, strict=False):
        if isinstance(index, int) and not -size <= index < size:
            raise DescriptionError(f"selection {text!r}: {index} is outside the shape {population.shape}")
    chosen = np.atleast_1d(flat[tuple(indices)]).ravel()
    if not chosen.size:
        raise DescriptionError(f"selection {text!r} is empty; {population.name!r} has shape {population.shape}")
    return population.name, np.unique(chosen)


def _checked(net: Network, name: str, indices: npt.ArrayLike) -> IntArray:
    population = net.population(name)
    flat = np.atleast_1d(np.asarray(indices))
    if flat.dtype.kind not in "iu" or not flat.size:
        raise DescriptionError(f"selection of {name!r}: give flat indices as integers, at least one")
    if not (int(flat.min()) >= 0 and int(flat.max()) < population.size):
        raise DescriptionError(f"selection of {name!r}: {flat.min()}..{flat.max()} is outside 0..{population.size - 1}")
    return np.unique(flat.astype(np.int64))
