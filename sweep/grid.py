"""The points of a sweep: every combination of the values of its axes, and every seed."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ..errors import RecipeError
from ..recipe import Recipe, load_recipe

MAX_POINTS = 10_000
_CLOSING = {"[": "]", "{": "}", "(": ")"}


@dataclass(frozen=True)
class Axis:
    """One ``--set``: keys of the recipe, and what they are set to together.

    Attributes
    ----------
    keys : tuple of str
    values : tuple of tuple of str
        For each position on the axis, a text for each key.
    """

    keys: tuple[str, ...]
    values: tuple[tuple[str, ...], ...]

    @classmethod
    def parse(cls, text: str) -> Axis:
        """``KEY=V1,V2,...``, or several keys in step: ``KEY1:KEY2=A1:A2,B1:B2``.

        Commas within brackets or quotes belong to a value.

        Raises
        ------
        RecipeError
            If there is no key or value, or a position has not one value for every key.
        """
        left, equals, right = text.partition("=")
        keys = tuple(key.strip() for key in left.split(":"))
        if not equals or not all(keys) or not right.strip():
            raise RecipeError(f"--set {text!r}: give section.key=value,value, for example quantize.weight_bits=2,4,8")
        values = []
        for position in _split(right, ","):
            parts = tuple(_split(position, ":")) if len(keys) > 1 else (position.strip(),)
            if len(parts) != len(keys) or not all(parts):
                raise RecipeError(
                    f"--set {text!r}: {position.strip()!r} does not have {len(keys)} value{'s' * (len(keys) > 1)}"
                    f"{', separated by colons' * (len(keys) > 1)}"
                )
            values.append(parts)
        return cls(keys, tuple(values))


def _split(text: str, separator: str) -> list[str]:
    """Split at separators that are not within brackets or quotes."""
    parts, open_, start = [], [], 0
    for i, c in enumerate(text):
        if open_ and c == open_[-1]:
            open_.pop()
        elif open_ and open_[-1] in "\"'":
            continue
        elif c in _CLOSING or c in "\"'":
            open_.append(_CLOSING.get(c, c))
        elif c == separator and not open_:
            parts.append(text[start:i].strip())
            start = i + 1
    return [*parts, text[start:].strip()]


@dataclass(frozen=True)
class Point:
    """One network of a sweep.

    Attributes
    ----------
    settings : dict of str
        What varies over the sweep, by key, without the seed.
    seed : int
    recipe : Recipe
    """

    settings: dict[str, str]
    seed: int
    recipe: Recipe


def points_of(recipe: str, assignments: Iterable[str], seeds: int = 1) -> list[Point]:
    """The points of a sweep, the last axis fastest, seeds fastest of all.

    Parameters
    ----------
    recipe : str
        Name or path.
    assignments : iterable of str
        See :meth:`Axis.parse`.
    seeds : int
        Networks at every position of the grid: with the recipe's ``train.seed``, ``bit_true.seed`` and ``relu.seed``,
        and with 1, 2, ... added to them.

    Raises
    ------
    RecipeError
        If an axis or the recipe of a point is wrong, or there are more than ``MAX_POINTS``.
    """
    axes = [Axis.parse(text) for text in assignments]
    keys = [key for axis in axes for key in axis.keys]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise RecipeError(f"--set {twice[0]}: given twice; name its values in one --set, separated by commas")
    total = seeds
    for axis in axes:
        total *= len(axis.values)
    if total > MAX_POINTS:
        raise RecipeError(f"a sweep of {total} points; {MAX_POINTS} are the most, vary fewer settings at a time")
    varied = {key for axis in axes if len(axis.values) > 1 for key in axis.keys}
    points = []
    for position in itertools.product(*(axis.values for axis in axes)):
        chosen = dict(
            pair for axis, values in zip(axes, position, strict=True) for pair in zip(axis.keys, values, strict=True)
        )
        base = load_recipe(recipe, [f"{key}={value}" for key, value in chosen.items()])
        for offset in range(seeds):
            again: dict[str, Any] = {
                "train": base.train.model_copy(update={"seed": base.train.seed + offset}),
                "bit_true": base.bit_true.model_copy(update={"seed": base.bit_true.seed + offset}),
            }
            if base.relu is not None:
                again["relu"] = base.relu.model_copy(update={"seed": base.relu.seed + offset})
            settings = {key: value for key, value in chosen.items() if key in varied}
            points.append(Point(settings, base.train.seed + offset, base.model_copy(update=again)))
    return points
