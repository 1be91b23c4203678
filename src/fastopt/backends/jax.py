"""JAX's arrays, for `fastopt.jax`: the step as a custom call of XLA's, which csrc/xla.c answers."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from fastopt import _core

OLDEST = (0, 5, 0)

if jax.__version_info__ < OLDEST:
    raise ImportError(f"fastopt.jax needs jax {'.'.join(map(str, OLDEST))} or newer, got {jax.__version__}")

VERSION = f"{zlib.crc32(repr((_core.RULES, _core.OPTIONS)).encode()):08x}"
MEASURE, STEP = f"fastopt_measure_{VERSION}", f"fastopt_step_{VERSION}"
"""Have in their names what the numbers in a call mean: one that another version compiled and kept is not found here."""

MOST_IN_A_CALL = 64
"""Parameters. The time to compile a call grows faster than with their square: 0.2 s for 100, 250 s for 1000."""


def interface() -> tuple[int, int]:
    """Return the version of XLA's foreign function interface, which its header alone says."""
    header = (Path(jax.ffi.include_dir()) / "xla" / "ffi" / "api" / "c_api.h").read_text(encoding="utf-8")
    major, minor = (
        int(re.findall(rf"^#define XLA_FFI_API_{part} (\d+)$", header, re.M)[0]) for part in ("MAJOR", "MINOR")
    )
    return major, minor


MAJOR, MINOR = interface()

if MAJOR != 0:  # (minor versions only add to it)
    raise ImportError(
        f"fastopt.jax knows version 0 of XLA's foreign function interface, jax {jax.__version__} has {MAJOR}"
    )

for _name, _handler in zip((MEASURE, STEP), _core.xla_handlers(MINOR), strict=True):
    jax.ffi.register_ffi_target(_name, _handler, platform="cpu")


class Numbers(NamedTuple):
    """Numbers of a call, and those among them that are operands."""

    fixed: NDArray[np.float64]
    traced: tuple[tuple[int, Any], ...]
    """Where in `fixed` each belongs, and what it is."""

    @property
    def places(self) -> NDArray[np.int64]:
        """Where they belong."""
        return np.array([place for place, _ in self.traced], np.int64)

    @property
    def operands(self) -> list[Any]:
        """What they are."""
        return [operand for _, operand in self.traced]


class Rule(NamedTuple):
    """What is the same for all parameters."""

    name: str
    options: Numbers
    """Two rows of all options, then clip_value and the weight of the moving average."""
    stochastic: int
    """A bit for each state that is rounded at random."""
    average: bool
    """Whether the last state is the parameters' moving average."""
    advances: list[int]
    """Where in a row of options the numbers belong that are kept for all parameters together."""


def step(
    rule: Rule,
    clip_norm: Numbers,
    skips: bool,
    owners: list[int],
    heads: list[Any],
    written: list[list[Any]],
    grads: list[Any],
) -> tuple[list[Any], list[list[Any]]]:
    """Return what a step writes: the heads; the parameters, each of their states, each number kept.

    The heads are the number of steps and, if there are any, the halves of the numbers that are kept for all parameters
    together. What is written is in the same memory where XLA can have it so: where that has been donated. `owners` has
    the row of options of each parameter; `skips` says whether a step is skipped if a gradient is not finite.
    """
    *rows, clip_value, weight = rule.options.fixed
    measured = [1.0, 0.0]
    traced = rule.options.traced
    if skips or clip_norm.traced or np.isfinite(clip_norm.fixed[0]):
        halves = measure(clip_norm, skips, grads)
        traced = (*traced, (len(rows) + 2, halves[:2]), (len(rows) + 3, halves[2:]))
    options = Numbers(np.array([*rows, clip_value, weight, *measured]), traced)
    together = len(grads) if _core.SCOPES.get(rule.name) == "plan" else MOST_IN_A_CALL
    found = [list(arrays) for arrays in written]
    order = sorted(range(len(grads)), key=owners.__getitem__)  # (parameters with the same options are to be neighbours)
    for first in range(0, len(grads), together):  # (one after the other: each takes all threads)
        part = order[first : first + together]
        parts = [[arrays[i] for i in part] for arrays in written]
        after = call(
            STEP,
            options.operands,
            [*heads, *(array for arrays in parts for array in arrays)],
            [grads[i] for i in part],
            rule=np.int64(_core.RULES[rule.name][0]),
            options=options.fixed,
            places=options.places,
            owners=np.array([owners[i] for i in part], np.int64),
            stochastic=np.int64(rule.stochastic),
            average=np.int64(rule.average),
            advances=np.array(rule.advances, np.int64),
            first=np.int64(first if rule.stochastic else 0),
            counts=np.int64(first + together >= len(grads)),
        )
        heads, after = after[: len(heads)], after[len(heads) :]
        for k, arrays in enumerate(found):
            for i, array in zip(part, after[k * len(part) :], strict=False):
                arrays[i] = array
    return heads, found


def measure(clip_norm: Numbers, skips: bool, grads: list[Any]) -> Any:
    """Return what depends on all gradients: the factor that clips them, and whether the step is skipped, in halves."""
    result = jax.ShapeDtypeStruct((4,), jax.numpy.uint32)
    run = jax.ffi.ffi_call(MEASURE, result, vmap_method="sequential")
    attributes = {"options": clip_norm.fixed, "places": clip_norm.places, "skips": np.int64(skips)}
    return without_derivative(lambda *operands: run(*operands, **attributes))(*clip_norm.operands, *grads)


def call(target: str, traced: list[Any], written: list[Any], read: list[Any], **attributes: Any) -> list[Any]:
    """Return what a call writes."""
    results = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in written]
    aliases = {len(traced) + place: place for place in range(len(written))}
    run = jax.ffi.ffi_call(target, results, vmap_method="sequential", input_output_aliases=aliases)
    found: list[Any] = without_derivative(lambda *operands: run(*operands, **attributes))(*traced, *written, *read)
    return found


def without_derivative(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function, but with a clear error where its derivative is asked for."""

    def refuse(primals: Any, tangents: Any) -> Any:
        raise TypeError(
            "fastopt.jax: a step has no derivative; take the gradient of the loss alone, or stop it with "
            "jax.lax.stop_gradient before the step"
        )

    guarded: Callable[..., Any] = jax.custom_jvp(function)
    guarded.defjvp(refuse)  # type: ignore[attr-defined]
    return guarded
