"""fastopt: optimizer steps on the CPU, at the speed of the memory.

>>> import numpy as np, fastopt
>>> w = np.array([5.0])
>>> opt = fastopt.SGD(w, lr=0.1)
>>> opt.step(np.array([2.0])).lr
0.1
>>> w
array([4.8])
"""

from importlib import import_module
from typing import TYPE_CHECKING

from fastopt.averaging import lerp_
from fastopt.classes import when_asked_for
from fastopt.clipping import clip_grad_norm, clip_grad_value, global_norm
from fastopt.environment import available_isas, get_num_threads, info, isa, set_num_threads
from fastopt.rows import Rows

if TYPE_CHECKING:
    from fastopt import optimizers, schedules, surfaces
    from fastopt.engine import StepInfo
    from fastopt.lookahead import Lookahead
    from fastopt.optimizer import Optimizer
    from fastopt.optimizers import *  # noqa: F403
    from fastopt.optimizers import __all__ as __all__
    from fastopt.trajectories import Trajectory, trajectory

    __version__: str
else:
    __all__ = ()

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

_MODULES = {
    "Lookahead": "lookahead",
    "Optimizer": "optimizer",
    "StepInfo": "engine",
    "Trajectory": "trajectories",
    "trajectory": "trajectories",
}
"""Where public names are that are imported when they are asked for first, as are the optimizers and some modules."""

if not TYPE_CHECKING:  # (to which every name would be one of these)

    def _optimizers():
        return import_module("fastopt.optimizers")

    _optimizer, __dir__ = when_asked_for(
        globals(), lambda: _optimizers().__all__, lambda name: getattr(_optimizers(), name)
    )

    def __getattr__(name):
        """Import what takes long."""
        if name == "__version__":
            found = import_module("importlib.metadata").version("fastopt")
        elif name in ("optimizers", "schedules", "surfaces"):
            found = import_module(f"fastopt.{name}")
        elif name in _MODULES:
            found = getattr(import_module(f"fastopt.{_MODULES[name]}"), name)
        else:
            return _optimizer(name)
        return globals().setdefault(name, found)
