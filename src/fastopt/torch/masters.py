"""The step of what the host has of a device's parameters, piece by piece."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import torch
from torch import Tensor

from fastopt import _core, environment
from fastopt.backends.torch import Tensors, local_part, thread_count
from fastopt.backends.torch_compat import DTensor
from fastopt.clipping import clip_coefficient
from fastopt.engine import REMAINDER, Buffers, Group, Request
from fastopt.torch.clipping import gradient_plan
from fastopt.torch.hosted import Hosted, Piece
from fastopt.torch.link import share_of_processors
from fastopt.torch.optimizer import Optimizer


class Masters(Tensors):
    """The engine of some pieces at a time: what needs the gradients of all is known before.

    A piece that is not all of its parameter is bound to the plan anew: the addresses of all that it has are moved by as
    many elements as it begins after. The parameter's step is counted with its last piece; those before it count in a
    number that is dropped.
    """

    def __init__(self, face: Any, parts: list[tuple[Group, list[Any]]], master: str | None) -> None:
        self.master = master
        self.pieces: dict[Tensor, Piece] = {}
        """Of the parameters that are cut, those of this step."""
        self.piece: Piece | None = None
        """The one that is being bound."""
        self.aside: list[Any] = []
        super().__init__(face, parts)

    def measure(self, hosted: list[Hosted], unscale: float, like: Tensor) -> tuple[float | None, float, bool]:
        """Return what `run` does, before the step of what has gradients: the norm is that of all processes' parts."""
        clip_norm, nonfinite = self.whole["clip_norm"], self.whole["nonfinite"]
        if clip_norm is None and nonfinite == "propagate":
            return None, 1.0, False
        plan = gradient_plan([one.grad for one in hosted])
        norm = unscale * over_processes(plan.norm(self.threads()) if plan else 0.0, like)
        finite = math.isfinite(norm) or (plan is not None and math.isfinite(plan.max_abs(self.threads())))
        if nonfinite == "raise" and not finite:
            raise FloatingPointError(f"not finite: {self.nonfinite(self.by_slot(hosted))}")
        return norm, 1.0 if clip_norm is None else clip_coefficient(norm, clip_norm), nonfinite == "skip" and not finite

    def step_pieces(self, pieces: list[Piece], unscale: float) -> None:
        """Step with the gradients that are there."""
        self.pieces = {piece.hosted.master: piece for piece in pieces if not piece.is_whole}
        for piece in pieces:
            if piece.hosted.staged and piece.is_whole:
                piece.hosted.master.data = piece.param
        grads = self.by_slot([piece.hosted for piece in pieces])
        try:
            self.take(grads, self.options(), False, unscale, None, given=True)
        finally:
            self.pieces, self.piece = {}, None
            self.aside.clear()

    def by_slot(self, hosted: list[Hosted]) -> list[Any]:
        """Return the gradients, each in the place of its parameter."""
        grads: list[Any] = [None] * len(self.params)
        for one in hosted:
            grads[one.number] = one.grad
        return grads

    # ---- what can be done ----

    def options(self) -> Group:
        """Raise `ValueError` for what can be done in the parameters' step alone, where the parameters are."""
        whole = super().options()
        if whole["accumulate"] != 1:
            raise ValueError("accumulate: is not for Offload, which adds the gradients of backward passes by itself")
        if whole["zero_grad_in_step"]:
            raise ValueError("zero_grad_in_step: Offload keeps no gradient that could be zeroed")
        if whole["rounding"] != "nearest":
            raise ValueError(f"rounding: Offload has masters, expected 'nearest', got {whole['rounding']!r}")
        if whole["master"] != self.master:
            raise ValueError(f"master: Offload was made with {self.master!r}, got {whole['master']!r}")
        if self.master is not None and whole["ema"] is not None:
            raise ValueError(f"ema: is of whole parameters, of which the host has none with master={self.master!r}")
        return whole

    def goes_together(self) -> bool:
        """Whether a rule has sums over all parameters."""
        return any(_core.SCOPES.get(rule) == "plan" for rule, _ in self.rules)

    def can_cut(self, slot: int) -> bool:
        """Whether a part of a parameter has the same step alone.

        Not where a rule has sums over it, nor where a state is rounded at random by the number of its element.
        """
        _, names = self.rule_of(slot)
        return not (self.has_sums(slot) or any(self.storage(slot, name).endswith("_stochastic") for name in names))

    def has_sums(self, slot: int) -> bool:
        """Whether a parameter's step depends on sums over it or its rows."""
        rule, options = self.rule_of(slot)[0], self.values[self.owners[slot]]
        measures = rule in _core.SCOPES or rule in _core.SMALL or options.get("cautious")
        return bool(measures or self.method.row_numbers(rule, options))

    # ---- the engine, where it looks at a piece ----

    def bind(self, slot: int, grad: Any, zero: bool = False) -> Buffers:
        """Know which piece is meant."""
        self.piece = self.pieces.get(self.params[slot])
        return super().bind(slot, grad, zero)

    def buffers(self, slot: int, grad: Any, states: list[Any], zero: bool) -> Buffers:
        """Return where the piece is of everything."""
        if self.piece is None:
            return super().buffers(slot, grad, states, zero)
        return self.placed(self.piece.param, self.piece.of(grad), [self.piece.of(state) for state in states], False, [])

    def address(self, array: Any) -> int:
        """Return where the scales of the piece's state begin."""
        return super().address(array[self.piece.start // _core.GROUP :] if self.piece else array)

    def param_place(self, slot: int, place: tuple[int, int], entry: dict[str, Any]) -> tuple[int, ...]:
        """Return where the piece is, and what is left of it; a master in float32 leaves its entry as it is."""
        if self.master is None:
            return place
        found = super().param_place(slot, place, entry)
        if len(found) == 2 or self.piece is None:
            return found
        return *found[:2], found[2] + self.piece.start * entry[REMAINDER].element_size()

    def count_place(self, slot: int, entry: dict[str, Any], fresh: bool) -> tuple[int, bool]:
        """Return where steps are counted."""
        return self.number_of_piece(super().count_place(slot, entry, fresh))

    def number_place(self, slot: int, entry: dict[str, Any], name: str) -> tuple[int, bool]:
        """Return where a number is."""
        return self.number_of_piece(super().number_place(slot, entry, name))

    def number_of_piece(self, place: tuple[int, bool]) -> tuple[int, bool]:
        """Return a place of the same number; the step of the last piece alone changes the number itself."""
        if self.piece is None or self.piece.is_last:
            return place
        kind = ctypes.c_float if place[1] else ctypes.c_double
        self.aside.append(kind(kind.from_address(place[0]).value))
        return ctypes.addressof(self.aside[-1]), place[1]

    def run(self, grads: list[Any], request: Request) -> tuple[float, float, bool]:
        """Step without a norm."""
        return super().run(grads, request._replace(clip_norm=math.inf, want_norm=False, nonfinite="propagate"))

    def threads(self) -> int:
        """Return as many as for any step; where several processes share the machine, at least this one's share."""
        return environment.chosen_threads() or -max(-thread_count(), share_of_processors())


def check_method(optimizer: type[Optimizer]) -> None:
    """Raise `ValueError` if parameters cannot be stepped in parts."""
    method = optimizer.method
    unfit = {
        "keeps numbers of all parameters, which are stepped in parts here": method.advances,
        "needs products of whole matrices, and parameters are stepped in parts here": method.between,
        "is for sparse gradients, and gradients are dense here": method.refusal_of_dense,
    }
    for why, holds in unfit.items():
        if holds:
            raise ValueError(f"optimizer: {optimizer.__name__} {why}")


def over_processes(norm: float, param: Tensor) -> float:
    """Return the norm of the gradients of all processes that have parts of the parameters, which are all like this."""
    if not isinstance(param, DTensor):
        return norm
    square = torch.tensor(norm * norm, dtype=torch.float64, device=local_part(param).device)
    for dim, kind in enumerate(param.placements):
        if kind.is_shard():
            torch.distributed.all_reduce(square, group=param.device_mesh.get_group(dim))
    return math.sqrt(float(square))
