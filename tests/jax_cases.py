"""What the tests of `fastopt.jax` have in common."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from arrays import BLOCK

import fastopt.jax
from fastopt.backends.numpy import decoded
from fastopt.engine import scales_of

SHAPES: dict[str, tuple[int, ...]] = {"a": (3, 5), "b": (), "c": (0, 3), "d": (BLOCK + 3,)}


def arrays(rng: np.random.Generator, dtype: str = "float32") -> dict[str, Any]:
    return {name: np.array(rng.standard_normal(shape), dtype) for name, shape in SHAPES.items()}


def in_jax(tree: Any) -> Any:
    return jax.tree.map(jnp.array, tree)


def on_the_host(value: Any) -> Any:
    """A schedule, so that JAX cannot trace it."""
    if isinstance(value, tuple):
        return tuple(map(on_the_host, value))
    return (lambda step: value(int(step))) if callable(value) else value


def made(optimizer: str, **options: Any) -> Any:
    return getattr(fastopt.jax, optimizer)(**{name: on_the_host(value) for name, value in options.items()})


def compiled(opt: Any) -> Callable[..., Any]:
    step: Callable[..., Any] = jax.jit(opt.step, donate_argnums=(0, 2))
    return step


def assert_same(found: Any, expected: Any) -> None:
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        one, other = np.asarray(one), np.asarray(other)
        assert (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())


def assert_close(found: Any, expected: Any, tolerance: float = 1e-5) -> None:
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


def assert_kept(opt: Any, state: Any, params: Any, twin: Any, same: Callable[[Any, Any], None] = assert_same) -> None:
    """What is kept of each parameter is what the NumPy face keeps."""
    for name, tree in opt.arrays_of(state, params).items():
        found = jax.tree.leaves(tree, is_leaf=lambda leaf: leaf is None)
        for array, kept in zip(found, twin.state, strict=True):
            if name in ("log_decay", "row_log_decay"):  # (which arrays without rows of their own have not)
                if name in kept:
                    same(np.asarray(array).view(np.float64).reshape(kept[name].shape), kept[name])
                continue
            assert (array is None) == (kept.get(name) is None)
            if array is not None and name not in opt.method.numbers:
                scales = kept.get(scales_of(name))
                same(array, kept[name] if scales is None else decoded(kept[name], scales))
