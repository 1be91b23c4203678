"""The optimizers for torch: torch's class, with the step of `fastopt`'s class of the same name."""

import torch.optim

from fastopt import optimizers
from fastopt.torch.optimizer import Optimizer


class SGD(Optimizer, torch.optim.SGD):
    """`torch.optim.SGD`, faster on the CPU; beyond torch: `velocity`, `decoupled_weight_decay`. See `fastopt.SGD`."""

    method = optimizers.SGD
    takes_sparse = True


class Adagrad(Optimizer, torch.optim.Adagrad):
    """`torch.optim.Adagrad`, faster on the CPU; beyond torch: `eps_root`, `decoupled_weight_decay`.

    See `fastopt.Adagrad`.
    """

    method = optimizers.Adagrad
    takes_sparse = True


class RMSprop(Optimizer, torch.optim.RMSprop):
    """`torch.optim.RMSprop`, faster on the CPU; beyond torch: `eps_root`, `decoupled_weight_decay`.

    See `fastopt.RMSprop`.
    """

    method = optimizers.RMSprop


class Adam(Optimizer, torch.optim.Adam):
    """`torch.optim.Adam`, faster on the CPU; beyond torch: `eps_root`. See `fastopt.Adam`."""

    method = optimizers.Adam


class AdamW(Optimizer, torch.optim.AdamW):
    """`torch.optim.AdamW`, faster on the CPU; beyond torch: `eps_root`. See `fastopt.AdamW`."""

    method = optimizers.AdamW
