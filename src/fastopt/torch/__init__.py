"""fastopt for PyTorch: drop-in subclasses of `torch.optim`'s optimizers on fastopt's kernels, zero-copy.

`from fastopt.torch import AdamW` in place of `from torch.optim import AdamW` is the whole migration.
"""

from typing import TYPE_CHECKING

import torch

from fastopt import schedules
from fastopt.classes import when_asked_for
from fastopt.torch import optimizers as optimizers
from fastopt.torch.averaging import lerp_
from fastopt.torch.clipping import clip_grad_norm_, clip_grad_value_, get_total_norm
from fastopt.torch.in_backward import step_in_backward
from fastopt.torch.lookahead import Lookahead
from fastopt.torch.offload import Offload
from fastopt.torch.optimizer import Optimizer

if TYPE_CHECKING:
    from fastopt.torch.optimizers import *  # noqa: F403
    from fastopt.torch.optimizers import __all__ as __all__
else:
    __all__ = ()

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

if not TYPE_CHECKING:  # (to which every name would be an optimizer)
    __getattr__, __dir__ = when_asked_for(globals(), lambda: optimizers.__all__, lambda name: getattr(optimizers, name))

# When torch first works in a thread it has OpenMP take the number of threads that was set. That is to be done before a
# fork, not in the child, which has one thread after a step on several.
torch.get_num_threads()

# Schedules may be in a state dict, which `torch.load(weights_only=True)` reads if it knows their classes.
torch.serialization.add_safe_globals([*schedules.Schedule.__subclasses__()])
