"""Moving averages of arrays, in place; `Optimizer(ema=...)` keeps one of the parameters inside the step."""

from __future__ import annotations

from typing import Any

from fastopt import _arrays, _core, environment, trees
from fastopt.hyperparameters import Bound, plain


def lerp_(targets: Any, sources: Any, weight: float) -> None:
    """Move the targets towards the sources, in one parallel pass: ``target += weight * (source - target)``.

    At a weight of 1 the target becomes the source exactly. So are made Polyak averages, the slow weights of a target
    network, exponential moving averages (the weight is 1 - decay).

    Parameters
    ----------
    targets
        An array, or a list or dict of arrays, nested as you like; float32 or float64, contiguous, writeable.
    sources
        Arrays in the same structure, each of its target's shape and memory order; beside a float32 target also float16
        or bfloat16 (of the package ml_dtypes, or its bits as uint16).
    weight
        Finite.

    Raises
    ------
    TypeError, ValueError
        If an argument is unfit, or a target shares memory with another or with a source; nothing has been changed then.
    """
    weight = plain(weight)
    Bound("weight").anywhere().check(weight)
    leaves, labels, shape = trees.flatten(targets, "targets")
    arrays = [_arrays.as_array(leaf, label, True) for leaf, label in zip(leaves, labels, strict=True)]
    given = trees.leaves_of(shape, sources, "sources")
    names = [label.replace("targets", "sources", 1) for label in labels]
    others = [
        _arrays.beside(leaf, target, name, False, True) for leaf, target, name in zip(given, arrays, names, strict=True)
    ]
    memory = _arrays.Memory(arrays)
    pair = memory.collision()
    if pair is not None:
        raise ValueError(f"{labels[pair[0]]} and {labels[pair[1]]} overlap in memory")
    for other, name in zip(others, names, strict=True):
        owner = memory.owner(other)
        if owner is not None:
            raise ValueError(f"{name} overlaps {labels[owner]} in memory")
    pairs = [
        (_arrays.place(target), _arrays.place(other), target.size) for target, other in zip(arrays, others, strict=True)
    ]
    _core.Plan.of_pairs(pairs, (arrays, others)).lerp(weight, environment.pass_threads())
