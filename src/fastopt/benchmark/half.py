"""Weights in bfloat16 for models that compute in float32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastopt import Rows, StepInfo
from fastopt.training.problem import Problem
from fastopt.training.torch_optimizers import Fastopt


class HalfWeights:
    """Weights and gradients in bfloat16, of which a model has copies in float32: its arithmetic is not in question.

    Parameters
    ----------
    problem
        What is trained; its arrays become the copies.
    **options
        Of the optimizer.

    Attributes
    ----------
    inner
        The optimizer itself.
    """

    def __init__(self, problem: Problem, **options: Any) -> None:
        self.model: Any = problem.model
        self.copies = [torch.from_numpy(array) for array in problem.model.parameters.values()]
        self.weights = [copy.bfloat16().requires_grad_() for copy in self.copies]
        rest = iter(self.weights)
        groups = [
            {"params": [next(rest) for _ in group["params"]], "weight_decay": group["weight_decay"]}
            for group in problem.inner_optimizer.param_groups
        ]
        self.optimizer = Fastopt(problem.config, groups, problem.total_steps, **options)
        self.inner = self.optimizer.inner
        self.copy()

    def copy(self) -> None:
        """Give the model the weights."""
        for copy, weight in zip(self.copies, self.weights, strict=True):
            copy.copy_(weight.detach())

    def update(self, of: int = 1) -> StepInfo:
        """Add the gradients that the model has found to the mean of so many; take the step once it has them all."""
        gradients = self.model.gradients
        for name, weight in zip(self.model.parameters, self.weights, strict=True):
            weight.grad = in_half(gradients[name], weight)
        info = self.optimizer.step(of)
        self.copy()
        return info


def in_half(found: Any, weight: Tensor) -> Tensor:
    """Return a gradient in bfloat16, sparse if it is one of rows; an array is left as zero, as torch adds to it."""
    if isinstance(found, Rows):
        rows, values = torch.from_numpy(found.indices), torch.from_numpy(found.values)
        return torch.sparse_coo_tensor(rows[None], values.bfloat16(), weight.shape, check_invariants=False)
    gradient = torch.from_numpy(found).bfloat16()
    found.fill(0)
    return gradient
