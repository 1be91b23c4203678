"""Random numbers as pure functions of the seed, so that resuming needs no generator state."""

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What the random numbers are for: each purpose has a stream of its own."""

    SPLIT = 0
    WEIGHTS = 1
    ORDER = 2
    SAMPLE = 3
    NEGATIVES = 4
    DATA = 5


def generator(seed: int, stream: Stream, index: int = 0) -> np.random.Generator:
    """Return the counter-based generator of one purpose.

    Parameters
    ----------
    seed : int
        The seed of the run, 0 or more.
    stream : Stream
        The purpose.
    index : int
        The number of the generator within its stream, for example the epoch.
    """
    sequence = np.random.SeedSequence(seed, spawn_key=(stream, index))
    return np.random.Generator(np.random.Philox(sequence))
