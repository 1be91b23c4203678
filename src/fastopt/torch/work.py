"""What the kernels need of tensors: plain memory, and parameter, gradient and states in one order.

Most tensors are that already, or a view of them is (complex numbers as pairs, the local part of a sharded tensor). For
the others (gaps, lazy signs, sparse gradients) `work_on` makes copies, written back after the step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from fastopt import _core

try:
    from torch.distributed.tensor import DTensor as DTensor
except ImportError:  # a build of torch without torch.distributed

    class DTensor:  # type: ignore[no-redef]
        """Stand-in that no tensor is an instance of."""


DTYPE_NAMES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}


# ---- what a tensor is ----


def complaint(tensor: Tensor) -> str:
    """Return what is wrong with a tensor and what to do about it; nothing if `plain` makes it fit for the kernels."""
    local = local_part(tensor)
    if local.device.type != "cpu":
        what, advice = f"on device {local.device}", "fastopt steps on the CPU: move the model there, or use torch.optim"
    elif local.layout != torch.strided:
        what, advice = f"of layout {local.layout}", "make it dense (for an embedding: sparse=False)"
    elif real_dtype(local) not in DTYPE_NAMES:
        what, advice = f"of dtype {local.dtype}", "use float32, float64, bfloat16, float16 or a complex dtype of those"
    elif local.numel() and not local.data_ptr():
        what, advice = f"a {type(local).__name__} without memory of its own", "use torch.optim for such tensors"
    else:
        return ""
    return f"is {what}, which is not supported; {advice}"


def is_plain(tensor: Tensor) -> bool:
    """Whether the kernels can work on the tensor's memory as it is."""
    return not (isinstance(tensor, DTensor) or tensor.is_complex() or complaint(tensor)) and has_plain_view(tensor)


def has_plain_view(tensor: Tensor) -> bool:
    """Whether `plain` gives a view that the kernels can work on."""
    local = local_part(tensor)
    return not (local.is_neg() or local.is_conj()) and is_dense(local)


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill one stretch of memory, in whatever order of dimensions."""
    return tensor.is_contiguous() or torch.empty_like(tensor, device="meta").stride() == tensor.stride()


def same_order(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of the same shape lie in memory alike; the stride of a single element means nothing."""
    strides = zip(a.stride(), b.stride(), a.shape, strict=True)
    return a.stride() == b.stride() or all(one == other or size == 1 for one, other, size in strides)


def real_dtype(tensor: Tensor) -> torch.dtype:
    """Return the dtype of a tensor's real and imaginary parts."""
    return tensor.dtype.to_real() if tensor.is_complex() else tensor.dtype


# ---- views and copies ----


def local_part(tensor: Tensor) -> Tensor:
    """Return this process's part of a sharded tensor, any other as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def plain(tensor: Tensor) -> Tensor:
    """Return a view of real numbers: the local part, complex numbers as pairs."""
    local = local_part(tensor).detach()
    return torch.view_as_real(local) if local.is_complex() else local


def plain_gradient(grad: Tensor, param: Tensor) -> Tensor:
    """Return `plain` of a gradient, brought to the parameter's placement among the processes; lazy signs resolved."""
    if isinstance(grad, DTensor) and isinstance(param, DTensor) and grad.placements != param.placements:
        grad = grad.redistribute(placements=param.placements)
    return plain(local_part(grad).resolve_conj()).resolve_neg()


def brought(grad: Tensor, like: Tensor) -> Tensor:
    """Return a gradient in the dtype and memory order of `like`; a copy unless it is that already."""
    if grad.dtype == like.dtype and not grad.is_neg() and same_order(grad, like):
        return grad
    return torch.empty_like(like).copy_(grad)


