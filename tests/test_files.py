"""Files that are written whole, through no link; folders that one process has; what cannot be written is said."""

import os
import re
from pathlib import Path

import pytest

from fastopt.files import UNFINISHED, check_writable, locked, replacing

pytestmark = pytest.mark.skipif(os.name == "nt", reason="links, permissions and locks of POSIX")


def write_half(path: Path) -> None:
    path.write_text("half of the n")
    raise OSError("the disk is full")


def test_failed_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    message = f"^{re.escape(str(path))} could not be written: the disk is full$"
    with pytest.raises(OSError, match=message), replacing(path) as temporary:
        write_half(temporary)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    """And not the temporary folder, of which nobody has heard."""
    path = tmp_path / "missing" / "file"
    message = f"^{re.escape(str(path))} could not be written: No such file or directory$"
    with pytest.raises(OSError, match=message), replacing(path) as temporary:
        temporary.write_text("new")


def test_what_others_have_put_there_is_not_written_through(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    run = tmp_path / "run"
    run.mkdir()
    path = run / "metrics.csv"
    for name in ("metrics.csv", "metrics.csv.tmp", ".metrics.csv.tmp"):
        (run / name).symlink_to(precious)
    places = set()
    for content in ("first", "second"):
        with replacing(path) as temporary:
            places.add(temporary)
            assert temporary.parent.parent == run
            assert temporary.parent.stat().st_mode & 0o777 == 0o700, "nobody else can put a link there"
            temporary.write_text(content)
        assert (path.read_text(), path.is_symlink()) == (content, False)
    assert len(places) == 2, "a name that nobody can guess"
    assert precious.read_text() == "mine"


def test_files_have_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    with replacing(tmp_path / "file") as temporary:
        temporary.touch()
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_directory_is_locked_for_one(tmp_path: Path) -> None:
    for _ in range(2):  # the lock ends with the block
        with locked(tmp_path):
            with pytest.raises(OSError, match=f"^{tmp_path} is in use by another process$"), locked(tmp_path):
                pass
            with replacing(tmp_path / "file") as temporary:
                temporary.touch()
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_where_there_are_no_locks_nobody_is_kept_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*arguments: int) -> None:
        raise OSError(9, "Bad file descriptor")

    monkeypatch.setattr("fcntl.flock", unsupported)
    with locked(tmp_path), locked(tmp_path):
        pass


def test_what_was_left_unfinished_is_removed_and_no_more(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").touch()
    run = tmp_path / "run"
    (run / f"{UNFINISHED}abc").mkdir(parents=True)
    (run / f"{UNFINISHED}abc" / "checkpoint").touch()
    (run / f"{UNFINISHED}def").symlink_to(elsewhere)
    with locked(run):
        assert [path.name for path in run.iterdir()] == [f"{UNFINISHED}def"]
    assert (elsewhere / "file").exists()


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    check_writable(tmp_path / "file")
    check_writable(tmp_path / "new" / "folder" / "file")
    for path, reason in (
        (tmp_path, "it is a directory"),
        (tmp_path / "file" / "new" / "file", f"{tmp_path / 'file'} is not a directory to write in"),
    ):
        with pytest.raises(OSError, match=f"^{path} cannot be written: {reason}$"):
            check_writable(path)
