"""What is read from texts, what is refused and in which words, and the pieces that are learned from."""

import sys
from pathlib import Path

import numpy as np
import pytest

from fastopt.training.config import PYDOC_TOPICS
from fastopt.training.errors import TrainingError
from fastopt.training.text import UNKNOWN, Text, load_text


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def test_the_end_is_held_out(tmp_path: Path) -> None:
    text = load_text(write(tmp_path / "t.txt", "ab" * 45 + "cd" * 5), context=4)
    assert (text.name, text.train, text.test) == ("t.txt", "ab" * 45, "cd" * 5)
    assert text.vocabulary == UNKNOWN + "ab"


def test_line_ends_and_byte_order_mark_are_no_characters(tmp_path: Path) -> None:
    text = load_text(write(tmp_path / "t.txt", b"\xef\xbb\xbf" + "grün\r\n".encode() * 20), context=4)
    assert text.train == "grün\n" * 18
    assert text.vocabulary == UNKNOWN + "\ngnrü"


def test_pieces_follow_each_other_and_targets_are_one_further() -> None:
    text = Text("t", "abcabcab", "abxc\ufffd")
    train = text.pieces(text.train, 3)
    np.testing.assert_array_equal(train.features, [[1, 2, 3], [1, 2, 3]])
    np.testing.assert_array_equal(train.targets, [[2, 3, 1], [2, 3, 1]])
    assert train.features.dtype == train.targets.dtype == np.int64
    assert train.samples == 6
    test = text.pieces(text.test, 4)  # x is not in the training part
    np.testing.assert_array_equal(test.features, [[1, 2, 0, 3]])
    np.testing.assert_array_equal(test.targets, [[2, 0, 3, 0]])


def test_entropy_is_that_of_the_frequencies() -> None:
    assert Text("t", "aabc", "").entropy == 1.5
    assert Text("t", "abcd" * 7, "").entropy == 2.0


def test_fingerprint_depends_on_every_character() -> None:
    texts = [Text("t", train, test) for train, test in (("ab", "cd"), ("ab", "ce"), ("bb", "cd"))]
    assert len({text.fingerprint for text in (*texts, Text("other", "ab", "cd"))}) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"t\.txt: expected at least 50 characters, .* a piece of --context 4, got 0"),
        ("ab" * 22, r"expected at least 50 characters, a tenth of them to hold out a piece of --context 4, got 44"),
        ("a" * 200 + "b", r"every character is 'a': there is nothing to learn"),
        ("ä".encode("latin-1") * 100, r"not a text in UTF-8 \(byte 0xe4 at position 0\)"),
        (b"fine until \xff" + b"x" * 100, r"not a text in UTF-8 \(byte 0xff at position 11\)"),
    ],
)
def test_unfit_texts(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        load_text(write(tmp_path / "t.txt", content), context=4)


def test_the_length_asked_for_is_enough(tmp_path: Path) -> None:
    for context in range(1, 40):
        with pytest.raises(TrainingError, match=r"expected at least") as refusal:
            load_text(write(tmp_path / "t.txt", "a"), context)
        enough = int(str(refusal.value).split("at least ")[1].split()[0])
        text = load_text(write(tmp_path / "t.txt", ("ab" * enough)[:enough]), context)
        assert len(text.pieces(text.test, context).targets) == 1


def test_missing_files(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.txt", tmp_path):
        with pytest.raises(TrainingError, match=r"--text: no such file: "):
            load_text(str(path), 4)


def test_python_reference_repeats_nothing() -> None:
    text = load_text(PYDOC_TOPICS, 64)
    assert text.name == PYDOC_TOPICS
    paragraphs = (text.train + text.test).split("\n\n")
    assert len(paragraphs) == len(set(paragraphs)) > 1000
    assert len(text.train) == pytest.approx(9 * len(text.test), rel=1e-3)
    assert 4 < text.entropy < 5


def test_python_without_its_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(TrainingError, match=r"this Python has no pydoc_data.topics: name a text with --text FILE"):
        load_text(PYDOC_TOPICS, 64)
