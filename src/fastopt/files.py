"""Files that are written whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file so that a kill at any moment leaves either the old content or the new one.

    The temporary name is fixed, so what a kill leaves behind is overwritten by the next attempt.

    Parameters
    ----------
    path : Path
        The file to create or replace.

    Yields
    ------
    Path
        A temporary file in the same directory, to be written and closed in the ``with`` block. When the block ends
        without an exception the file is synced and renamed to `path`; otherwise it is removed.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Find out before the work whose result a file is for that it could not be written.

    Directories on the way to it may be missing, to be made when it is written.

    Raises
    ------
    ValueError
        If `path` is a directory, or if what is there of the way to it is not a directory to write in.
    """
    if path.is_dir():
        raise ValueError(f"{path} cannot be written: it is a directory")
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not (above.is_dir() and os.access(above, os.W_OK)):
        raise ValueError(f"{path} cannot be written: {above} is not a directory to write in")


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":  # Windows cannot open a directory, and its rename is durable by itself
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
