"""Export as NIR, with what NIR cannot say kept beside it.

The graph holds the description's numbers as real ones: weights ``w 2^e``, thresholds ``theta / 2^f``, time constants
``dt 4096 / d``, which Euler's rule with the step ``dt`` turns into the same decays. A reader of NIR gets a network that
does what the description does but for the losses listed; lapilli reads the description itself back
(:mod:`.record`).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from pathlib import Path

from ...bounds import population_bounds
from ...errors import FileFormatError, MissingDependencyError, UnsupportedError
from ...network import DECAY_ONE, Network, Population
from ...whole_file import written_whole
from .real_network import NIRWarning
from .record import record_of
from .tree import build_tree


def save_nir(network: Network, path: str | Path, *, dt: float, strict: bool = False) -> Path:
    """Write a description as a NIR file, which appears under its name only when it is complete.

    Parameters
    ----------
    network : Network
    path : path
    dt : float
        Length of a step in seconds: NIR's time constants are times.
    strict : bool
        Refuse a network that a reader of NIR would run otherwise (:func:`lost_in_nir`), instead of warning. What NIR
        leaves unsaid of every network (:func:`unsaid_in_nir`) is warned of in either case.

    Raises
    ------
    UnsupportedError
        If NIR has no node for something, or, with ``strict``, if something is lost.
    FileFormatError
        If the file cannot be written there.
    """
    try:
        import nir
    except ImportError:
        raise MissingDependencyError("writing NIR needs the package nir: pip install nir") from None
    path = Path(path)
    if not 0 < dt < math.inf:
        raise UnsupportedError(f"dt {dt!r}: give the length of a step in seconds")
    losses = list(lost_in_nir(network))
    if losses and strict:
        raise UnsupportedError(f"network {network.name!r}: NIR cannot say {losses[0]} (refused because of strict)")
    tree = build_tree(network, dt)
    losses += unsaid_in_nir(network)
    tree["metadata"] = record_of(network, dt, losses)
    graph = nir.NIRGraph.from_dict({**tree, "type_check": False})
    try:
        with written_whole(path) as temporary:
            nir.write(temporary, graph)
    except OSError as error:
        raise FileFormatError(f"{path}: cannot write ({error.strerror or error}); choose another path") from None
    if losses:
        warnings.warn(f"{path}: NIR cannot say {'; '.join(losses)}", NIRWarning, stacklevel=2)
    return path


def lost_in_nir(network: Network) -> Iterator[str]:
    """What a reader of the NIR graph alone would do differently."""

    def named(populations: list[Population]) -> str:
        names = [p.name for p in populations]
        return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")

    soft = [p for p in network.populations if p.reset == "subtract"]
    if soft:
        yield f"the soft reset of {named(soft)} (its neurons reset to zero)"
    truncated = [p for p in network.populations if 0 < p.dv < DECAY_ONE or 0 < p.du < DECAY_ONE]
    if truncated:
        yield f"the truncation of decays in {named(truncated)}"
    started = [p for p in network.populations if p.v_init]
    if started:
        yield f"the initial membrane of {named(started)}"
    narrow = [p for p in network.populations if _overflows(network, p)]
    if narrow:
        yield f"the overflow of {narrow[0].state_bits}-bit states, which the worst case reaches in {named(narrow)}"
    if network.readout is None:
        yield "that there is no readout (the last population is its output)"
    elif network.readout.kind == "weighted_count":
        yield "the weighted spike count of the readout"
    if (network.input.scale != 1).any() or network.input.zero.any():
        yield "how real inputs become integers (its input is the integers)"


def unsaid_in_nir(network: Network) -> Iterator[str]:
    """What NIR has no words for, in any network: a reader does the same only by the same conventions."""
    bits = sorted({c.weight_bits for c in network.connections})
    yield (
        f"quantization: weights are integers of {' and '.join(map(str, bits))} bits and states integers, "
        "which it holds as real numbers"
    )
    if any(c.delay == 0 for c in network.connections):
        yield (
            "delays of zero: a spike arrives in the step in which it is emitted, and where a reader's connections take "
            "a step, spikes come later by one step for each layer"
        )


def _overflows(network: Network, population: Population) -> bool:
    bounds = population_bounds(network, population)
    return bounds.can_wrap or bounds.can_saturate
