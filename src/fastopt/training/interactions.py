"""Interactions for a recommender: who took what, out of a table or made up, and how they are held out."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from fastopt.training.columns import known_texts
from fastopt.training.config import GENERATED
from fastopt.training.errors import TrainingError
from fastopt.training.randomness import Stream, generator
from fastopt.training.tables import SUFFIXES, is_table_file, read_table

Array = NDArray[Any]

USERS, ITEMS, DRAWS = 4_000, 8_000, 400_000
POPULARITY = 0.8
"""Exponent of Zipf's law, by which items that were made up are popular."""
TASTES, CANDIDATES, STRENGTH = 4, 10, 4.0
"""Planted factors; how many popular items a user has before her; how much she goes by her taste."""

HELD_OUT = 0.1
LEAST = 100
"""Interactions that it takes to learn and to hold out."""


@dataclass(frozen=True)
class Interactions:
    """Pairs of a user and an item, each once, in two parts.

    Attributes
    ----------
    name : str
        What to call them in messages.
    train, test : ndarray, shape (pairs, 2), int64
        What is learned from, and what is held out.
    users, items : int
        How many there are.
    """

    name: str
    train: Array
    test: Array
    users: int
    items: int

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the pairs: a resumed run must see the same data."""
        digest = hashlib.sha256(repr((self.users, self.items)).encode())
        for pairs in (self.train, self.test):
            digest.update(np.ascontiguousarray(pairs).data)
        return digest.hexdigest()

    @cached_property
    def popularity(self) -> Array:
        """How often each item was taken in the training part."""
        return np.bincount(self.train[:, 1], minlength=self.items)


def load_interactions(source: str, seed: int) -> Interactions:
    """Read interactions, or make them up, and hold out a random tenth.

    Parameters
    ----------
    source : str
        A table with the columns ``user`` and ``item``, each row an interaction, whatever else is in it; or
        ``"generated"``: 4,000 users and 8,000 items of Zipf popularity, with planted tastes. A user looks at ten items,
        drawn by their popularity, and takes the one that she likes best, up to chance.
    seed : int
        Decides what is held out.

    Raises
    ------
    TrainingError
        If the table cannot be read, or has too little in it.
    """
    users, items = _made_up() if source == GENERATED else _read(Path(source))
    pairs = np.unique(np.stack([users, items], axis=1), axis=0)
    if len(pairs) < LEAST or items.max() == 0:
        raise TrainingError(
            f"{source}: needs at least {LEAST} different interactions with 2 items or more, has {len(pairs)} "
            f"with {items.max() + 1}"
        )
    order = generator(seed, Stream.SPLIT).permutation(len(pairs))
    held_out = round(HELD_OUT * len(pairs))
    test, train = pairs[order[:held_out]], pairs[order[held_out:]]
    return Interactions(Path(source).name, train, test, int(users.max()) + 1, int(items.max()) + 1)


def _read(path: Path) -> tuple[Array, Array]:
    if not is_table_file(path):
        raise TrainingError(f"--interactions: expected '{GENERATED}' or a file that ends in {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise TrainingError(f"--interactions: no such file: {path}")
    frame = read_table(path).frame
    users, items = (_numbered(path, frame, name) for name in ("user", "item"))
    return users, items


def _numbered(path: Path, frame: pl.DataFrame, name: str) -> Array:
    """Return a number for each different entry of a column."""
    if name not in frame.columns:
        raise TrainingError(f"{path}: no column {name!r}; the columns are {', '.join(frame.columns)}")
    known = known_texts(frame[name].cast(pl.String))
    if known.null_count():
        raise TrainingError(f"{path}: {known.null_count():,} rows have no {name}; fill or drop them")
    return known.rank("dense").to_numpy().astype(np.int64) - 1


def _made_up() -> tuple[Array, Array]:
    """Return users and items; the same in every run."""
    rng = generator(0, Stream.DATA)
    likes, kinds = (rng.standard_normal((count, TASTES), np.float32) for count in (USERS, ITEMS))
    shares = np.cumsum(np.arange(1, ITEMS + 1) ** -POPULARITY)
    numbers = rng.permutation(ITEMS)
    users = rng.integers(USERS, size=DRAWS)
    seen = numbers[np.searchsorted(shares, rng.random((DRAWS, CANDIDATES)) * shares[-1])]
    liking = np.einsum("nt,nct->nc", likes[users], kinds[seen]) * (STRENGTH / TASTES**0.5)
    chosen = np.argmax(liking + rng.gumbel(size=liking.shape), axis=1)
    return users, np.asarray(seen[np.arange(DRAWS), chosen])
