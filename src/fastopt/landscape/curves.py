"""The loss curves of the runs over one surface, on an axis that shows all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastopt.landscape.relief import Relief
from fastopt.landscape.runs import Run

Array = NDArray[np.float64]

SMALLEST = 1e-16
"""Bottom of a logarithmic axis: what is left of a loss near 1 below it is rounding."""


def without_dust(numbers: ArrayLike) -> Array:
    """Return the numbers with 0 for those that are rounding."""
    return np.where(np.abs(numbers) < SMALLEST, 0.0, numbers)


@dataclass(frozen=True, eq=False)
class Curves:
    """Loss over steps; where a minimum is known, the logarithm of what is above it.

    Attributes
    ----------
    values : list of ndarray
        One curve for every run.
    label : str
        What the values are.
    logarithmic : bool
        Whether they are to be seen on a logarithmic axis.
    limits : tuple of float
        Ends of the axis. It covers no more than the surface does: a run that leaves it may go very far.
    """

    values: list[Array]
    label: str
    logarithmic: bool
    limits: tuple[float, float]

    @classmethod
    def of(cls, relief: Relief, runs: Sequence[Run]) -> Curves:
        """Collect the curves of runs over the surface of the relief."""
        surface = runs[0].surface
        if surface.lowest is None:
            values = [run.path.loss for run in runs]
            everything = np.concatenate(values)
            low, high = max(everything.min(), relief.values.min()), min(everything.max(), relief.values.max())
            margin = 0.05 * (high - low)
            return cls(values, "loss", False, (low - margin, high + margin))
        values = [np.maximum(run.path.loss - surface.lowest, SMALLEST) for run in runs]
        everything = np.concatenate(values)
        high = min(everything.max(), relief.values.max() - surface.lowest)
        return cls(values, "loss above the minimum", True, (0.5 * everything.min(), 2 * high))
