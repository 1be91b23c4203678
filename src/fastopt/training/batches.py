"""Batches: what a training step is given, and in which order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

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


class ShuffledBatches:
    """The batches of every step: a pure function of the seed and the number of the step.

    Each epoch visits all rows once in a new order. The last batch of an epoch is short when the batch size does not
    divide the rows.

    Parameters
    ----------
    rows : Batch
        The training rows.
    batch_size : int
        Rows in a batch; a size above the number of rows takes them all.
    seed : int
        Decides the order.
    """

    def __init__(self, rows: Batch, batch_size: int, seed: int) -> None:
        self.batch_size = min(batch_size, len(rows.targets))
        self.steps_per_epoch = -(-len(rows.targets) // self.batch_size)
        self._rows = rows
        self._seed = seed
        self._buffer = Batch(*(np.empty((self.batch_size, *values.shape[1:]), values.dtype) for values in rows))

    def from_step(self, step: int) -> Iterator[Batch]:
        """Yield the batch of `step`, of the step after it, and so on without end.

        The arrays are overwritten by the next batch.
        """
        epoch, position = divmod(step, self.steps_per_epoch)
        while True:
            order = generator(self._seed, Stream.ORDER, epoch).permutation(len(self._rows.targets))
            for start in range(position * self.batch_size, len(order), self.batch_size):
                yield self._gather(order[start : start + self.batch_size])
            epoch, position = epoch + 1, 0

    def _gather(self, indices: Array) -> Batch:
        batch = Batch(*(buffer[: len(indices)] for buffer in self._buffer))
        for source, destination in zip(self._rows, batch, strict=True):
            np.take(source, indices, axis=0, out=destination, mode="clip")  # "raise" would copy through a temporary
        return batch
