"""fastopt: optimizer steps on the CPU, at the speed of the memory.

>>> import numpy as np, fastopt
>>> w = np.array([5.0])
>>> opt = fastopt.SGD(w, lr=0.1)
>>> opt.step(np.array([2.0])).lr
0.1
>>> w
array([4.8])
"""

from importlib.metadata import version

from fastopt import optimizers, schedules, surfaces
from fastopt.averaging import lerp_
from fastopt.clipping import clip_grad_norm, clip_grad_value, global_norm
from fastopt.engine import StepInfo
from fastopt.environment import available_isas, get_num_threads, info, isa, set_num_threads
from fastopt.lookahead import Lookahead
from fastopt.optimizer import Optimizer
from fastopt.optimizers import *  # noqa: F403
from fastopt.optimizers import __all__ as __all__  # which type checkers can follow
from fastopt.rows import Rows
from fastopt.trajectories import Trajectory, trajectory

__version__ = version("fastopt")

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
