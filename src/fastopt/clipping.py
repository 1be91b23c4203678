"""Gradient clipping on its own, in place; `Optimizer(clip_norm=..., clip_value=...)` does it inside the step."""

from __future__ import annotations

import math
from typing import Any

from fastopt import _arrays, _core, environment, trees
from fastopt.hyperparameters import Bound, plain


def global_norm(grads: Any) -> float:
    """Return the Euclidean norm of all gradients together.

    Parameters
    ----------
    grads
        An array, or a list or dict of arrays, nested as you like; float32 or float64; None counts as zero.

    Returns
    -------
    float
        `sqrt(sum(g**2))`, summed in double precision in a fixed order: the same bits for any number of threads.
        It neither overflows nor underflows; it is NaN or infinite if an entry is.

    Raises
    ------
    TypeError, ValueError
        If an array's dtype or memory layout is not supported.
    """
    return gradient_plan(grads, writeable=False).norm(environment.pass_threads())


def clip_grad_norm(grads: Any, max_norm: float) -> float:
    """Scale all gradients, in place, so that their norm is at most `max_norm`.

    The factor is `min(1, max_norm / (norm + 1e-6))`, as in `torch.nn.utils.clip_grad_norm_` (Pascanu, Mikolov & Bengio
    2013, "On the difficulty of training recurrent neural networks"); nothing is written where it is 1.

    Parameters
    ----------
    grads
        An array, or a list or dict of arrays, nested as you like; float32 or float64, writeable.
    max_norm
        At least 0.

    Returns
    -------
    float
        The norm before clipping.

    Raises
    ------
    TypeError, ValueError
        If an argument is unfit; nothing has been changed then.
    """
    max_norm = plain(max_norm)
    if max_norm != math.inf:
        Bound("max_norm value").check(max_norm)
    plan = gradient_plan(grads, writeable=True)
    norm = plan.norm(environment.pass_threads())
    coefficient = clip_coefficient(norm, max_norm)
    if coefficient != 1.0:
        plan.scale(coefficient, environment.pass_threads())
    return norm


def clip_grad_value(grads: Any, clip_value: float) -> None:
    """Clip every entry of the gradients, in place, to `[-clip_value, clip_value]`; NaN stays.

    Parameters
    ----------
    grads
        An array, or a list or dict of arrays, nested as you like; float32 or float64, writeable.
    clip_value
        At least 0.

    Raises
    ------
    TypeError, ValueError
        If an argument is unfit; nothing has been changed then.
    """
    if clip_value != math.inf:
        Bound("clip_value value").check(clip_value)
    gradient_plan(grads, writeable=True).clamp(clip_value, environment.pass_threads())


def clip_coefficient(norm: float, max_norm: float) -> float:
    """Return ``min(1, max_norm / (norm + 1e-6))``; NaN for a NaN norm, as in torch."""
    coefficient = max_norm / (norm + 1e-6)
    return 1.0 if coefficient > 1.0 else coefficient


def gradient_plan(grads: Any, *, writeable: bool) -> _core.Plan:
    """Return a plan over the arrays of `grads`, checked."""
    leaves, labels, _ = trees.flatten(grads, "grads")
    labels = [label for leaf, label in zip(leaves, labels, strict=True) if leaf is not None]
    given = [leaf for leaf in leaves if leaf is not None]
    arrays = [_arrays.as_array(leaf, label, writeable) for leaf, label in zip(given, labels, strict=True)]
    pair = _arrays.Memory(arrays).collision() if writeable else None
    if pair is not None:
        raise ValueError(f"{labels[pair[0]]} and {labels[pair[1]]} overlap in memory")
    return _core.Plan.of_gradients([(*_arrays.place(array), array.size) for array in arrays], arrays)
