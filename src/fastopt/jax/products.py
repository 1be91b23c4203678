"""Products of matrices within a step: between the call that makes the updates of Muon and the one that adds them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from fastopt.products import TINY


def orthogonal(
    method: Any, options: Mapping[str, Any], updates: Sequence[Any], rows: Sequence[Any]
) -> tuple[list[Any], list[Any]]:
    """Return updates that have been made orthogonal and as large as they are to be; those of one shape in one product.

    `rows` has, for each, what is kept of its rows (NorMuon), or None; it is returned as it is after the step.
    """
    alike = defaultdict(list)
    for i, update in enumerate(updates):
        alike[update.shape].append(i)
    made, kept = list(updates), list(rows)
    for shape, indices in alike.items():
        if 0 in shape:
            continue
        x = jnp.stack([updates[i] for i in indices])
        for a, b, c in method.polynomials(options):
            x = iterated(x, a, b, c)
        if options["normuon"]:
            average = jnp.stack([rows[i] for i in indices])
            x, average = evened_out(x, average, options["normuon_beta"], options["eps"])
            kept = [average[indices.index(i)] if i in indices else row for i, row in enumerate(kept)]
        for i, update in zip(indices, x * method.ratio(options, *shape), strict=True):
            made[i] = update
    return made, kept


def iterated(x: Any, a: float, b: float, c: float) -> Any:
    """Return ``(a + b*g + c*g@g) @ x``, g being ``x @ x.T``, or ``x @ (...)`` with ``x.T @ x`` if that is smaller."""
    flipped, wide = x.swapaxes(1, 2), x.shape[1] <= x.shape[2]
    gram = x @ flipped if wide else flipped @ x
    polynomial = b * gram + c * (gram @ gram)
    return a * x + (polynomial @ x if wide else x @ polynomial)


def evened_out(x: Any, average: Any, beta: float, eps: float) -> tuple[Any, Any]:
    """Return matrices of the same norm, whose rows are divided by the roots of moving averages, and these averages."""
    squares = jnp.sum(x * x, 2)
    average = (beta * average + (1 - beta) * squares / x.shape[2]).astype(average.dtype)
    root = jnp.sqrt(average).astype(x.dtype) + max(eps, TINY)
    before, after = jnp.sum(squares, 1), jnp.sum(squares / root**2, 1)
    factor = jnp.sqrt(before / (after + TINY))
    return x * (factor[:, None] / root)[:, :, None], average
