"""What the kernels need of tensors: plain memory, and parameter, gradient and states in one order.

Most tensors are that already. For the others (complex, strided, sparse, sharded) `work_on` makes it from views where
it can and from copies, written back after the step, where it must.
"""

from __future__ import annotations

from collections.abc import Callable
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


class Work(NamedTuple):
    """One parameter's share of a step."""

    param: Tensor
    grad: Tensor
    states: list[Tensor]
    write_back: list[Callable[[], object]]
    """What remains to be done after the step, where something had to be copied."""


def work_on(param: Tensor, grad: Tensor, states: list[Tensor], label: str) -> Work:
    """Return tensors that the kernels can step on in place of these.

    Raises
    ------
    RuntimeError
        If a tensor is not on the CPU or of a layout or dtype that is not supported; the label says whose.
    """
    if grad.is_sparse:
        return work_on_rows(param, grad, states, label)
    check(param, label)
    check(grad, f"gradient of {label}")
    write_back: list[Callable[[], object]] = []
    p = ordered(plain(param), None, write_back)
    g = ordered(plain(grad), p, None)
    return Work(p, g.to(p.dtype), [ordered(plain(state), p, write_back) for state in states], write_back)


def work_on_rows(param: Tensor, grad: Tensor, states: list[Tensor], label: str) -> Work:
    """Return the rows of a parameter that a sparse gradient has entries for."""
    check(param, label)
    coalesced = grad.coalesce()
    index = tuple(coalesced.indices())
    rows: list[Tensor] = []
    write_back: list[Callable[[], object]] = []
    for whole in (param.detach(), *states):
        part = whole[index]
        rows.append(plain(part))
        write_back.append(lambda whole=whole, part=part: whole.index_put_(index, part))  # type: ignore[misc]
    return Work(rows[0], plain(coalesced.values()).to(rows[0].dtype).contiguous(), rows[1:], write_back)


def check(tensor: Tensor, label: str) -> None:
    """Raise `RuntimeError` unless the tensor is one that the kernels, or `plain`, can handle."""
    local = local_part(tensor)
    what, advice = "", ""
    if local.device.type != "cpu":
        what, advice = f"on device {local.device}", "fastopt steps on the CPU: move the model there, or use torch.optim"
    elif local.layout != torch.strided:
        what, advice = f"of layout {local.layout}", "make it dense (for an embedding: sparse=False)"
    elif real_dtype(local) not in DTYPE_NAMES:
        what, advice = f"of dtype {local.dtype}", "use float32, float64, bfloat16, float16 or a complex dtype of those"
    if what:
        raise RuntimeError(f"{label} is {what}, which is not supported; {advice}")


def is_plain(tensor: Tensor) -> bool:
    """Whether the kernels can work on the tensor's memory as it is."""
    return (
        not isinstance(tensor, DTensor)
        and tensor.device.type == "cpu"
        and tensor.layout == torch.strided
        and tensor.dtype in DTYPE_NAMES
        and not tensor.is_neg()
        and is_dense(tensor)
    )


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill one stretch of memory, in whatever order of dimensions."""
    return tensor.is_contiguous() or torch.empty_like(tensor, device="meta").stride() == tensor.stride()


def local_part(tensor: Tensor) -> Tensor:
    """Return this process's part of a sharded tensor, any other as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def real_dtype(tensor: Tensor) -> torch.dtype:
    """Return the dtype of a tensor's real and imaginary parts."""
    return tensor.dtype.to_real() if tensor.is_complex() else tensor.dtype


def plain(tensor: Tensor) -> Tensor:
    """Return a view of real numbers: the local part, complex numbers as pairs; lazy conjugation and sign resolved."""
    local = local_part(tensor).detach()
    return torch.view_as_real(local.resolve_conj()) if local.is_complex() else local.resolve_neg()


def ordered(tensor: Tensor, like: Tensor | None, write_back: list[Callable[[], object]] | None) -> Tensor:
    """Return a tensor in the memory order of `like` (None: any without gaps); a copy is written back if asked."""
    if is_dense(tensor) if like is None else tensor.stride() == like.stride():
        return tensor
    copy = torch.empty_like(tensor, memory_format=torch.contiguous_format) if like is None else torch.empty_like(like)
    copy = copy.to(tensor.dtype).copy_(tensor)
    if write_back is not None:
        write_back.append(lambda: tensor.copy_(copy))
    return copy


def dtype_index(param: Tensor, states: list[Tensor], label: str) -> int:
    """Return the kernels' index of a parameter's and its states' storage.

    Raises
    ------
    RuntimeError
        If there are no kernels for this pair.
    """
    name = DTYPE_NAMES[param.dtype]
    kinds = {DTYPE_NAMES.get(state.dtype, str(state.dtype)) for state in states} - {name}
    if kinds == {"float32"} and all(state.dtype == torch.float32 for state in states):
        name += "/float32"
    if (kinds and "/" not in name) or name not in _core.DTYPES:
        raise RuntimeError(
            f"{label}: expected states of dtype {DTYPE_NAMES[param.dtype]}"
            f"{' or float32' if param.dtype.itemsize == 2 else ''}, got {[state.dtype for state in states]}"
        )
    return _core.DTYPES[name]
