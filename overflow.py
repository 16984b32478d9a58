"""What happens to a number that leaves its width: the description's answer, and the other answers that there are.

The description wraps the current and saturates the membrane, as Lava's fixed-point model does. Emulators of the same
chip answer otherwise, and no published measurement decides between them. A chip profile names the policies known for
it (``deploy/chips``); :mod:`lapilli.bounds` proves where they cannot differ, and ``lapilli sim --policies`` reports the
inputs on which they do.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

CurrentRule: TypeAlias = Literal["wrap", "twos_complement", "unlimited"]
BiasedRule: TypeAlias = Literal["unlimited", "twos_complement"]
MembraneRule: TypeAlias = Literal["saturate", "unlimited"]


@dataclass(frozen=True, kw_only=True)
class OverflowPolicy:
    """Where numbers are limited in one step of a neuron, in the order of the step; the defaults are the description's.

    Attributes
    ----------
    name : str
    accumulator_bits : int or None
        Width with sign, in two's complement, of the dendritic accumulator that holds ``I 2^f`` before it joins ``u``;
        None: exact.
    current : {"wrap", "twos_complement", "unlimited"}
        ``u`` at the state width ``b``: into ``-2^(b-1) < u <= 2^(b-1)``, into ``-2^(b-1) <= u < 2^(b-1)``, or not.
    biased : {"unlimited", "twos_complement"}
        ``u + b`` before it joins ``v``: exact, or wrapped at the state width.
    membrane : {"saturate", "unlimited"}
        ``v`` clipped to ``±(2^(b-1) - 1)``, or not.
    source, note : str
    """

    name: str
    accumulator_bits: int | None = None
    current: CurrentRule = "wrap"
    biased: BiasedRule = "unlimited"
    membrane: MembraneRule = "saturate"
    source: str = ""
    note: str = ""

    @property
    def differs_at_overflows_only(self) -> bool:
        """Whether it can differ only where the description itself wraps or saturates, which every engine counts."""
        return self.accumulator_bits is None and self.current != "twos_complement" and self.biased == "unlimited"

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)


LAVA = OverflowPolicy(
    name="lava",
    source="lava-nc 0.10.0, lava/proc/lif/models.py, AbstractPyLifModelFixed.subthr_dynamics",
    note="the description's own; Lava wraps a current once, the description as often as needed",
)
