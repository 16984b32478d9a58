"""Files appear under their name only when they are complete: an interrupted write leaves what was there before."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import FileFormatError


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path`` to write to; it takes the name ``path`` if the body succeeds.

    Raises
    ------
    OSError
        If the file cannot be written or renamed; the temporary file is gone then, and after any other error.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_texts(folder: Path, texts: Iterable[tuple[str, str]]) -> list[Path]:
    """Write files, given by name and text, into a folder, which is made; returns their paths.

    Raises
    ------
    FileFormatError
        If one cannot be written.
    """
    written = []
    for name, text in texts:
        path = folder / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with written_whole(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
        except OSError as error:
            raise FileFormatError(f"{path}: cannot write ({error.strerror or error}); choose another folder") from None
        written.append(path)
    return written
