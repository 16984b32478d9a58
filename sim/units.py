"""Numbers with sane units for tables and pages: 3.1 µJ, 840 ns, 1.25 M."""

from __future__ import annotations

import math
from collections.abc import Sequence

_PREFIXES = {-15: "f", -12: "p", -9: "n", -6: "µ", -3: "m", 0: "", 3: "k", 6: "M", 9: "G", 12: "T"}


def _exponent(value: float) -> int:
    """Power of ten of the SI prefix that leaves 1 to 999 before the unit."""
    if value == 0 or not math.isfinite(value):
        return 0
    magnitude = float(f"{abs(value):.2e}")  # rounds first: 999.6 pJ is 1.00 nJ
    return min(max(3 * math.floor(math.log10(magnitude) / 3), -15), 12)


def _digits(scaled: float) -> str:
    """Three significant digits, without an exponent."""
    if scaled == 0:
        return "0"
    decimals = min(max(2 - math.floor(math.log10(abs(float(f"{scaled:.2e}")))), 0), 3)
    return f"{scaled:.{decimals}f}"


def si(value: float | None, unit: str) -> str:
    """``value`` with an SI prefix and three significant digits; an em dash for None.

    >>> si(2.36e-11, "J"), si(0.0, "s"), si(None, "J")
    ('23.6 pJ', '0 s', '—')
    """
    if value is None:
        return "—"
    exponent = _exponent(value)
    return f"{_digits(value / 10.0**exponent)} {_PREFIXES[exponent]}{unit}"


def si_range(low: float, high: float, unit: str) -> str:
    """``low`` to ``high`` in one common unit, that of ``high``.

    >>> si_range(4e-7, 1.2e-6, "J")
    '0.400–1.20 µJ'
    """
    exponent = _exponent(high)
    if _digits(low / 10.0**exponent) == _digits(high / 10.0**exponent):
        return si(high, unit)
    return f"{_digits(low / 10.0**exponent)}–{_digits(high / 10.0**exponent)} {_PREFIXES[exponent]}{unit}"


def axis_unit(values: Sequence[float], unit: str) -> tuple[float, str]:
    """Factor and unit that suit the largest of ``values`` on an axis: multiply by the factor, write the unit.

    >>> axis_unit([2e-9, 5e-7], "J")
    (1000000000.0, 'nJ')
    """
    exponent = _exponent(max(map(abs, values), default=0.0))
    return 10.0**-exponent, f"{_PREFIXES[exponent]}{unit}"


def count(value: float) -> str:
    """A number of things: thousands grouped up to a million, then k/M/G with three digits.

    >>> count(12.25), count(48_000), count(3_400_000)
    ('12.2', '48,000', '3.40 M')
    """
    if abs(value) < 1e6:
        whole = float(value).is_integer() or abs(value) >= 1000
        return f"{value:,.0f}" if whole else _digits(value)
    return si(value, "").rstrip()


def percent(fraction: float | None, decimals: int = 2) -> str:
    """A fraction as percent; an em dash for None.

    >>> percent(0.9875)
    '98.75 %'
    """
    return "—" if fraction is None else f"{100 * fraction:.{decimals}f} %"
