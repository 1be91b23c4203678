"""What the tests do with arrays: make them at awkward addresses, and compare them to the last bit or in ulps."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastopt import Optimizer

CSRC = Path(__file__).parents[1] / "csrc"

Array = NDArray[Any]
Float64 = NDArray[np.float64]

DTYPES = ("float32", "float64")


def constant(file: str, name: str) -> int:
    """A constant of the C sources, such as `64 * 1024`."""
    found = re.search(rf"{name} = ([\d* ]+)", (CSRC / file).read_text())
    assert found
    return math.prod(int(factor) for factor in found[1].split("*"))


BLOCK = constant("fastopt.h", "FO_BLOCK")

BYTES_A_THREAD = constant("step.c", "BYTES_A_THREAD")
"""Of parameters that a thread must have for itself to be worth waking."""

SIZES = (0, 1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 129, 1000)
"""Around every boundary of vectors and unrolled loops."""

LARGE = 2**20 + 3

ULPS = {"float32": 5, "float64": 6}
"""How many units in the last place one step may differ from the oracle (which in float64 rounds as well). The unit is
that of the largest number that went into the sum: what cancels there has lost its own last places before."""


class Guarded:
    """Arrays at chosen numbers of elements past a 64-byte boundary, in a buffer that nothing else may change."""

    SENTINEL = -1234.5

    def __init__(self, sizes: Sequence[int], dtype: str, first_offset: int = 0) -> None:
        line = 64 // np.dtype(dtype).itemsize
        starts, end = [], line
        for index, size in enumerate(sizes):
            starts.append(end + (first_offset + index) % line)
            end = (starts[-1] + size) // line * line + 2 * line
        raw = np.empty(end + line, dtype)
        aligned = -raw.ctypes.data % 64 // raw.itemsize
        self.buffer = raw[aligned : aligned + end]
        self.buffer[:] = self.SENTINEL
        self.arrays = [self.buffer[start : start + size] for start, size in zip(starts, sizes, strict=True)]
        self.outside = np.ones(end, bool)
        for start, size in zip(starts, sizes, strict=True):
            self.outside[start : start + size] = False

    def fill(self, rng: np.random.Generator) -> None:
        for array in self.arrays:
            array[:] = nonzero(rng, array.shape)

    def assert_intact(self) -> None:
        assert (self.buffer[self.outside] == self.SENTINEL).all(), "written outside of the arrays"


def nonzero(rng: np.random.Generator, shape: int | tuple[int, ...], dtype: str = "float64") -> Array:
    """Random numbers of either sign, of magnitude 0.25 to 2."""
    signs = rng.choice([-1.0, 1.0], shape)
    return np.asarray(signs * rng.uniform(0.25, 2.0, shape)).astype(dtype)


def joined(arrays: Iterable[Array]) -> Float64:
    """All elements, end to end, in double precision."""
    return np.concatenate([np.ravel(array) for array in arrays]).astype(np.float64)


def errors_in_ulps(actual: Array, expected: Float64, summand: Float64 | float, dtype: str) -> Float64:
    """How far `actual` is from `expected`, in ulps of the larger of it and a summand; the smallest normal number is
    what flushing may lose.
    """
    info = np.finfo(dtype)
    scale = np.maximum(np.abs(expected), np.abs(summand))
    unit = np.maximum(scale, info.smallest_normal) * info.eps
    excess = np.abs(actual - expected) - info.smallest_normal
    errors: Float64 = np.maximum(excess, 0) / unit
    return errors


def assert_close(
    actual: Array, expected: Float64, summand: Float64 | float, dtype: str, what: str, ulps: float | None = None
) -> None:
    errors = errors_in_ulps(actual, expected, summand, dtype)
    limit = ULPS[dtype] if ulps is None else ulps
    if not (errors <= limit).all():
        worst = int(np.argmax(np.where(np.isnan(errors), np.inf, errors)))
        raise AssertionError(
            f"{what}[{worst}]: {actual[worst]!r}, but the oracle says {expected[worst]!r}: "
            f"{errors[worst]:.1f} ulps, allowed are {limit}"
        )


def bits(arrays: Iterable[Array]) -> bytes:
    """All elements end to end, as they lie in memory."""
    return b"".join(array.tobytes("A") for array in arrays)


def fingerprint(value: Any) -> Any:
    """Something equal for equal bits: of arrays, structures of them, and optimizers (parameters and state)."""
    if isinstance(value, Optimizer):
        return fingerprint(([group["params"] for group in value.param_groups], value.state_dict()))
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, bits([value])
    if isinstance(value, Mapping):
        return {key: fingerprint(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [fingerprint(entry) for entry in value]
    return value


@contextmanager
def unchanged(*values: Any) -> Iterator[None]:
    """Assert that the values have the same bits afterwards."""
    before = fingerprint(values)
    yield
    assert fingerprint(values) == before, "something was modified"
