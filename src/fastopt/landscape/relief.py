"""A surface sampled on a grid, and the scale on which its heights can be told apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastopt.surfaces import Surface

Array = NDArray[np.float64]

TICKS = 6


@dataclass(frozen=True, eq=False)
class Relief:
    """Values of a surface of one or two coordinates over its domain.

    The height at which a value is drawn is ``asinh((value - floor) / scale)``: proportional to the value near the
    floor and to its logarithm far above (or below), so that both the floor of a valley and its walls show.

    Attributes
    ----------
    axes : tuple of ndarray, each of shape (k,)
        Coordinates of the grid lines.
    values : ndarray, shape (k,) or (k, k)
        Values of the surface; the last index runs along the first axis, as in an image.
    floor : float
        The lowest known minimum, or 0.
    scale : float
        How far from the floor the heights turn logarithmic.
    """

    axes: tuple[Array, ...]
    values: Array
    floor: float
    scale: float

    @classmethod
    def of(cls, surface: Surface, lines: int) -> Relief:
        """Sample a surface on so many grid lines along each axis.

        Raises
        ------
        ValueError
            If it has more than two coordinates.
        """
        if surface.n > 2:
            raise ValueError(f"only surfaces with one or two coordinates can be drawn; {surface.name} has {surface.n}")
        axes = tuple(np.linspace(lower, upper, lines) for lower, upper in surface.domain.T)
        values = surface.value(np.stack(np.meshgrid(*axes), axis=-1))
        floor = surface.lowest or 0.0
        return cls(axes, values, floor, scale=float(np.quantile(np.abs(values - floor), 0.1)))

    def height(self, values: Array) -> Array:
        """Return the heights at which values are drawn."""
        return np.arcsinh((values - self.floor) / self.scale)

    def ticks(self) -> list[tuple[float, str]]:
        """Return heights, evenly spread between the lowest and the highest, with the round values they stand for."""
        heights = self.height(self.values)
        even = np.linspace(heights.min(), heights.max(), TICKS + 2)[1:-1]
        labels = dict.fromkeys(f"{value:.2g}" for value in self.floor + self.scale * np.sinh(even))
        return [(float(self.height(np.array(float(label)))), f"{float(label):g}") for label in labels]
