"""fastopt for PyTorch: drop-in subclasses of `torch.optim`'s optimizers on fastopt's kernels, zero-copy.

`from fastopt.torch import AdamW` in place of `from torch.optim import AdamW` is the whole migration.
"""

import torch

from fastopt import schedules
from fastopt.torch import optimizers as optimizers
from fastopt.torch.averaging import lerp_
from fastopt.torch.clipping import clip_grad_norm_, clip_grad_value_, get_total_norm
from fastopt.torch.in_backward import step_in_backward
from fastopt.torch.lookahead import Lookahead
from fastopt.torch.offload import Offload
from fastopt.torch.optimizer import Optimizer
from fastopt.torch.optimizers import *  # noqa: F403
from fastopt.torch.optimizers import __all__ as __all__  # which type checkers can follow

__all__ += (
    "Lookahead",
    "Offload",
    "Optimizer",
    "clip_grad_norm_",
    "clip_grad_value_",
    "get_total_norm",
    "lerp_",
    "step_in_backward",
)

# Schedules may be in a state dict, which `torch.load(weights_only=True)` reads if it knows their classes.
torch.serialization.add_safe_globals([*schedules.Schedule.__subclasses__()])
