"""Gradients of some rows of a table."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


class Rows:
    """A gradient that is zero but in some rows: in the place of an array in `Optimizer.step`.

    Parameters
    ----------
    indices
        Numbers of rows, counted along the first dimension: k integers in any order, as often as they like. What a row
        has several times is summed, in order.
    values
        The gradients of these rows, of the shape (k, ...) of as many rows of the parameter, in its dtype.

    Notes
    -----
    Optimizers that leave an entry alone whose gradient is zero step these rows only: `SGD` without momentum and weight
    decay, and `Adagrad`. With momentum or weight decay `SGD` steps all rows, and other optimizers take no such
    gradients, unless they are made with ``lazy=True``: then these rows only are stepped, by any rule. The parameter is
    C-contiguous.
    """

    def __init__(self, indices: NDArray[np.integer[Any]], values: NDArray[np.floating[Any]]) -> None:
        self.indices = indices
        self.values = values


def as_rows(grad: Any, label: str, shape: tuple[int, ...]) -> Rows | None:
    """Return the rows in `Rows` or in a sparse matrix of SciPy, which has a shape to check; None of anything else."""
    if hasattr(grad, "tocsr"):
        if grad.shape != shape or len(shape) != 2:
            raise ValueError(f"{label}: expected the parameter's shape {shape}, got a sparse matrix of {grad.shape}")
        matrix = grad.tocsr()
        rows = np.flatnonzero(np.diff(matrix.indptr))
        grad = Rows(rows, matrix[rows].toarray())
    if not isinstance(grad, Rows):
        return None
    indices = np.asarray(grad.indices)
    if indices.ndim != 1 or (indices.size and indices.dtype.kind not in "iu"):
        raise TypeError(
            f"indices of {label}: expected integers in one dimension, got {indices.dtype} of shape {indices.shape}"
        )
    if not isinstance(grad.values, np.ndarray) or grad.values.shape[:1] != indices.shape:
        raise ValueError(
            f"values of {label}: expected an array with one entry for each of {len(indices)} row numbers, "
            f"got shape {np.shape(grad.values)}"
        )
    if indices.dtype not in (np.int64, np.int32) or not indices.flags.c_contiguous:
        indices = np.ascontiguousarray(indices, dtype=np.int64)
    return Rows(indices, grad.values)
