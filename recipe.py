"""Recipes: TOML files that describe a whole pipeline, from data to chip.

A recipe names its sections after the rooms' own configurations (``[data]``, ``[network]``, ``[relu]``, ``[train]``,
``[quantize]``, ``[bit_true]``, ``[deploy]``); every key is checked, and an unknown one is refused with its line.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from .errors import RecipeError
from .export.quantization import QuantizeConfig
from .recipes import FOLDER
from .train.config import BitTrueConfig, DataConfig, NetworkConfig, ReluConfig, TrainConfig, settings_of_the_method

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]


class DeployConfig(BaseModel):
    """What the network is checked, verified and costed against."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    chips: tuple[str, ...] = Field(("loihi1", "loihi2"), description="Chip profiles (names or TOML files).")
    executors: tuple[str, ...] = Field(
        ("torch", "fast", "onnxruntime", "lava"), description="Executors compared, spike for spike, with the reference."
    )


class Recipe(BaseModel):
    """A whole pipeline."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="Short name; the network's name.", pattern=r"^[A-Za-z0-9_.\-]{1,100}$")
    description: str = ""
    data: DataConfig
    network: NetworkConfig
    relu: ReluConfig | None = None
    train: TrainConfig
    quantize: QuantizeConfig = Field(default_factory=lambda: QuantizeConfig.model_validate({}))
    bit_true: BitTrueConfig = Field(default_factory=lambda: BitTrueConfig.model_validate({}))
    deploy: DeployConfig = Field(default_factory=lambda: DeployConfig.model_validate({}))

    @model_validator(mode="before")
    @classmethod
    def _settings_of_the_method(cls, given: Any) -> Any:
        """What sections leave out is set as the network's method has it."""
        if not isinstance(given, dict):
            return given
        completed = dict(given)
        for section, settings in settings_of_the_method(given.get("network")).items():
            own = given.get(section, {})
            if isinstance(own, dict):
                completed[section] = settings | own
        return completed

    @model_validator(mode="after")
    def _relu_leads_to_dsr(self) -> Recipe:
        if self.relu is not None and self.network.method != "dsr":
            raise ValueError("relu: thresholds of TSSL-BP are fixed; leave the section out, or use method dsr")
        return self

    @property
    def method(self) -> str:
        """How the network is trained, in a few words."""
        n = self.network
        if n.method == "tssl-bp":
            return f"TSSL-BP, {n.steps} steps, gradient by {n.gradient}"
        start = "" if self.relu is None else ", from a ReLU network"
        return f"DSR {n.neuron.upper()}, {n.steps} steps, reset {n.reset}{start}"

    def provenance(self) -> dict[str, Any]:
        """JSON values for a network's metadata: everything but where this machine keeps its files."""
        return self.model_dump(mode="json", exclude={"data": {"folder"}, "relu": {"initial"}})


def shipped() -> dict[str, str]:
    """Name and first comment line of every recipe that comes with lapilli."""
    found = {}
    for path in sorted(FOLDER.glob("*.toml")):
        first = path.read_text(encoding="utf-8").split("\n", 1)[0]
        found[path.stem] = first.lstrip("# ")
    return found


def _read(name_or_path: str) -> tuple[str, str]:
    """Text of a recipe and what to call it in messages."""
    if not name_or_path.endswith(".toml") and "/" not in name_or_path:
        recipes = shipped()
        if name_or_path not in recipes:
            close = difflib.get_close_matches(name_or_path, recipes, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise RecipeError(
                f"recipe {name_or_path!r}: no recipe has that name; {hint}lapilli ships {', '.join(recipes)}; "
                "or give the path of a .toml file"
            )
        return (FOLDER / f"{name_or_path}.toml").read_text("utf-8"), f"{name_or_path}.toml"
    try:
        return Path(name_or_path).read_text(encoding="utf-8"), name_or_path
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not UTF-8 text"
        raise RecipeError(f"recipe {name_or_path}: cannot be read ({reason})") from None


def _parse_value(text: str) -> Any:
    """A ``--set`` value: TOML where it parses (numbers, booleans, lists), a plain string otherwise."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _override(tree: dict[str, Any], assignment: str) -> None:
    key, equals, text = assignment.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path):
        raise RecipeError(f"--set {assignment!r}: give section.key=value, for example network.steps=8")
    for part in path[:-1]:
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            raise RecipeError(f"--set {assignment!r}: {part!r} is not a section")
    tree[path[-1]] = _parse_value(text.strip())


def _line_of(text: str, location: tuple[Any, ...]) -> str:
    """Where a key stands in a recipe, best effort: " line 12" or ""."""
    keys = [part for part in location if isinstance(part, str)]
    if not keys:
        return ""
    key = rf"[\"']?{re.escape(keys[-1])}[\"']?\s*="
    section = None
    for number, line in enumerate(text.splitlines(), start=1):
        header = re.match(r"\s*\[+\s*([^\]]+?)\s*\]+\s*(#.*)?$", line)
        if header:
            section = header[1].split(".")[-1]
        in_section = section is None if len(keys) == 1 else section in keys
        if (header and section == keys[-1]) or (in_section and re.search(rf"(^\s*|[{{,]\s*){key}", line)):
            return f" line {number}"
    return ""


def _known_keys(location: tuple[Any, ...]) -> list[str]:
    """Keys that a section of a recipe knows."""
    model: Any = Recipe
    for part in location[:-1]:
        field = model.model_fields.get(part) if model is not None else None
        if field is None:
            return []
        wanted = (field.annotation, *get_args(field.annotation))  # a section, or one that may be left out
        model = next((a for a in wanted if isinstance(a, type) and issubclass(a, BaseModel)), None)
    return list(model.model_fields) if model is not None else []


def _explain(error: ValidationError, where: str, text: str, overrides: Iterable[str]) -> str:
    """The first problem of a recipe in one line."""
    # A mistyped key also leaves the right one missing: the typo explains both.
    first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    location = first["loc"]
    dotted = ".".join(str(part) for part in location)
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    culprit = [o for o in overrides if o.partition("=")[0].strip() == dotted]
    place = f"--set {culprit[-1]}" if culprit else f"recipe {where}{_line_of(text, location)}"
    if first["type"] == "extra_forbidden":
        known = _known_keys(location)
        close = difflib.get_close_matches(str(location[-1]), known, n=1)
        remedy = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(known)}" if known else "remove it"
        return f"{place}: unknown key {dotted!r}; {remedy}{more}"
    if first["type"] == "missing":
        return f"{place}: {dotted!r} is missing{more}"
    value = first.get("input")
    shown = f" (found {value!r})" if isinstance(value, (str, int, float, bool)) else ""
    return f"{place}: {dotted}: {first['msg']}{shown}{more}"


def load_recipe(name_or_path: str, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe by name (shipped) or path, with ``section.key=value`` overrides.

    Raises
    ------
    RecipeError
        If there is no such recipe, it is not TOML, or a key or value is wrong; the message names the line.
    """
    text, where = _read(name_or_path)
    overrides = tuple(overrides)
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"recipe {where}: not valid TOML: {error}") from None
    for assignment in overrides:
        _override(tree, assignment)
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise RecipeError(_explain(error, where, text, overrides)) from None
