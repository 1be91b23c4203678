"""torch's gradient clipping, in one parallel pass; gradients are rewritten only when clipping really happens."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from functools import reduce
from types import GeneratorType

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from fastopt import _core
from fastopt.backends.torch import as_list, is_plain, place, thread_count
from fastopt.clipping import clip_coefficient


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
    several = as_list(tensors)
    return norm_over(gradient_plan(several), several, float(norm_type), error_if_nonfinite, foreach)


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
    several = listed(parameters)
    grads = [parameter.grad for parameter in several if parameter.grad is not None]
    plan = gradient_plan(grads)
    norm = norm_over(plan, grads, float(norm_type), error_if_nonfinite, foreach)
    # (Threads must not scale a gradient that is in the list twice both at once.)
    if plan is None or len(set(map(Tensor.data_ptr, grads))) < len(grads):
        torch.nn.utils.clip_grads_with_norm_(several, max_norm, norm, foreach)
        return norm
    coefficient = clip_coefficient(float(norm), float(max_norm))
    if coefficient != 1.0:
        plan.scale(coefficient, thread_count())
        increment_version(grads)
    return norm


def clip_grad_value_(parameters: Tensor | Iterable[Tensor], clip_value: float, foreach: bool | None = None) -> None:
    """Clip every entry of the gradients to ``[-clip_value, clip_value]``, as `torch.nn.utils.clip_grad_value_`."""
    several = as_list(parameters)
    grads = [parameter.grad for parameter in several if parameter.grad is not None]
    plan = gradient_plan(grads)
    if plan is None and grads:
        torch.nn.utils.clip_grad_value_(several, clip_value, foreach)
    elif plan is not None:
        plan.clamp(float(clip_value), thread_count())
        increment_version(grads)


def listed(parameters: Tensor | Iterable[Tensor]) -> list[Tensor]:
    """Return the parameters, with torch's warning if a generator has none (any more)."""
    several = as_list(parameters)
    if isinstance(parameters, GeneratorType) and not several:
        warnings.warn("`parameters` is an empty generator, no gradient clipping will occur.", UserWarning, stacklevel=3)
    return several


def gradient_plan(tensors: list[Tensor]) -> _core.Plan | None:
    """Return a plan over the tensors; None for none, and for any that is not plain."""
    if not tensors or not all(map(is_plain, tensors)):
        return None
    return _core.Plan.of_gradients([(*place(tensor), tensor.numel()) for tensor in tensors], tensors)


def norm_over(
    plan: _core.Plan | None, tensors: list[Tensor], norm_type: float, error_if_nonfinite: bool, foreach: bool | None
) -> Tensor:
    """Return the norm of the tensors that the plan is over; torch's if there is no plan, or no pass for this norm."""
    if plan is None or norm_type not in (2.0, math.inf):
        return torch.nn.utils.get_total_norm(tensors, norm_type, error_if_nonfinite, foreach)
    value = plan.norm(thread_count()) if norm_type == 2.0 else plan.max_abs(thread_count())
    if error_if_nonfinite and not math.isfinite(value):
        raise RuntimeError(
            f"The total norm of order {norm_type} for gradients from `parameters` is non-finite, so it cannot be "
            "clipped. To disable this error and scale the gradients by the non-finite norm anyway, set "
            "`error_if_nonfinite=False`"
        )
    dtypes = {tensor.dtype for tensor in tensors}
    return torch.tensor(value, dtype=reduce(torch.promote_types, dtypes), device="cpu")
