"""Which optimizer ran over which surface with which learning rate, and where that led."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from numpy.typing import ArrayLike

from fastopt import optimizers
from fastopt.optimizer import Optimizer
from fastopt.surfaces import Surface
from fastopt.trajectories import Trajectory, trajectory


@dataclass(frozen=True, eq=False)
class Run:
    """One path to be drawn.

    Attributes
    ----------
    surface : Surface
        With one or two coordinates.
    optimizer : str
        What the path is called; runs of the same name share a colour.
    lr : float
        Learning rate.
    path : Trajectory
        The points, losses and gradient norms.
    """

    surface: Surface
    optimizer: str
    lr: float
    path: Trajectory

    @property
    def left_downhill(self) -> bool:
        """Whether the run was cut because it went down for ever, on a surface without a lowest point."""
        return self.path.diverged and self.surface.lowest is None and bool(self.path.loss[-1] < self.path.loss[0])

    @property
    def ending(self) -> str:
        """What became of a run that was cut before its last step; empty for the others."""
        if not self.path.diverged:
            return ""
        return f"{'left downhill' if self.left_downhill else 'diverged'} after step {self.path.steps}"


def optimizer_names() -> list[str]:
    """Return the names that `run` knows: gradient descent with its two momenta, then every class of the library."""
    return list(_recipes())


def run(
    surfaces: Iterable[Surface],
    names: Sequence[str],
    lrs: Sequence[float],
    steps: int,
    *,
    start: ArrayLike | None = None,
    noise: float = 0.0,
    momentum: float | None = None,
    betas: tuple[float, float] | None = None,
) -> list[Run]:
    """Run every optimizer with every learning rate over every surface.

    Parameters
    ----------
    surfaces : iterable of Surface
        For example ``[surfaces.rosenbrock()]``.
    names : sequence of str
        Out of `optimizer_names`.
    lrs : sequence of float
        Learning rates.
    steps : int
        Number of steps, at least 0.
    start : array_like, shape (n,), optional
        The first point; by default the usual one of each surface.
    noise : float, default 0
        Standard deviation of every component of the gradients. All optimizers see the same noise but ``"gd"``, which
        is descent along the exact gradient; ``"sgd"`` is the same with the noise.
    momentum : float, optional
        The share of the velocity that ``"momentum"`` and ``"nesterov"`` keep; by default 0.9.
    betas : tuple of two floats, optional
        Decays of the averages of those optimizers that have two; by default their own.

    Returns
    -------
    list of Run
        Ordered as the arguments are.

    Raises
    ------
    ValueError
        If a name is unknown, a number out of range, or an argument without effect on any of the optimizers.
    """
    recipes = _recipes(momentum, betas)
    for name in names:
        if name not in recipes:
            raise ValueError(f"optimizers must be out of {', '.join(recipes)}, got {name!r}")
    if noise == 0 and {"gd", "sgd"} <= set(names):
        raise ValueError("gd and sgd take the same path without noise: leave one of them out, or give some noise")
    if noise != 0 and set(names) == {"gd"}:
        raise ValueError("noise makes no difference to gd, which has the exact gradient: add sgd, or leave noise out")
    if momentum is not None and not {"momentum", "nesterov"} & set(names):
        raise ValueError(f"momentum makes no difference to {', '.join(names)}")
    if betas is not None and not any(_has_betas(recipes[name]) for name in names):
        raise ValueError(f"betas make no difference to {', '.join(names)}")
    return [
        Run(surface, name, lr, trajectory(surface, recipes[name], first, steps, 0.0 if name == "gd" else noise, lr=lr))
        for surface in surfaces
        for first in [surface.starts[0] if start is None else start]
        for name in names
        for lr in lrs
    ]


def best(runs: Iterable[Run]) -> list[Run]:
    """Return, for every surface and optimizer, the run that ended lowest; one that diverged only if all did.

    On a surface without a lowest point the best is the one that went down out of sight first.
    """
    winners: dict[tuple[Surface, str], Run] = {}
    for candidate in runs:
        key = (candidate.surface, candidate.optimizer)
        winners[key] = min(winners.get(key, candidate), candidate, key=_rank)
    return list(winners.values())


def by_surface(runs: Iterable[Run]) -> dict[Surface, list[Run]]:
    """Return the runs of every surface, in order of appearance; `ValueError` when there are none."""
    groups: dict[Surface, list[Run]] = {}
    for member in runs:
        groups.setdefault(member.surface, []).append(member)
    if not groups:
        raise ValueError("runs must hold at least one run, got none")
    return groups


def _rank(candidate: Run) -> tuple[int, float]:
    path = candidate.path
    return (0, path.steps) if candidate.left_downhill else (1 + path.diverged, path.loss[-1])


def _recipes(
    momentum: float | None = None, betas: tuple[float, float] | None = None
) -> dict[str, Callable[..., Optimizer]]:
    kept = 0.9 if momentum is None else momentum
    registered: dict[str, Callable[..., Optimizer]] = {
        name.lower(): optimizer if betas is None or not _has_betas(optimizer) else partial(optimizer, betas=betas)
        for name, optimizer in optimizers.registry().items()
        if not optimizer.method.matrices
    }
    return {
        "gd": optimizers.SGD,
        "momentum": partial(optimizers.SGD, momentum=kept),
        "nesterov": partial(optimizers.SGD, momentum=kept, nesterov=True),
        **registered,
    }


def _has_betas(recipe: Callable[..., Optimizer]) -> bool:
    return "betas" in inspect.signature(recipe).parameters
