"""Products of matrices within a step: between the call that makes the updates of Muon and the one that adds them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fastopt.products import TINY


def orthogonal(method: Any, options: Mapping[str, Any], updates: Sequence[Any], rows: Any) -> tuple[list[Any], Any]:
    """Return updates that have been made orthogonal and as large as they are to be; those of one shape in one product.

    `rows` is what is kept of their rows (NorMuon), end to end, or None; it is returned as it is after the step.
    """
    alike = defaultdict(list)
    for i, update in enumerate(updates):
        alike[update.shape].append(i)
    first = np.cumsum([0, *(len(update) for update in updates)])
    made = list(updates)
    for shape, indices in alike.items():
        if 0 in shape:
            continue
        x = jnp.stack([updates[i] for i in indices])
        polynomials = jnp.array(method.polynomials(options), x.dtype).reshape(-1, 3)
        x, _ = jax.lax.scan(lambda x, factors: (iterated(x, *factors), None), x, polynomials)
        if rows is not None:
            own = first[indices][:, None] + np.arange(shape[0])
            x, average = evened_out(x, rows[own], options["normuon_beta"], options["eps"])
            rows = rows.at[own].set(average)
        for i, update in zip(indices, x * method.ratio(options, *shape), strict=True):
            made[i] = update
    return made, rows


def iterated(x: Any, a: Any, b: Any, c: Any) -> Any:
    """Return ``(a + b*g + c*g@g) @ x``, g being ``x @ x.T``, or the same from the right with a smaller ``x.T @ x``."""
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
