"""Which optimizer ran over which surface with which learning rate, and where that led."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

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


def optimizer_names() -> list[str]:
    """Return the names that `run` knows: gradient descent with its two momenta, then every class of the library."""
    return list(_recipes())


def run(surfaces: Iterable[Surface], names: Sequence[str], lrs: Sequence[float], steps: int) -> list[Run]:
    """Run every optimizer with every learning rate over every surface, each from the surface's first start.

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

    Returns
    -------
    list of Run
        Ordered as the arguments are.

    Raises
    ------
    ValueError
        If a name is unknown or a number out of range.
    """
    recipes = _recipes()
    for name in names:
        if name not in recipes:
            raise ValueError(f"optimizers must be out of {', '.join(recipes)}, got {name!r}")
    return [
        Run(surface, name, lr, trajectory(surface, recipes[name], surface.starts[0], steps, lr=lr))
        for surface in surfaces
        for name in names
        for lr in lrs
    ]


def best(runs: Iterable[Run]) -> list[Run]:
    """Return, for every surface and optimizer, the run that ended lowest; a diverged one only if all diverged."""
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


def _rank(candidate: Run) -> tuple[bool, float]:
    return candidate.path.diverged, candidate.path.loss[-1]


def _recipes() -> dict[str, Callable[..., Optimizer]]:
    return {
        "gd": optimizers.SGD,
        "momentum": partial(optimizers.SGD, momentum=0.9),
        "nesterov": partial(optimizers.SGD, momentum=0.9, nesterov=True),
        **{name.lower(): optimizer for name, optimizer in optimizers.registry().items()},
    }
