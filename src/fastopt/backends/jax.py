"""JAX's arrays, for `fastopt.jax`: the step as a custom call of XLA's, which csrc/xla.c answers."""

from __future__ import annotations

import re
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from fastopt import _core

OLDEST = (0, 5, 0)

if jax.__version_info__ < OLDEST:
    raise ImportError(f"fastopt.jax needs jax {'.'.join(map(str, OLDEST))} or newer, got {jax.__version__}")

TARGET = f"fastopt_step_{zlib.crc32(repr((_core.RULES, _core.OPTIONS)).encode()):08x}"
"""Has in its name what the numbers in a call mean: one that another version compiled and kept is not found here."""


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

jax.ffi.register_ffi_target(TARGET, _core.xla_handler(MINOR), platform="cpu")


class Layout(NamedTuple):
    """What is compiled into a call."""

    rule: str
    options: NDArray[np.float64]
    """Rows of all options, then three of the whole optimizer: clip_norm, clip_value, weight of the moving average."""
    owners: list[int]
    """For each parameter, its row."""
    places: list[int]
    """For each traced number, where it belongs in `options`."""
    stochastic: int
    """A bit for each state that is rounded at random."""
    average: bool
    """Whether the last state is the parameters' moving average."""
    skips: bool
    """Whether a step with gradients that are not finite is skipped."""


def step(layout: Layout, traced: list[Any], written: list[Any], grads: list[Any]) -> list[Any]:
    """Return what is written by a step, after it: the number of steps, the parameters, states, numbers kept.

    It is in the same memory where XLA can have it so: where that has been donated.
    """

    @jax.custom_jvp
    def run(*operands: Any) -> list[Any]:
        results = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in written]
        aliases = {len(traced) + place: place for place in range(len(written))}
        call = jax.ffi.ffi_call(TARGET, results, vmap_method="sequential", input_output_aliases=aliases)
        found: list[Any] = call(
            *operands,
            rule=np.int64(_core.RULES[layout.rule][0]),
            options=layout.options,
            owners=np.array(layout.owners, np.int64),
            places=np.array(layout.places, np.int64),
            stochastic=np.int64(layout.stochastic),
            average=np.int64(layout.average),
            skips=np.int64(layout.skips),
        )
        return found

    @run.defjvp
    def refuse(primals: Any, tangents: Any) -> Any:
        raise TypeError(
            "fastopt.jax: a step has no derivative; take the gradient of the loss alone, or stop it with "
            "jax.lax.stop_gradient before the step"
        )

    return run(*traced, *written, *grads)
