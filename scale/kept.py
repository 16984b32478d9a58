"""Results of tasks in a folder: written whole, found again by what they are the result of, bounded in size."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import DataError, FileFormatError
from ..whole_file import written_whole

Arrays = Mapping[str, npt.NDArray[Any]]

KEPT_BYTES = 4 * 2**30  # of one folder; results beyond it are not kept
MANIFEST = "parts.json"


def fingerprint(what: Mapping[str, Any]) -> str:
    """SHA-256 of JSON values."""
    return hashlib.sha256(json.dumps(what, sort_keys=True, allow_nan=False).encode()).hexdigest()


def digest_of(array: npt.NDArray[Any]) -> str:
    """SHA-256 of an array: type, shape and values."""
    sha = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    sha.update(np.ascontiguousarray(array).data)
    return sha.hexdigest()


class Kept:
    """Numbered results of one computation.

    Parameters
    ----------
    folder : Path
        Made if absent. Results of an earlier computation there are used with ``resume`` and dropped without.
    what : mapping of str to JSON values
        What the results depend on: they are used again only if all of it is the same.
    resume : bool
    limit : int
        Bytes that the folder may hold.

    Attributes
    ----------
    full : bool
        Whether a result was not kept because of the limit.

    Raises
    ------
    DataError
        If ``resume`` finds results of something else; the message names what differs.
    FileFormatError
        If the folder cannot be written.
    """

    def __init__(self, folder: Path, what: Mapping[str, Any], *, resume: bool, limit: int = KEPT_BYTES) -> None:
        self.folder = folder
        self.limit = limit
        self.full = False
        what = json.loads(json.dumps(what))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if resume and (folder / MANIFEST).exists():
                self._check(what)
            else:
                for path in folder.glob("part-*.npz"):
                    path.unlink()
                with written_whole(folder / MANIFEST) as temporary:
                    temporary.write_text(json.dumps(what, indent=2) + "\n", encoding="utf-8")
            self.bytes = sum(path.stat().st_size for path in folder.glob("part-*.npz"))
        except OSError as error:
            raise FileFormatError(f"{folder}: cannot be written ({error.strerror or error})") from None

    def _check(self, what: Mapping[str, Any]) -> None:
        path = self.folder / MANIFEST
        try:
            there = json.loads(path.read_text(encoding="utf-8"))
            differing = [name for name in what if there.get(name) != what[name]]
        except (ValueError, AttributeError):
            raise FileFormatError(f"{path}: not the list of a computation; remove it, or leave --resume out") from None
        if differing:
            raise DataError(
                f"{self.folder}: holds results of something else ({', '.join(differing)} differ); leave --resume out "
                "to replace them, or give another --out"
            )

    def path(self, number: int) -> Path:
        """Where a result is kept."""
        return self.folder / f"part-{number:06d}.npz"

    def load(self, number: int) -> dict[str, npt.NDArray[Any]] | None:
        """A result; None if it is not there, or not whole."""
        try:
            with np.load(self.path(number), allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
            return None

    def save(self, number: int, arrays: Arrays) -> None:
        """Keep a result, if the limit allows."""
        path = self.path(number)
        try:
            with written_whole(path) as temporary, temporary.open("wb") as file:
                np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]
            size = path.stat().st_size
            if self.bytes + size > self.limit:
                self.full = True
                path.unlink()
            else:
                self.bytes += size
        except OSError as error:
            raise FileFormatError(f"{path}: cannot be written ({error.strerror or error})") from None
