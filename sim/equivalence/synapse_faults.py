"""What could be wrong with the synapses into a neuron, read from the difference of its currents over time."""

from __future__ import annotations

from collections.abc import Iterator
from functools import singledispatch
from typing import NamedTuple

import numpy as np

from ...network import Connection, Conv2d, Dense, IntArray, Scale, Shape, Synapse
from .evidence import Evidence

MAX_WEIGHTS = 4096  # candidates that are looked at; a neuron rarely hears more sources at one step
SHOWN = 4  # of the weights that explain a difference equally well


class FanIn(NamedTuple):
    """Synapses into one neuron.

    Attributes
    ----------
    sources, weights : int64 [K]
        Flat index of each source neuron, and the weight from it.
    places : list of tuple
        Index of each weight in its tensor.
    """

    sources: IntArray
    weights: IntArray
    places: list[tuple[int, ...]]


def synapse_causes(e: Evidence) -> Iterator[str]:
    """Which connection, and if one weight explains it, which weight; only where the currents differ."""
    mine, theirs = e.baseline.current, e.other.current
    if mine is None or theirs is None or e.origin is None:
        return
    last = e.agreed  # from then on, a different current may have a different source
    difference = np.array(theirs[:last]) - np.array(mine[:last])
    found: list[str] = []
    active: list[str] = []
    for c in e.network.incoming(e.population.name):
        into = fan_in(c.synapse, e.network.shape_of(c.source), e.population.shape, e.neuron)
        shift = e.population.fraction_bits + c.weight_exponent
        arriving = e.arriving[c.name][:, into.sources]
        found += _one_weight(c, difference, arriving[:last], into, shift)
        found += _whole_connection(c, difference, (arriving @ into.weights) << shift)
        if arriving[e.origin].any():
            active.append(repr(c.name))
    if not found:
        named = ", ".join(active) or "none that a source spike could explain"
        found = [f"the current differs although every source spike agrees; synapses active at this step: {named}"]
    yield from found


def _one_weight(c: Connection, difference: IntArray, arriving: IntArray, into: FanIn, shift: int) -> list[str]:
    """Weights whose change alone gives the difference of the currents at every step.

    Sources that are active at the same steps cannot be told apart: then the fewest flipped bits come first.
    """
    n = int(difference.nonzero()[0][0])
    found: list[tuple[int, str]] = []
    for k in arriving[n].nonzero()[0][:MAX_WEIGHTS]:
        by, rest = divmod(int(difference[n]), int(arriving[n, k]) << shift)
        if rest == 0 and np.array_equal(difference, (arriving[:, k] * by) << shift):
            place, old = ", ".join(str(i) for i in into.places[k]), int(into.weights[k])
            flipped = ((old ^ (old + by)) & 0xFF).bit_count() if -128 <= old + by <= 127 else 9
            found.append((flipped, f"weight [{place}] of {c.name!r} acts as {old + by} instead of {old}"))
    texts = [text for _, text in sorted(found, key=lambda item: item[0])]
    if len(texts) > SHOWN:
        rest = f"or one of {len(texts) - SHOWN} other weights of {c.name!r} whose sources are active at the same steps"
        return [*texts[:SHOWN], rest]
    return texts


def _whole_connection(c: Connection, difference: IntArray, part: IntArray) -> Iterator[str]:
    """Changes of a connection's whole contribution [T]: absent, one step off, of another exponent or sign."""
    here = part[: len(difference)]
    late, early = np.concatenate([[0], part[:-1]])[: len(here)], np.concatenate([part[1:], [0]])[: len(here)]
    for text, faulty in (
        ("contributes nothing", 0 * here),
        ("arrives one step late", late),
        ("arrives one step early", early),
        ("counts twice (weight_exponent one higher)", 2 * here),
        ("counts half (weight_exponent one lower)", here // 2),
        ("has the opposite sign", -here),
    ):
        if np.array_equal(difference, faulty - here):
            yield f"connection {c.name!r} {text}"


@singledispatch
def fan_in(synapse: Synapse, source: Shape, target: Shape, neuron: int) -> FanIn:
    """Synapses into the neuron at a flat index of the target."""
    raise NotImplementedError(type(synapse).__name__)


@fan_in.register
def _(synapse: Dense, source: Shape, target: Shape, neuron: int) -> FanIn:  # noqa: ARG001
    weights = synapse.weight[neuron].astype(np.int64)
    return FanIn(np.arange(len(weights)), weights, [(neuron, j) for j in range(len(weights))])


@fan_in.register
def _(synapse: Scale, source: Shape, target: Shape, neuron: int) -> FanIn:  # noqa: ARG001
    channel = int(np.unravel_index(neuron, target)[0]) if len(synapse.weight) > 1 else 0
    return FanIn(np.array([neuron]), synapse.weight[[channel]].astype(np.int64), [(channel,)])


@fan_in.register
def _(synapse: Conv2d, source: Shape, target: Shape, neuron: int) -> FanIn:
    c_out, y, x = (int(i) for i in np.unravel_index(neuron, target))
    per_group, c_in = synapse.weight.shape[0] // synapse.groups, synapse.weight.shape[1]
    sources, places = [], []
    for c, i, j in np.ndindex(*synapse.weight.shape[1:]):
        row = y * synapse.stride[0] - synapse.padding[0] + i * synapse.dilation[0]
        column = x * synapse.stride[1] - synapse.padding[1] + j * synapse.dilation[1]
        if 0 <= row < source[1] and 0 <= column < source[2]:
            channel = c_out // per_group * c_in + c
            sources.append((channel * source[1] + row) * source[2] + column)
            places.append((c_out, c, i, j))
    weights = np.array([synapse.weight[place] for place in places], np.int64)
    return FanIn(np.array(sources, np.int64), weights, places)
