"""The path of an optimizer over a surface of known shape.

>>> from fastopt import SGD, surfaces
>>> from fastopt.trajectories import trajectory
>>> path = trajectory(surfaces.parabola(), SGD, start=[1.0], steps=2, lr=0.25)
>>> path.points
array([[1.  ],
       [0.5 ],
       [0.25]])
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastopt.optimizer import Optimizer
from fastopt.surfaces import Surface

__all__ = ["Trajectory", "trajectory"]

Array = NDArray[np.float64]

FARTHEST = 1000.0
"""A path that leaves its surface's domain by more than this many of its widths has diverged."""


@dataclass(frozen=True, eq=False)
class Trajectory:
    """What a run of k steps went through.

    Attributes
    ----------
    points : ndarray, shape (k + 1, n)
        The start and the point after every step.
    loss : ndarray, shape (k + 1,)
        Value of the surface at the points.
    grad_norm : ndarray, shape (k + 1,)
        Euclidean norm of the gradient at the points, without noise.
    lr : ndarray, shape (k,)
        Learning rate of every step.
    diverged : bool
        Whether the run was cut: the next point was not finite or far outside the domain.
    """

    points: Array
    loss: Array
    grad_norm: Array
    lr: Array
    diverged: bool

    @property
    def steps(self) -> int:
        """Number of steps taken."""
        return len(self.lr)


def trajectory(
    surface: Surface,
    optimizer: Callable[..., Optimizer],
    start: ArrayLike,
    steps: int,
    noise: float = 0.0,
    *,
    batch: int = 1,
    seed: int = 0,
    **options: Any,
) -> Trajectory:
    """Run an optimizer over a surface.

    The optimizer steps one float64 array of shape (n,) with the gradient of the surface, or with
    ``gradient + noise / sqrt(batch) * N(0, 1)``: the mean over a mini-batch whose samples' gradients scatter with
    standard deviation `noise`.

    Parameters
    ----------
    surface : Surface
        For example ``surfaces.rosenbrock()``.
    optimizer : callable
        A class such as `fastopt.AdamW`, or any factory; called as ``optimizer(point, **options)``.
    start : array_like, shape (n,)
        The first point, for example ``surface.starts[0]``.
    steps : int
        Number of steps, at least 0.
    noise : float, default 0
        Standard deviation of every component of one sample's gradient, at least 0.
    batch : int, default 1
        Samples in a mini-batch: the variance of the noise is ``noise^2 / batch``.
    seed : int, default 0
        Seed of the noise.
    **options
        Options of the optimizer, for example ``lr=0.01``.

    Returns
    -------
    Trajectory
        Shorter than `steps` and marked when the run diverged: that is a result, not an error.

    Raises
    ------
    TypeError
        If `optimizer` does not make an optimizer.
    ValueError
        If another argument is out of range.
    """
    point = _checked_start(surface, start)
    _check_count("steps", steps, least=0)
    _check_count("batch", batch, least=1)
    if not 0 <= noise < math.inf:
        raise ValueError(f"noise must be a finite number of at least 0, got {noise!r}")
    opt = _made(optimizer, point, options)
    scatter = noise / math.sqrt(batch)
    random = np.random.default_rng(seed)

    points, rates = [point.copy()], []
    gradient = surface.gradient(point)
    for _ in range(steps):
        info = opt.step(gradient + scatter * random.standard_normal(surface.n))
        with np.errstate(over="ignore", invalid="ignore"):
            gradient = surface.gradient(point)
        if not (_is_near(surface, point) and np.isfinite(gradient).all()):
            break
        points.append(point.copy())
        rates.append(info.lr)

    path = np.array(points)
    return Trajectory(
        points=path,
        loss=surface.value(path),
        grad_norm=np.linalg.norm(surface.gradient(path), axis=-1),
        lr=np.array(rates, dtype=np.float64),
        diverged=len(rates) < steps,
    )


def _is_near(surface: Surface, point: Array) -> bool:
    lower, upper = surface.domain
    return bool(np.all(np.abs(point - (lower + upper) / 2) <= FARTHEST * (upper - lower)))


def _checked_start(surface: Surface, start: ArrayLike) -> Array:
    point = np.array(start, dtype=np.float64)
    if point.shape != (surface.n,):
        raise ValueError(f"start must have shape ({surface.n},) for {surface.name}, got {point.shape}")
    if not _is_near(surface, point):
        raise ValueError(f"start must be finite and near the domain of {surface.name}, got {point.tolist()}")
    return point


def _check_count(argument: str, count: int, least: int) -> None:
    if not isinstance(count, int | np.integer) or count < least:
        raise ValueError(f"{argument} must be an integer of at least {least}, got {count!r}")


def _made(optimizer: Callable[..., Optimizer], point: Array, options: dict[str, Any]) -> Optimizer:
    made = optimizer(point, **options) if callable(optimizer) else optimizer
    if not isinstance(made, Optimizer):
        raise TypeError(
            "optimizer must be an optimizer class or a factory that makes one from an array, "
            f"got {optimizer!r}{f', which made an object of type {type(made).__name__}' if callable(optimizer) else ''}"
        )
    return made
