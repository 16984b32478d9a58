"""What lava-dl 0.6 makes of a weight matrix: the integers that its loader really runs.

``lava.lib.dl.netx`` packs every dense matrix into Loihi's synapse format before it hands it to Lava: it shifts the
weights left as far as they fit, counts the low bits that are free, and Lava's ``Dense`` drops those bits by its own
reading of the signs. For most matrices nothing is lost. The exceptions are what this module finds, with the
loader's own arithmetic (``netx/utils.py:optimize_weight_bits``, ``lava/utils/weightutils.py``).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ...validation import IntArray

LOW, HIGH_MIXED, HIGH = -256, 254, 255  # Loihi's 8-bit weights: of both signs (even ones), of one sign


def run_weights(*parts: IntArray) -> list[npt.NDArray[np.float64]] | None:
    """The matrices that Lava multiplies with after lava-dl has packed them; None if it cannot pack them.

    Parameters
    ----------
    *parts : int64 [N_out, N_in]
        One matrix; for a recurrent layer the forward and the recurrent one, which lava-dl packs together.

    Returns
    -------
    list of float64 [N_out, N_in]
        In units of the file's weights; exact, a fraction where the low bits got lost.
    """
    weight = np.hstack(parts)
    low, high = int(weight.min()), int(weight.max())
    mixed = low < 0 <= high
    if (low == 0 and high == 0) or low < LOW or high > (HIGH_MIXED if mixed else HIGH):
        return None
    one_sign = LOW / low if high < 0 else HIGH / high if high else np.inf
    scale = min(127 / high if high else np.inf, -128 / low) if mixed else one_sign
    shift = int(np.floor(np.log2(scale))) + mixed
    free = next((n for n in range(8, 0, -1) if not np.any(weight % 2**n)), 0) - mixed
    bits = 8 - shift - free
    if shift < 0:
        return None
    made = [_stored(part << shift, bits) for part in parts]
    return None if any(m is None for m in made) else [m / 2**shift for m in made if m is not None]


def _stored(weight: IntArray, bits: int) -> IntArray | None:
    """Lava's ``Dense`` truncates to ``bits``, with one bit less for weights of both signs."""
    inhibitory = weight.max() <= 0 and weight.min() < 0
    mixed = bool(weight.min() < 0 < weight.max())
    drop = 8 - bits + mixed
    if drop < 0:
        return None
    magnitude = np.clip(-weight if inhibitory else weight, LOW if mixed else 0, HIGH)
    kept = (magnitude >> drop) << drop
    return -kept if inhibitory else kept


def why_inexact(parts: Sequence[IntArray]) -> str | None:
    """Why lava-dl would run other weights than these, with what to do about it; None if it runs them exactly."""
    made = run_weights(*parts)
    if made is not None and all(np.array_equal(m, p) for m, p in zip(made, parts, strict=True)):
        return None
    together = np.concatenate([p.reshape(-1) for p in parts])
    low, high = int(together.min()), int(together.max())
    if low == 0 and high == 0:
        return "all its weights are zero, and lava-dl's loader divides by the largest one; leave the layer out"
    if low < LOW or high > (HIGH_MIXED if low < 0 else HIGH):
        return (
            f"its weights are {low}..{high} in units of 64 (2^6), and a synapse holds -256..254, or 0..255 of one "
            "sign; lower the weight_exponent together with threshold and bias"
        )
    if made is None:
        return (
            f"its weights {low}..{high} are of different signs in the forward and the recurrent matrix and odd, which "
            "lava-dl packs into 9 bits; make them even"
        )
    wrong = next((p[m != p], m[m != p]) for m, p in zip(made, parts, strict=True) if np.any(m != p))
    return (
        f"lava-dl's loader would run its weight {int(wrong[0][0])} as {wrong[1][0]:g}: it packs a matrix without "
        f"positive weights whose smallest is minus a power of two into one bit too few; change {low} to {low + 1}, or "
        "give the matrix one positive weight"
    )
