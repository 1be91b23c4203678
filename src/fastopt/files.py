"""Files that are written whole or not at all, and folders that one process at a time writes in."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

UNFINISHED = ".fastopt-unfinished-"
"""How the names of temporary folders begin."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file so that a kill at any moment leaves either the old content or the new one.

    It is written in a temporary folder beside `path`, which has a name that nobody can guess and which only its owner
    can enter: whoever could put links into the directory of `path` cannot lead the writing elsewhere. (The file itself
    gets the usual permissions, as a temporary file would not.) A link at `path` is replaced, not followed.

    Parameters
    ----------
    path : Path
        The file to create or replace.

    Yields
    ------
    Path
        A file that does not exist yet, to be written and closed in the ``with`` block. When the block ends without an
        exception it is synced and renamed to `path`; otherwise it is removed.

    Raises
    ------
    OSError
        If it cannot be written; the message names `path`.
    """
    try:
        with TemporaryDirectory(prefix=UNFINISHED, dir=path.parent) as folder:
            temporary = Path(folder, path.name)
            yield temporary
            _sync(temporary)
            temporary.replace(path)
            _sync(path.parent)
    except OSError as error:
        raise OSError(f"{path} could not be written: {error.strerror or error}") from error


def check_writable(path: Path) -> None:
    """Find out before the work whose result a file is for that it could not be written.

    Directories on the way to it may be missing, to be made when it is written.

    Raises
    ------
    OSError
        If `path` is a directory, or if what is there of the way to it is not a directory to write in.
    """
    if path.is_dir():
        raise OSError(f"{path} cannot be written: it is a directory")
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not (above.is_dir() and os.access(above, os.W_OK | os.X_OK)):
        raise OSError(f"{path} cannot be written: {above} is not a directory to write in")


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Have a directory for this process alone while the block lasts, and remove what killed ones left unfinished there.

    The lock is on the directory itself, so it leaves no file behind, and it ends with the process, however that ends.
    Only those who ask for it are kept out. Where the system or the file system has no such locks, nobody is.

    Raises
    ------
    OSError
        If another process has it.
    """
    if os.name == "nt":
        yield
        return
    import fcntl

    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(f"{directory} is in use by another process") from None
        except OSError:  # some network file systems lock no directories
            pass
        else:
            for unfinished in directory.glob(f"{UNFINISHED}*"):
                shutil.rmtree(unfinished, ignore_errors=True)
        yield
    finally:
        os.close(descriptor)


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":  # Windows cannot open a directory, and its rename is durable by itself
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
