"""Bits for each layer: the least synaptic memory that keeps the accuracy.

Memory is counted as :func:`lapilli.export.sensitivity.memory_bits`: stored weights times their bits. The search knows
nothing but "this many bits give this many correct samples", and goes through five stages::

    widest        every layer at the widest candidate
    sensitivity   each layer alone at each other candidate
    greedy        narrow one layer by one candidate at a time, the one first that loses least for each bit saved
    local         narrow any layer to any candidate; widen one and narrow another, where that saves memory
    proof         everything cheaper that is left, if it is little enough: then no cheaper choice exists

Nothing is tried twice, nothing is random, and each step saves memory, so the same samples give the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import product
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy.typing as npt

from ..errors import RecipeError, UnsupportedError
from ..recording import Executor, decide, scores
from .calibration import Calibrator
from .folding import Folded
from .quantization import QuantizeConfig, quantize_with_latent
from .sensitivity import Samples, memory_text, share

if TYPE_CHECKING:
    from rich.console import RenderableType

Bits: TypeAlias = tuple[int, ...]  # of each layer, in the network's order
Reference: TypeAlias = Literal["float", "widest"]
Stage: TypeAlias = Literal["widest", "sensitivity", "greedy", "local", "proof"]

MAX_LISTED = 100_000  # choices that the proof is willing to list


@dataclass(frozen=True)
class Tried:
    """One choice of bits that was tried.

    Attributes
    ----------
    stage : {"widest", "sensitivity", "greedy", "local", "proof"}
        Of the search (module text).
    bits : tuple of int
        Of each layer, in the network's order.
    memory_bits : int
    accuracy : float or None
        None if the network does not survive these bits; ``error`` then says why.
    meets : bool
        Whether the accuracy is good enough.
    """

    stage: Stage
    bits: Bits
    memory_bits: int
    accuracy: float | None
    meets: bool
    error: str = ""


@dataclass(frozen=True)
class MixedPrecision:
    """What :func:`mixed_precision` found.

    Attributes
    ----------
    bits : dict of int
        Weight bits of each layer.
    folded : Folded
        The network given; with ``bias_correction``, its biases are corrected for these bits.
    config : QuantizeConfig
        The configuration given, with these bits.
    accuracy : float
        With them, on the samples given.
    accuracy_reference : float
        What the loss is measured from; ``relative_to`` says what that is.
    memory_bits, memory_bits_widest : int
        Synaptic memory with them, and with the widest candidate everywhere.
    proven : bool
        Whether every cheaper choice was tried and failed; else this is the best that the search came upon.
    tried : tuple of Tried
        In order.
    """

    bits: Mapping[str, int]
    folded: Folded
    config: QuantizeConfig
    accuracy: float
    accuracy_reference: float
    relative_to: Reference
    max_loss: float
    samples: int
    memory_bits: int
    memory_bits_widest: int
    proven: bool
    tried: tuple[Tried, ...]

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        document = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "folded"}
        document |= {"bits": dict(self.bits), "config": self.config.model_dump(mode="json")}
        return document | {"tried": [asdict(t) | {"bits": list(t.bits)} for t in self.tried]}

    def render(self) -> RenderableType:
        """A few lines and a table of the layers (a rich renderable)."""
        from rich import box
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
        table.add_column("layer")
        table.add_column("bits", justify="right")
        for name, bits in self.bits.items():
            table.add_row(name, str(bits))
        return Group(table, "", Text(self._summary()))

    def __str__(self) -> str:
        return ", ".join(f"{name} {bits}" for name, bits in self.bits.items()) + f" bits: {self._summary()}"

    def _summary(self) -> str:
        reference = "the float network" if self.relative_to == "float" else "the widest weights everywhere"
        saved = 1 - self.memory_bits / self.memory_bits_widest
        sure = "no cheaper choice exists" if self.proven else "the best that was found; cheaper ones are not ruled out"
        return (
            f"accuracy {share(self.accuracy)} against {share(self.accuracy_reference)} of {reference} (loss allowed: "
            f"{share(self.max_loss)}, {self.samples:,} samples), {memory_text(self.memory_bits)} of weights, "
            f"{saved:.1%} less than {memory_text(self.memory_bits_widest)}; {len(self.tried)} choices tried, {sure}"
        )


def mixed_precision(
    folded: Folded,
    config: QuantizeConfig,
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    *,
    calibration: npt.ArrayLike | None = None,
    execute: Executor,
    max_loss: float,
    candidates: Sequence[int] = (8, 6, 5, 4, 3, 2),
    relative_to: Reference = "float",
    max_tried: int = 400,
    on_try: Callable[[Tried], None] | None = None,
) -> MixedPrecision:
    """Weight bits of each layer that keep the accuracy with the fewest synaptic-memory bits.

    Each try quantizes the network and runs all samples. Choose on samples that are not the test set, for example on
    part of the training set: the choice fits them.

    Parameters
    ----------
    folded : Folded
    config : QuantizeConfig
        All but ``weight_bits``, which is what is searched for. What calibration has to find is found for every width.
    x : float [samples, *input_shape] or [steps, samples, *input_shape]
    y : int [samples]
        Their classes.
    calibration : optional
        As for :func:`lapilli.export.quantization.quantize_with_latent`.
    execute : Executor
        For example ``lapilli.sim.executors.find("fast")``.
    max_loss : float
        Share of all samples that may be lost, 0 to 1: 0.005 allows half a percentage point.
    candidates : sequence of int
        Bits to choose from, 2 to 8.
    relative_to : {"float", "widest"}
        Whether the loss is measured from the folded network in float64 or from the widest candidate everywhere.
    max_tried : int
        Stop with the best so far after this many tries.
    on_try : callable, optional
        Called after each, for a progress bar.

    Raises
    ------
    RecipeError
        If ``max_loss``, ``candidates`` or ``max_tried`` are impossible.
    UnsupportedError
        If not even the widest candidate everywhere keeps the accuracy.
    DataError
        If the samples do not fit the network.
    """
    if not 0 <= max_loss < 1:
        raise RecipeError(f"max_loss {max_loss} is not a share of the samples; give 0 or more and less than 1")
    ordered = sorted(set(candidates), reverse=True)
    if not ordered or not all(isinstance(b, int) and 2 <= b <= 8 for b in ordered):
        raise RecipeError(f"candidates {list(candidates)}: give weight bits, each from 2 to 8")
    if max_tried < 1:
        raise RecipeError(f"max_tried {max_tried} is below 1")
    data = Samples.of(folded, x, y)
    assert data.y is not None
    names = [layer.name for layer in folded.layers]

    calibrator = Calibrator(folded, config, calibration, execute=execute)

    def with_bits(bits: Bits) -> tuple[Folded, QuantizeConfig]:
        return calibrator(dict(zip(names, bits, strict=True)))

    def correct(bits: Bits) -> int:
        network = quantize_with_latent(*with_bits(bits), calibration).network
        return sum(
            int((decide(scores(network, execute(network, network.input.encode(part)))) == classes).sum())
            for part, classes in data.chunks(folded)
        )

    n = len(data)
    widest: Bits = (ordered[0],) * len(names)
    if relative_to == "widest":
        reference = correct(widest)
    else:
        reference = sum(
            int((folded.simulate(part).scores.argmax(1) == classes).sum()) for part, classes in data.chunks(folded)
        )
    sizes = [sum(branch.affine.weight.size for branch in folded.branches(layer)) for layer in folded.layers]
    # A loss of 0.005 of 200 samples is 1, whatever binary fractions make of it.
    needed = reference - math.floor(max_loss * n + 1e-9)
    search = Search(sizes, ordered, correct, needed=needed, samples=n, max_tried=max_tried, on_try=on_try)
    best, proven = search.run()
    of_widest = search.tried[0]
    if best is None:
        raise UnsupportedError(
            f"{folded.name}: even with {ordered[0]} bits in every layer "
            + (f"it does not work ({of_widest.error})" if of_widest.error else f"accuracy is {of_widest.accuracy:.2%}")
            + f", but {needed / n:.2%} is asked for (reference {reference / n:.2%}, max_loss {max_loss:g}); "
            "allow more loss, measure it relative to the widest weights, or fine-tune bit-true"
        )
    calibrated, found = with_bits(best.bits)
    return MixedPrecision(
        bits=dict(zip(names, best.bits, strict=True)),
        folded=calibrated,
        config=found,
        accuracy=best.accuracy or 0.0,
        accuracy_reference=reference / n,
        relative_to=relative_to,
        max_loss=max_loss,
        samples=n,
        memory_bits=best.memory_bits,
        memory_bits_widest=of_widest.memory_bits,
        proven=proven,
        tried=tuple(search.tried),
    )


class Search:
    """The search itself (module text), which knows layers by their number of weights only.

    Parameters
    ----------
    sizes : sequence of int
        Weights of each layer.
    candidates : sequence of int
        Bits, widest first.
    correct : callable
        Correct samples with these bits; raises :class:`~lapilli.errors.UnsupportedError` where the network does not
        survive them.
    needed : int
        Correct samples that are enough.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        candidates: Sequence[int],
        correct: Callable[[Bits], int],
        *,
        needed: int,
        samples: int,
        max_tried: int,
        on_try: Callable[[Tried], None] | None = None,
    ):
        self.sizes = tuple(sizes)
        self.candidates = tuple(candidates)
        self.tried: list[Tried] = []
        self._correct = correct
        self._needed, self._samples, self._max_tried = needed, samples, max_tried
        self._on_try = on_try
        self._known: dict[Bits, tuple[Tried, int]] = {}

    def run(self) -> tuple[Tried | None, bool]:
        """The cheapest choice found that is good enough, if any is, and whether no cheaper one exists."""
        widest: Bits = (self.candidates[0],) * len(self.sizes)
        if not self._meets(widest, "widest"):
            return None, False
        proven = False
        try:
            self._greedy(widest, self._sensitivity(widest))
            self._local(self._best().bits)
            proven = self._proof()
        except _EnoughError:
            pass
        return self._best(), proven

    def memory(self, bits: Bits) -> int:
        """Weights times bits."""
        return sum(size * b for size, b in zip(self.sizes, bits, strict=True))

    def _best(self) -> Tried:
        """The cheapest of all that are good enough; of equally cheap ones the most accurate, then the first."""
        good = [t for t in self.tried if t.meets]
        return min(good, key=lambda t: (t.memory_bits, -(t.accuracy or 0.0)))

    def _try(self, bits: Bits, stage: Stage) -> tuple[Tried, int]:
        if bits not in self._known:
            if len(self.tried) >= self._max_tried:
                raise _EnoughError
            error, correct = "", -1
            try:
                correct = self._correct(bits)
            except UnsupportedError as refused:
                error = str(refused)
            accuracy = None if error else correct / self._samples
            tried = Tried(stage, bits, self.memory(bits), accuracy, not error and correct >= self._needed, error)
            self._known[bits] = tried, correct
            self.tried.append(tried)
            if self._on_try:
                self._on_try(tried)
        return self._known[bits]

    def _meets(self, bits: Bits, stage: Stage) -> bool:
        return self._try(bits, stage)[0].meets

    def _sensitivity(self, widest: Bits) -> dict[tuple[int, int], int]:
        """Samples lost with layer ``i`` alone at ``b`` bits, by ``(i, b)``; all of them where it does not survive."""
        at_best = self._try(widest, "sensitivity")[1]
        lost: dict[tuple[int, int], int] = {}
        for i in range(len(widest)):
            for b in self.candidates:
                tried, correct = self._try(_with(widest, i, b), "sensitivity")
                lost[i, b] = self._samples if tried.error else at_best - correct
        return lost

    def _greedy(self, bits: Bits, lost: Mapping[tuple[int, int], int]) -> None:
        """Narrow one layer by one candidate, and the next, until none may; one that failed is left as it is."""
        closed: set[int] = set()
        narrower = self._one_narrower(bits)
        while narrower:

            def cost(i: int, now: Bits = bits, then: Mapping[int, Bits] = narrower) -> tuple[float, int, int]:
                saved = self.memory(now) - self.memory(then[i])
                return ((lost[i, then[i][i]] - lost[i, now[i]]) / saved, -saved, i)

            i = min(narrower, key=cost)
            if self._meets(narrower[i], "greedy"):
                bits = narrower[i]
            else:
                closed.add(i)
            narrower = {j: b for j, b in self._one_narrower(bits).items() if j not in closed}

    def _local(self, bits: Bits) -> None:
        """Take a neighbour that saves memory and is good enough, those first that save most, until there is none."""
        better: Bits | None = bits
        while better:
            bits = better
            cheaper = {b for b in self._neighbours(bits) if self.memory(b) < self.memory(bits)}
            in_order = sorted(cheaper, key=lambda b: (self.memory(b), b))
            better = next((b for b in in_order if self._meets(b, "local")), None)

    def _proof(self) -> bool:
        """Try every choice cheaper than the best, cheapest first; False if they are too many."""
        if len(self.candidates) ** len(self.sizes) > MAX_LISTED:
            return False
        limit = self._best().memory_bits
        choices = product(self.candidates, repeat=len(self.sizes))
        left = sorted((self.memory(b), b) for b in choices if b not in self._known and self.memory(b) < limit)
        if len(left) > self._max_tried - len(self.tried):
            return False
        for _, bits in left:
            if self._meets(bits, "proof"):
                break  # it is the cheapest of all: what is cheaper still has been tried
        return True

    def _one_narrower(self, bits: Bits) -> dict[int, Bits]:
        """By layer, that layer narrower by one candidate."""
        at = {i: self.candidates.index(b) + 1 for i, b in enumerate(bits)}
        return {i: _with(bits, i, self.candidates[k]) for i, k in at.items() if k < len(self.candidates)}

    def _neighbours(self, bits: Bits) -> Iterator[Bits]:
        """One layer narrower by any amount, alone or with another one wider by one candidate."""
        for i in range(len(bits)):
            for b in self.candidates:
                if b < bits[i]:
                    narrower = _with(bits, i, b)
                    yield narrower
                    for j, wide in enumerate(bits):
                        at = self.candidates.index(wide)
                        if j != i and at > 0:
                            yield _with(narrower, j, self.candidates[at - 1])


class _EnoughError(Exception):
    """``max_tried`` is reached."""


def _with(bits: Bits, i: int, b: int) -> Bits:
    return (*bits[:i], b, *bits[i + 1 :])
