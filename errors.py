"""The error family: everything lapilli raises on purpose derives from :class:`Error`.

A message says what was wrong, where (file, population, connection, key, value) and what to do about it,
in one line: the command line prints it as it is.
"""

from __future__ import annotations

# Said wherever Lava is asked for and absent.
HOW_TO_GET_LAVA = "in a checkout of lapilli `uv sync` brings it; with pip, on Python 3.10: pip install 'lapilli[lava]'"


class Error(Exception):
    """Base of every error that lapilli raises on purpose; the command line exits with code 2."""


class DescriptionError(Error):
    """A network description contradicts itself or the rules of its format."""


class FileFormatError(Error):
    """A file is missing, truncated, of another version, tampered with, or not what it claims to be."""


class RecipeError(Error):
    """A recipe has an unknown key, a wrong type or an impossible value."""


class DataError(Error):
    """A data set or input array is absent or does not fit the network."""


class UnsupportedError(Error):
    """An executor, format or chip cannot represent something that the description asks for."""


class MissingDependencyError(Error):
    """An optional package is needed and not installed; the message says how to get it."""


class ExecutionError(Error):
    """An executor failed or ran past its time limit."""
