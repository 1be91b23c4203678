"""States in 8 bits: codes, and a scale for every 32 of them. What they stand for is the core's knowledge."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from fastopt import _core
from fastopt.backends.numpy import CODES, decoded, dtype_of, groups_of, stored

DTYPES = {storage: dtype.name for storage, dtype in CODES.items()}
"""Storage -> dtype of its codes."""


def of_number(storage: str, number: float) -> tuple[int, float]:
    """Return code and scale of a state that is everywhere the same."""
    codes, scales = stored("", np.full(_core.GROUP, number, np.float32), storage).values()
    return int(codes[0]), float(scales[0])


def encoded(storage: str, array: Any) -> Any:
    """Return codes and scales of a state, whose elements are rounded to nearest."""
    scales = jax.ShapeDtypeStruct((groups_of(array.size),), "float32")
    made = jax.ShapeDtypeStruct(array.shape, dtype_of(storage)), scales
    return on_the_host(lambda x: tuple(stored("", x, storage).values()), made, array.astype("float32"))


def values_of(codes: Any, scales: Any) -> Any:
    """Return in float32 what they stand for."""
    return on_the_host(decoded, jax.ShapeDtypeStruct(codes.shape, "float32"), codes, scales)


def on_the_host(function: Any, result: Any, *arrays: Any) -> Any:
    """Return what a function of NumPy's arrays does, also where they are traced."""
    return jax.pure_callback(
        lambda *given: function(*(np.asarray(array, order="C") for array in given)),
        result,
        *arrays,
        vmap_method="sequential",
    )
