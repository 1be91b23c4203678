"""What fastopt runs on: version, instruction set, threads, OpenMP runtimes."""

from __future__ import annotations

import os
import platform
import re
import warnings
from functools import cache
from typing import TypedDict

import numpy as np

from fastopt import _core

MOST_THREADS = 2**31 - 1
"""What OpenMP can be asked for."""


class Info(TypedDict):
    """What `info` returns."""

    version: str
    isa: str
    available_isas: tuple[str, ...]
    threads: int
    openmp: bool
    openmp_runtimes: list[str]
    compiler: str
    numpy: str
    python: str
    platform: str


def set_num_threads(threads: int | None) -> None:
    """Set how many threads a step may use at most; results do not depend on it.

    Parameters
    ----------
    threads
        At least 1, or None to ask for no number: then it is what OpenMP would use now (`OMP_NUM_THREADS`, the number of
        cores, `threadpoolctl`), for tensors of torch what torch would. At first that is `FASTOPT_NUM_THREADS`, if set.
        Small steps use fewer; a forked child, and a machine without an OpenMP runtime, one.

    Raises
    ------
    TypeError, ValueError
        If `threads` is not an integer of at least 1.

    Warns
    -----
    RuntimeWarning
        Once, if several are asked for and no OpenMP runtime was found. So does the import, of `FASTOPT_NUM_THREADS`.
    """
    if threads is None:
        _core.ask_for_threads(_core.ANY_THREADS)
        return
    if isinstance(threads, bool) or not isinstance(threads, int | np.integer):
        raise TypeError(f"threads: expected an integer, got {type(threads).__name__}")
    if not 1 <= threads <= MOST_THREADS:
        raise ValueError(f"threads: expected 1 to {MOST_THREADS}, got {threads}")
    if threads > 1 and not _core.has_openmp():
        _warn_of_one_thread()
    _core.ask_for_threads(int(threads))


@cache
def _warn_of_one_thread() -> None:
    warnings.warn(
        "no OpenMP runtime was found: every step runs on one thread (on Debian and Ubuntu: apt-get install libgomp1)",
        RuntimeWarning,
        stacklevel=3,
    )


def get_num_threads() -> int:
    """Return how many threads a step may use at most."""
    return chosen_threads() or _core.hardware_threads()


def chosen_threads() -> int | None:
    """Return the number of threads that was asked for, None if nobody did."""
    return _core.threads_asked() or None


def pass_threads() -> int:
    """Return what to pass for the number of threads: the one that was asked for, or whatever OpenMP would take."""
    return _core.threads_asked()


def isa() -> str:
    """Return the instruction set in use: `x86_v4`, `x86_v3`, `arm_neon` or `portable`."""
    return _core.isa()


def available_isas() -> tuple[str, ...]:
    """Return the instruction sets that this binary has and this CPU can run, best first.

    The environment variable `FASTOPT_ISA` chooses one of them before the import. All but `portable`, which has no
    fused multiply-add, give the same bits.
    """
    return _core.available_isas()


def info() -> Info:
    """Return what fastopt is and runs on, for bug reports.

    Warns
    -----
    RuntimeWarning
        If two OpenMP runtimes are loaded in this process: their threads compete for the cores.
    """
    from importlib.metadata import version  # (as long to import as half of the library)

    runtimes = openmp_runtimes()
    if len(runtimes) > 1:
        warnings.warn(
            f"{len(runtimes)} OpenMP runtimes are loaded in this process ({', '.join(runtimes)}); their threads "
            "compete for the cores",
            RuntimeWarning,
            stacklevel=2,
        )
    return {
        "version": version("fastopt"),
        "isa": isa(),
        "available_isas": available_isas(),
        "threads": get_num_threads(),
        "openmp": _core.has_openmp(),
        "openmp_runtimes": runtimes,
        "compiler": _core.compiler(),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def openmp_runtimes() -> list[str]:
    """Return the files of the OpenMP runtimes loaded in this process (on Linux; empty elsewhere).

    But for one that fastopt has loaded and, as another has come since, does not use.
    """
    if not os.path.exists("/proc/self/maps"):
        return []
    with open("/proc/self/maps") as maps:
        mapped = {line.rstrip("\n").split(maxsplit=5)[-1] for line in maps if "/" in line}
    mapped.discard(os.path.realpath(_core.spare_openmp()))
    return sorted(file for file in mapped if re.search(r"/lib(gomp|omp|iomp5)[^/]*\.so", file))


def _threads_of_environment() -> int | None:
    wanted = os.environ.get("FASTOPT_NUM_THREADS", "")
    if not wanted:
        return None
    if not wanted.isdecimal() or not 1 <= int(wanted) <= MOST_THREADS:
        raise ImportError(f"FASTOPT_NUM_THREADS: expected an integer from 1 to {MOST_THREADS}, got {wanted!r}")
    if int(wanted) > 1 and not _core.has_openmp():
        _warn_of_one_thread()
    return int(wanted)


def _use_isa_of_environment() -> None:
    wanted = os.environ.get("FASTOPT_ISA", "")
    if wanted:
        try:
            _core.use_isa(wanted)
        except ValueError as error:
            raise ImportError(f"FASTOPT_ISA: {error}") from None


_core.ask_for_threads(_threads_of_environment() or _core.ANY_THREADS)
_use_isa_of_environment()
