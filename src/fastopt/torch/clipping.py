"""torch's gradient clipping, in one parallel pass; gradients are rewritten only when clipping really happens."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from fastopt import _core, environment
from fastopt.clipping import clip_coefficient
from fastopt.torch.work import DTYPE_NAMES, is_plain


def get_total_norm(
    tensors: Tensor | Iterable[Tensor],
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """Return the norm of all tensors together, as `torch.nn.utils.get_total_norm`, summed in double precision.

    Parameters
    ----------
    tensors
        One or several.
    norm_type
        2 and infinity take one parallel pass; any other is left to torch.
    error_if_nonfinite
        Whether to raise if the norm is NaN or infinite.
    foreach
        Changes nothing.

    Raises
    ------
    RuntimeError
        If the norm is not finite and `error_if_nonfinite`.
    """
    several = [tensors] if isinstance(tensors, Tensor) else list(tensors)
    norm_type = float(norm_type)
    if norm_type not in (2.0, math.inf) or not several or not all(map(is_plain, several)):
        return torch.nn.utils.get_total_norm(several, norm_type, error_if_nonfinite, foreach)
    plan, threads = plan_over(several), thread_count()
    value = plan.norm(threads) if norm_type == 2.0 else plan.max_abs(threads)
    if error_if_nonfinite and not math.isfinite(value):
        raise RuntimeError(
            f"The total norm of order {norm_type} for gradients from `parameters` is non-finite, so it cannot be "
            "clipped. To disable this error and scale the gradients by the non-finite norm anyway, set "
            "`error_if_nonfinite=False`"
        )
    dtype = several[0].dtype
    for tensor in several[1:]:
        dtype = dtype if dtype == tensor.dtype else torch.promote_types(dtype, tensor.dtype)
    return torch.tensor(value, dtype=dtype)


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """Scale the gradients so that their norm is at most `max_norm`, as `torch.nn.utils.clip_grad_norm_`.

    Parameters
    ----------
    parameters
        Whose gradients.
    max_norm
        The gradients are multiplied by ``min(1, max_norm / (norm + 1e-6))``; at 1 nothing is written.
    norm_type, error_if_nonfinite, foreach
        As in `get_total_norm`.

    Returns
    -------
    Tensor
        The norm before clipping.

    Raises
    ------
    RuntimeError
        If the norm is not finite and `error_if_nonfinite`; nothing has been changed then.
    """
    grads = gradients(parameters)
    if not all(map(is_plain, grads)):
        several = [parameters] if isinstance(parameters, Tensor) else list(parameters)
        return torch.nn.utils.clip_grad_norm_(several, max_norm, norm_type, error_if_nonfinite, foreach)
    norm = get_total_norm(grads, norm_type, error_if_nonfinite, foreach)
    coefficient = clip_coefficient(float(norm), float(max_norm))
    if coefficient != 1.0 and grads:
        plan_over(grads).scale(coefficient, thread_count())
        torch.autograd.graph.increment_version(grads)
    return norm


def clip_grad_value_(parameters: Tensor | Iterable[Tensor], clip_value: float, foreach: bool | None = None) -> None:
    """Clip every entry of the gradients to ``[-clip_value, clip_value]``, as `torch.nn.utils.clip_grad_value_`."""
    grads = gradients(parameters)
    if not all(map(is_plain, grads)):
        several = [parameters] if isinstance(parameters, Tensor) else list(parameters)
        torch.nn.utils.clip_grad_value_(several, clip_value, foreach)
    elif grads:
        plan_over(grads).clamp(float(clip_value), thread_count())
        torch.autograd.graph.increment_version(grads)


def gradients(parameters: Tensor | Iterable[Tensor]) -> list[Tensor]:
    """Return the gradients that there are."""
    several = [parameters] if isinstance(parameters, Tensor) else parameters
    return [parameter.grad for parameter in several if parameter.grad is not None]


def plan_over(tensors: list[Tensor]) -> _core.Plan:
    """Return a plan over plain tensors; the caller keeps them alive."""
    plan = _core.Plan(list(map(Tensor.numel, tensors)), [_core.DTYPES[DTYPE_NAMES[tensor.dtype]] for tensor in tensors])
    plan.set_gradient_addresses(list(map(Tensor.data_ptr, tensors)))
    return plan


def thread_count() -> int:
    """Return how many threads a pass may take: what was asked of fastopt, or else of torch."""
    return environment.chosen_threads() or torch.get_num_threads()
