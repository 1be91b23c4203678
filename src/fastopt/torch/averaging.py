"""Moving averages of tensors, in place, in one parallel pass."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from fastopt import _core
from fastopt.backends.torch import as_list, brought, complaint, has_plain_view, is_plain, place, plain, thread_count
from fastopt.hyperparameters import Bound
from fastopt.hyperparameters import plain as plain_number


def lerp_(targets: Tensor | Iterable[Tensor], sources: Tensor | Iterable[Tensor], weight: float) -> None:
    """Move the targets towards the sources, in one parallel pass: ``target += weight * (source - target)``.

    At a weight of 1 the target becomes the source exactly. So are made Polyak averages, the slow weights of a target
    network, exponential moving averages (the weight is 1 - decay): what `torch._foreach_lerp_` or a loop over
    ``target.lerp_(source, weight)`` does. Autograd does not record it.

    Parameters
    ----------
    targets, sources
        One tensor or several, as many of one as of the other, alike in shape, of any floating dtypes.
    weight
        Finite.

    Raises
    ------
    ValueError, TypeError
        If numbers or shapes differ, or the weight is not a finite number; nothing has been changed then.
    RuntimeError
        If a tensor is not supported (device, layout, dtype).
    """
    weight = float(plain_number(weight))
    Bound("weight").anywhere().check(weight)
    first, second = as_list(targets), as_list(sources)
    if len(first) != len(second):
        raise ValueError(f"sources: expected as many tensors as targets, {len(first)}, got {len(second)}")
    for number, (target, source) in enumerate(zip(first, second, strict=True)):
        if target.shape != source.shape:
            raise ValueError(
                f"sources[{number}]: expected the shape of its target, {tuple(target.shape)}, got {tuple(source.shape)}"
            )
        for name, tensor in (("targets", target), ("sources", source)):
            why = complaint(tensor)
            if why:
                raise RuntimeError(f"{name}[{number}] {why}")
    with torch.no_grad():
        pairs, kept, odd = [], [], []
        for target, source in zip(first, second, strict=True):
            if is_plain(target) and has_plain_view(source) and not source.is_complex():
                there = brought(plain(source), plain(target))
                pairs.append((place(plain(target)), place(there), target.numel()))
                kept.append(there)
            else:
                odd.append((target, source))
        plan = _core.Plan.of_pairs(pairs, kept)
        plan.lerp(weight, 1 if plan.params_overlap() else thread_count())
        increment_version(first)
        for target, source in odd:
            target.lerp_(source.to(target.dtype), weight)
