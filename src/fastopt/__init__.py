"""fastopt: optimizer steps on the CPU, at the speed of the memory.

>>> import numpy as np, fastopt
>>> w = np.array([5.0])
>>> opt = fastopt.SGD(w, lr=0.1)
>>> opt.step(np.array([2.0])).lr
0.1
>>> w
array([4.8])
"""

from typing import TYPE_CHECKING, Any

from fastopt import optimizers
from fastopt.averaging import lerp_
from fastopt.clipping import clip_grad_norm, clip_grad_value, global_norm
from fastopt.engine import StepInfo
from fastopt.environment import available_isas, get_num_threads, info, isa, set_num_threads
from fastopt.lookahead import Lookahead
from fastopt.optimizer import Optimizer
from fastopt.optimizers import *  # noqa: F403
from fastopt.optimizers import __all__ as __all__  # which type checkers can follow
from fastopt.rows import Rows

if TYPE_CHECKING:
    from fastopt import schedules, surfaces
    from fastopt.trajectories import Trajectory, trajectory

    __version__: str

__all__ += (
    "Lookahead",
    "Optimizer",
    "Rows",
    "StepInfo",
    "Trajectory",
    "available_isas",
    "clip_grad_norm",
    "clip_grad_value",
    "get_num_threads",
    "global_norm",
    "info",
    "isa",
    "lerp_",
    "optimizers",
    "schedules",
    "set_num_threads",
    "surfaces",
    "trajectory",
)


def __getattr__(name: str) -> Any:
    """Import what takes long and not everybody asks for."""
    from importlib import import_module

    if name == "__version__":
        found: Any = import_module("importlib.metadata").version("fastopt")
    elif name in ("schedules", "surfaces"):
        found = import_module(f"fastopt.{name}")
    elif name in ("Trajectory", "trajectory"):
        found = getattr(import_module("fastopt.trajectories"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """Name what there is, imported or not."""
    return sorted({*globals(), *__all__})
