"""Batches: what a training step is given, and in which order."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastopt.training.randomness import Stream, generator

Array = NDArray[Any]


class Batch(NamedTuple):
    """Rows of what is known, with what is to be predicted: a target for a row of a table, many for a piece of text."""

    features: Array
    targets: Array

    @property
    def samples(self) -> int:
        """Number of targets."""
        return self.targets.size

    def pieces(self, most: int) -> list[Batch]:
        """Return it cut into as few pieces of at most so many rows as there can be, of one size up to a row."""
        rows = len(self.targets)
        count = -(-rows // most)
        bounds = [rows * piece // count for piece in range(count + 1)]
        return [Batch(*(values[start:end] for values in self)) for start, end in pairwise(bounds)]


class ShuffledBatches:
    """What every step is given: a pure function of the seed and the number of the step.

    Each epoch visits all rows once in a new order. The last step of an epoch is given fewer where the rows of a step do
    not divide them.

    Parameters
    ----------
    rows : Batch
        The training rows.
    batch_size : int or "full"
        Rows that the model is given at once; a size above the number of rows takes them all, as "full" does.
    seed : int
        Decides the order.
    accumulate : int
        Batches for a step.
    """

    def __init__(self, rows: Batch, batch_size: int | Literal["full"], seed: int, accumulate: int = 1) -> None:
        count = len(rows.targets)
        self.batch_size = count if batch_size == "full" else min(batch_size, count)
        self._step_size = min(self.batch_size * accumulate, count)
        self.steps_per_epoch = -(-count // self._step_size)
        self._rows = rows
        self._seed = seed
        self._buffer = Batch(*(np.empty((self._step_size, *values.shape[1:]), values.dtype) for values in rows))

    def from_step(self, step: int) -> Iterator[Batch]:
        """Yield the rows of `step`, of the step after it, and so on without end.

        The arrays are overwritten by the next ones.
        """
        epoch, position = divmod(step, self.steps_per_epoch)
        while True:
            order = generator(self._seed, Stream.ORDER, epoch).permutation(len(self._rows.targets))
            for start in range(position * self._step_size, len(order), self._step_size):
                yield self._gather(order[start : start + self._step_size])
            epoch, position = epoch + 1, 0

    def _gather(self, indices: Array) -> Batch:
        batch = Batch(*(buffer[: len(indices)] for buffer in self._buffer))
        for source, destination in zip(self._rows, batch, strict=True):
            np.take(source, indices, axis=0, out=destination, mode="clip")  # "raise" would copy through a temporary
        return batch
