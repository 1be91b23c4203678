"""Text for a model of characters: reading, checking, splitting, and the numbers of the characters."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastopt.training.batches import Batch
from fastopt.training.config import PYDOC_TOPICS
from fastopt.training.errors import TrainingError

Array = NDArray[Any]

HELD_OUT = 0.1
UNKNOWN = "\ufffd"  # stands for the characters that are held out but not in the training part


@dataclass(frozen=True)
class Text:
    """A text in two parts: its end is held out.

    Attributes
    ----------
    name : str
        What to call it in messages.
    train, test : str
        What is learned from, and what is held out.
    """

    name: str
    train: str
    test: str

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the text: a resumed run must see the same data."""
        return hashlib.sha256((self.train + self.test).encode()).hexdigest()

    @cached_property
    def vocabulary(self) -> str:
        """The characters of the training part in the order of their numbers, after the one for all others."""
        return UNKNOWN + "".join(sorted(set(self.train) - {UNKNOWN}))

    @cached_property
    def entropy(self) -> float:
        """Bits per character that it takes to guess the characters of the training part by their frequency alone."""
        counts = np.bincount(self._numbers(self.train))
        shares = counts[counts > 0] / len(self.train)
        return float(-np.sum(shares * np.log2(shares)))

    def pieces(self, part: str, length: int) -> Batch:
        """Return consecutive pieces of a part as numbers, and for each character the one after it.

        Parameters
        ----------
        part : str
            Of the text.
        length : int
            Characters of a piece; those at the end that do not make a whole one are left out.

        Returns
        -------
        Batch
            Features and targets of shape (pieces, length), int64.
        """
        numbers = self._numbers(part)
        end = (len(numbers) - 1) // length * length
        return Batch(numbers[:end].reshape(-1, length), numbers[1 : end + 1].reshape(-1, length))

    def _numbers(self, part: str) -> Array:
        number_of = {character: number for number, character in enumerate(self.vocabulary)}
        return np.array([number_of.get(character, 0) for character in part])


def load_text(source: str, context: int) -> Text:
    """Read a text and hold out its last tenth.

    Parameters
    ----------
    source : str
        A text file in UTF-8; or ``"pydoc_data.topics"``, the reference of the language that comes with Python, without
        the paragraphs that it repeats: they would be learned and held out as well.
    context : int
        The number of characters that a piece of the text will have.

    Raises
    ------
    TrainingError
        If the file cannot be read, or is too short for a piece in each part, or there is nothing to learn from it.
    """
    text = _python_reference() if source == PYDOC_TOPICS else _read(Path(source))
    name = Path(source).name
    start = len(text) - round(HELD_OUT * len(text))
    train, test = text[:start], text[start:]
    if min(len(train), len(test)) <= context:
        raise TrainingError(
            f"{source}: expected at least {round((context + 1) / HELD_OUT):,} characters, a tenth of them to hold out "
            f"a piece of --context {context}, got {len(text):,}"
        )
    if len(set(train)) == 1:
        raise TrainingError(f"{source}: every character is {train[0]!r}: there is nothing to learn")
    return Text(name, train, test)


def _read(path: Path) -> str:
    if not path.is_file():
        raise TrainingError(f"--text: no such file: {path}")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise TrainingError(
            f"{path}: not a text in UTF-8 (byte {error.object[error.start]:#04x} at position {error.start})"
        ) from error


def _python_reference() -> str:
    try:
        from pydoc_data.topics import topics
    except ModuleNotFoundError as error:
        raise TrainingError(f"this Python has no {PYDOC_TOPICS}: name a text with --text FILE") from error
    paragraphs = (paragraph.strip("\n") for topic in topics.values() for paragraph in topic.split("\n\n"))
    return "\n\n".join(paragraph for paragraph in dict.fromkeys(paragraphs) if paragraph.strip())