def fitted_state(state: Tensor, param: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a state in a dtype, and in the parameter's memory order where that has no gaps."""
    if state.layout != torch.strided:  # momentum of sparse gradients, in torch
        state = state.to_dense()
    here, there = local_part(state), local_part(param)
    if state.dtype == dtype and (same_order(here, there) or not is_dense(there)):
        return state
    return torch.empty_like(param, dtype=dtype).copy_(state)


def state_dtype(param: Tensor, states: list[Tensor], wanted: torch.dtype | None) -> torch.dtype:
    """Return the dtype that there are kernels for: the parameter's, or float32 beside a half precision.

    Float32 is taken if it is wanted, or if the states have more precision than the parameter.
    """
    if param.is_complex() or param.dtype.itemsize > 2:
        return param.dtype
    narrow = wanted is None and all(state.dtype == param.dtype for state in states)
    return param.dtype if narrow else torch.float32


class Work(NamedTuple):
    """One parameter's share of a step."""

    param: Tensor
    grad: Tensor
    states: list[Tensor]
    write_back: Sequence[Callable[[], object]]
    """What remains to be done after the step, where something had to be copied."""


def work_on(param: Tensor, grad: Tensor, states: list[Tensor]) -> Work:
    """Return tensors that the kernels can step on in place of these."""
    write_back: list[Callable[[], object]] = []
    p = ordered(param, None, write_back)
    g = brought(plain_gradient(grad, param), p)
    return Work(p, g, [ordered(state, p, write_back) for state in states], write_back)


def work_on_rows(param: Tensor, grad: Tensor, states: list[Tensor]) -> Work:
    """Return the rows of a parameter and its states that a sparse gradient has entries for."""
    if not grad.sparse_dim():  # its rows are no rows: it has all of the parameter or nothing
        return work_on(param, grad.to_dense(), states)
    entries = grad.coalesce()
    index = tuple(entries.indices())
    wholes = [tensor.detach() for tensor in (param, *states)]
    parts = [whole[index].contiguous() for whole in wholes]
    write_back = [partial(whole.index_put_, index, part) for whole, part in zip(wholes, parts, strict=True)]
    rows = [plain(part) for part in parts]
    return Work(rows[0], brought(plain_gradient(entries.values(), param), rows[0]), rows[1:], write_back)


def ordered(tensor: Tensor, like: Tensor | None, write_back: list[Callable[[], object]]) -> Tensor:
    """Return plain numbers in the memory order of `like` (None: any without gaps); a copy only if need be."""
    local = local_part(tensor).detach()
    if has_plain_view(local) and (like is None or same_order(plain(local), like)):
        return plain(local)
    if like is None:
        like = plain(torch.empty(local.shape, dtype=local.dtype))
    copy = torch.empty_like(like, dtype=real_dtype(local))
    values = torch.view_as_complex(copy) if local.is_complex() else copy
    values.copy_(local)
    write_back.append(partial(local.copy_, values))
    return copy


# ---- plans ----


def storage_index(param: Tensor, states: list[Tensor]) -> int:
    """Return the kernels' index of the storage of a parameter and its states."""
    name = DTYPE_NAMES[param.dtype]
    wide = any(state.dtype != param.dtype for state in states)
    return _core.DTYPES[f"{name}/float32" if wide else name]


def plan_over(params: list[Tensor], states: list[list[Tensor]], rules: list[str]) -> _core.Plan:
    """Return a plan over plain tensors, all but the gradients; the caller keeps them alive."""
    plan = _core.Plan(list(map(Tensor.numel, params)), list(map(storage_index, params, states)))
    plan.set_params(list(map(Tensor.data_ptr, params)))
    for position, (rule, several) in enumerate(zip(rules, states, strict=True)):
        plan.set_state_addresses(position, rule, list(map(Tensor.data_ptr, several)))
    return plan


def any_overlap(tensors: list[Tensor]) -> bool:
    """Whether two tensors without gaps share memory."""
    ends = sorted((tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes) for tensor in tensors if tensor.numel())
    return any(end > start for (_, end), (start, _) in pairwise(ends))
