"""The step of some parameters: from their gradients and states in torch to one call of the kernels."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import chain
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from fastopt import _core
from fastopt.clipping import clip_coefficient
from fastopt.optimizer import StepInfo, clipping_at, cohorts_of
from fastopt.torch.clipping import thread_count
from fastopt.torch.work import (
    DTensor,
    any_overlap,
    brought,
    complaint,
    fitted_state,
    has_plain_view,
    local_part,
    plain,
    plain_gradient,
    plan_over,
    same_order,
    state_dtype,
    work_on,
    work_on_rows,
)

if TYPE_CHECKING:
    from fastopt.torch.optimizer import Optimizer

Group = dict[str, Any]
Cohort = tuple[int, int, bool]
"""Owner, steps taken so far, whether there is a gradient now: what parameters with the same scalars have in common."""

EXACT = 2**24
"""Where float32 stops counting."""

ROW_BY_ROW = frozenset({"sgd", "adagrad"})
"""The rules that leave an entry alone whose gradient is zero, if there is no weight decay."""

gradient_of = attrgetter("grad")


class Prepared(NamedTuple):
    """A plan with everything set but the scalars."""

    plan: _core.Plan
    rows: list[int]
    cohorts: list[Cohort]
    grads: list[Tensor]
    """What the plan reads, kept alive here."""
    in_place: bool
    """Whether those are the gradients themselves."""
    serial: bool
    """Whether parameters share memory, so that threads would get into each other's way."""
    write_back: list[Callable[[], object]]


class Stepper:
    """Some parameters of an optimizer, and what their step does not have to find out again each time.

    The truth is in the optimizer's `param_groups` and `state`. What is remembered of it is compared with it before each
    step, so that whatever a user, a hook or a wrapper replaces there is noticed.
    """

    def __init__(self, optimizer: Optimizer, parts: list[tuple[int, list[Tensor]]]) -> None:
        self.optimizer = optimizer
        self.method = optimizer.method
        self.numbers = [number for number, _ in parts]
        self.lengths = [len(params) for _, params in parts]
        self.params = [param for _, params in parts for param in params]
        self.owners = [owner for owner, (_, params) in enumerate(parts) for _ in params]
        self.everyone = list(range(len(self.params)))
        self.sharded = any(isinstance(param, DTensor) for param in self.params)
        double = torch.get_default_dtype() == torch.float64
        with torch.inference_mode(False):
            self.count_in(torch.zeros(len(self.params), dtype=torch.float64 if double else torch.float32))
        self.resident: Resident | None = None
        self.bound: list[int] = []
        self.made: list[tuple[int, str, Tensor]] = []
        self.seen: list[list[Any]] = [[] for _ in parts]
        self.values: list[Group] = [{} for _ in parts]
        self.rules: list[tuple[str, tuple[str, ...]]] = [("", ()) for _ in parts]

    def count_in(self, steps: Tensor) -> None:
        """Take the tensor of which every parameter's "step" is an entry: counting is one addition then."""
        self.steps = steps
        self.step_views = list(steps)
        self.step_numbers = steps.numpy()  # the same memory

    def is_current(self) -> bool:
        """Whether these are still all parameters of the optimizer."""
        groups = self.optimizer.param_groups
        if len(groups) == 1:
            return _core.same_objects(groups[0]["params"], self.params)
        return self.lengths == [len(group["params"]) for group in groups] and _core.same_objects(
            [param for group in groups for param in group["params"]], self.params
        )

    def step(self) -> StepInfo:
        """Step with the gradients that the parameters have now."""
        optimizer = self.optimizer
        values = self.options()
        clip_norm, clip_value = clipping_at(
            optimizer.step_count, optimizer.clip_norm, optimizer.clip_value, optimizer.nonfinite
        )
        lr = values[0]["lr"]
        # (First, because it fetches the parameters into the caches: their gradients are found faster then.)
        if self.resident is not None and not self.resident.holds(self):
            self.resident = None
        members, grads = self.everyone, list(map(gradient_of, self.params))
        if _core.count_none(grads):
            members = [member for member, grad in enumerate(grads) if grad is not None]
            grads = [grads[member] for member in members]
        if not grads:
            return StepInfo(lr, None, False, False)
        if float(getattr(optimizer, "found_inf", None) or 0.0):
            self.discard(grads)
            return StepInfo(lr, None, False, True)
        unscale = 1.0 / float(getattr(optimizer, "grad_scale", None) or 1.0)

        prepared = self.prepare(members, grads)
        # (A gradient that two parameters share must not be zeroed before both have used it.)
        zero = optimizer.zero_grad_in_step and prepared.in_place and prepared.plan.reads_apart()
        scalars = [
            self.method.all_scalars(values[owner], steps + 1, clip_value) for owner, steps, _ in prepared.cohorts
        ]
        norm, coefficient, skipped = self.run(prepared, grads, scalars, unscale, clip_norm, zero)
        if skipped:
            self.undo()
            if optimizer.nonfinite == "raise":
                raise FloatingPointError(f"not finite: {self.nonfinite(members, grads)}")
            self.discard(grads)
        else:
            self.conclude(prepared, members, grads, zero)
        known = clip_norm is not None or optimizer.nonfinite != "propagate"
        return StepInfo(lr, norm if known else None, coefficient != 1.0, skipped)

    def run(
        self,
        prepared: Prepared,
        grads: list[Tensor],
        scalars: list[dict[str, float]],
        unscale: float,
        clip_norm: float | None,
        zero: bool,
    ) -> tuple[float, float, bool]:
        """Call the kernels; return the norm before clipping, the clip coefficient and whether the step was skipped."""
        watch, clip = self.optimizer.nonfinite != "propagate", clip_norm is not None
        threads = 1 if prepared.serial else thread_count()
        if not (self.sharded and (watch or clip)):
            limit = math.inf if clip_norm is None else clip_norm
            return prepared.plan.step(prepared.rows, scalars, unscale, limit, clip, watch, zero, threads)
        norm = unscale * norm_of_shards(grads)
        if watch and not math.isfinite(norm):
            return norm, 1.0, True
        coefficient = 1.0 if clip_norm is None else clip_coefficient(norm, clip_norm)
        prepared.plan.step(prepared.rows, scalars, unscale * coefficient, math.inf, False, False, zero, threads)
        return norm, coefficient, False

    def options(self) -> list[Group]:
        """Return every group's options as numbers, checked."""
        for position, number in enumerate(self.numbers):
            group = self.optimizer.param_groups[number]
            given = list(group.values())
            if not _core.same_objects(given, self.seen[position]):
                self.values[position] = self.optimizer._checked_options(group)
                self.rules[position] = self.method.rule(group)
                # What can change without being replaced is looked at each time.
                self.seen[position] = [] if self.optimizer._is_moving(group) else given
        return self.values

    # ---- what the kernels work on ----

    def prepare_ahead(self) -> None:
        """Make the states and the plan before there are gradients, so that the first step allocates nothing to keep."""
        self.options()
        self.bind(self.everyone)

    def prepare(self, members: list[int], grads: list[Tensor]) -> Prepared:
        """Return the plan of this step: the resident one, if it still holds, pointed at the gradients."""
        try:
            if self.resident is None or not self.resident.covers(members):
                self.bind(members)
            if self.resident is not None and self.resident.fits(members, grads):
                return self.resident.prepared(grads, in_place=True)
            return self.prepare_copies(members, grads)
        except Exception:
            self.undo()
            raise

    @torch.no_grad()
    def prepare_copies(self, members: list[int], grads: list[Tensor]) -> Prepared:
        """Return the plan of a step for which something has to be viewed otherwise, or copied."""
        grads = list(map(self.admitted, members, grads))
        params = [self.params[member] for member in members]
        if self.resident is not None and not any(grad.is_sparse for grad in grads):
            plains = map(plain_gradient, grads, params)
            copies = list(map(brought, plains, self.resident.like))
            addresses = [0 if copy is None else copy.data_ptr() for copy in self.resident.for_everyone(copies)]
            self.resident.plan.set_gradient_addresses(addresses)
            return self.resident.prepared(copies, in_place=False)
        works = [
            (work_on_rows if grad.is_sparse else work_on)(param, grad, self.states_of(member))
            for member, param, grad in zip(members, params, grads, strict=True)
        ]
        owners = [self.owners[member] for member in members]
        plan = plan_over(
            [work.param for work in works], [work.states for work in works], [self.rules[owner][0] for owner in owners]
        )
        copies = [work.grad for work in works]
        plan.set_gradient_addresses(list(map(Tensor.data_ptr, copies)))
        rows, cohorts = cohorts_of(
            [(owner, steps, True) for owner, steps in zip(owners, self.counts(members), strict=True)]
        )
        write_back = [write for work in works for write in work.write_back]
        return Prepared(plan, rows, cohorts, copies, False, any_overlap([work.param for work in works]), write_back)

    def admitted(self, member: int, grad: Tensor) -> Tensor:
        """Return a gradient, checked; a sparse one made dense unless the entries it has are all that a step changes."""
        param, owner = self.params[member], self.owners[member]
        if grad.shape != param.shape:
            self.refuse(f"has shape {tuple(grad.shape)}, expected {tuple(param.shape)}", member, "gradient of ")
        if not (grad.is_sparse and self.optimizer.takes_sparse):
            self.refuse(complaint(grad), member, "gradient of ")
            return grad
        rule, _ = self.rules[owner]
        if rule in ROW_BY_ROW and self.values[owner]["weight_decay"] == 0:
            return grad
        if rule == "adagrad":
            raise RuntimeError("weight_decay option is not compatible with sparse gradients")
        return grad.to_dense()

    @torch.inference_mode(False)
    @torch.no_grad()
    def bind(self, members: list[int]) -> None:
        """Make the states that are missing, and a plan to keep if all memory can be used as it is."""
        self.undo()
        self.resident = None
        for member in members:
            self.check(member)
        # Parameters that had a gradient before stay: which have one may change from step to step.
        bound = sorted({*members, *filter(self.may_stay, self.bound)})
        self.bound = bound
        self.adopt_counts(bound)
        states = list(map(self.states_of, bound))
        if all(
            has_plain_view(tensor) and same_order(local_part(tensor), local_part(self.params[member]))
            for member, several in zip(bound, states, strict=True)
            for tensor in (self.params[member], *several)
        ):
            self.resident = Resident(self, bound, states)
            self.resident.follow(members)

    def may_stay(self, member: int) -> bool:
        """Whether a parameter without a gradient can be in a plan: its states are there, not yet to be made."""
        param, (_, names) = self.params[member], self.rules[self.owners[member]]
        state = self.optimizer.state.get(param, {})
        return not complaint(param) and all(state.get(name) is not None for name in names)

    def check(self, member: int) -> None:
        """Raise `RuntimeError` if a parameter, or a state that it has, is none to step on."""
        param = self.params[member]
        self.refuse(complaint(param), member)
        if any(stride == 0 and size > 1 for stride, size in zip(param.stride(), param.shape, strict=True)):
            self.refuse("has elements that share memory, which no step can update; make it a clone()", member)
        _, names = self.rules[self.owners[member]]
        for name, state in self.optimizer.state.get(param, {}).items():
            if name in names and state is not None and state.shape != param.shape:
                self.refuse(f"has shape {tuple(state.shape)}, expected {tuple(param.shape)}", member, f"{name} of ")

    def refuse(self, why: str, member: int, whose: str = "") -> None:
        """Raise `RuntimeError` if there is a reason."""
        if why:
            raise RuntimeError(f"{whose}{self.optimizer._label(self.params[member])} {why}")

    # ---- states and counts ----

    def entries(self) -> list[Any]:
        """Return the parameters' entries in the optimizer's state."""
        state = self.optimizer.state
        # (To pass by all of them is ten times as fast as to look each up.)
        return list(state.values()) if len(self.params) > 1 else [state.get(self.params[0])]

    def states_of(self, member: int) -> list[Tensor]:
        """Return a parameter's states, made now if they are not there yet and fit for the kernels."""
        param, (_, names) = self.params[member], self.rules[self.owners[member]]
        if not names:
            return []
        state = self.optimizer.state[param]
        present = [state[name] for name in names if state.get(name) is not None]
        dtype = state_dtype(param, present, self.optimizer.state_dtype)
        # (As in torch, the value is the optimizer's, not the group's.)
        initial = self.method.initial_state(self.optimizer.defaults)
        for name in names:
            if state.get(name) is None:
                value = complex(initial, initial) if param.is_complex() else initial
                state[name] = torch.full_like(param.detach(), value, dtype=dtype)
                self.made.append((member, name, state[name]))
            else:
                state[name] = fitted_state(state[name], param, dtype)
        return [state[name] for name in names]

    def adopt_counts(self, members: list[int]) -> None:
        """Make the members' "step" entries of `steps`, with the values that they have."""
        if not self.method.counts_steps:
            return
        entries = [self.optimizer.state[self.params[member]] for member in members]
        taken = self.steps.tolist()
        for member, entry in zip(members, entries, strict=True):
            if entry.get("step") is not self.step_views[member]:
                taken[member] = float(entry.get("step", 0.0))
        if max(taken) >= EXACT:
            self.count_in(self.steps.double())
        self.steps.copy_(torch.tensor(taken, dtype=torch.float64))
        for member, entry in zip(members, entries, strict=True):
            if "step" not in entry:
                self.made.append((member, "step", self.step_views[member]))
            entry["step"] = self.step_views[member]

    def counts(self, members: list[int]) -> list[int]:
        """Return how many steps the members have taken; without "step" all that matters is whether it is the first."""
        if self.method.counts_steps:
            taken = self.steps.tolist()
            return [int(taken[member]) for member in members]
        fresh = {member for member, *_ in self.made}
        return [int(member not in fresh) for member in members]

    def undo(self) -> None:
        """Take back the states that were made for a step that was then skipped, unless they have been replaced."""
        for member, name, tensor in self.made:
            param, state = self.params[member], self.optimizer.state
            if state.get(param, {}).get(name) is tensor:
                del state[param][name]
                if not state[param]:
                    del state[param]
            self.resident = None
        self.made = []

    def conclude(self, prepared: Prepared, members: list[int], grads: list[Tensor], zeroed: bool) -> None:
        """Do what remains after the pass: copies back, version counters, step counts."""
        everyone = members is self.everyone
        increment_version(self.params if everyone else [self.params[member] for member in members])
        if prepared.write_back:
            with torch.no_grad():
                for write in prepared.write_back:
                    write()
        if zeroed:
            increment_version(grads)
        else:
            self.discard(grads)
        if self.method.counts_steps:
            _core.count_steps(self.step_numbers, members)
        self.made = []
        if self.resident is not None and prepared.plan is self.resident.plan:
            self.resident.advance()
        else:
            self.resident = None

    def discard(self, grads: list[Tensor]) -> None:
        """Zero the gradients, if that was asked for, where the pass has not done it."""
        if self.optimizer.zero_grad_in_step:
            with torch.no_grad():
                for grad in grads:
                    grad.zero_()

    def nonfinite(self, members: list[int], grads: list[Tensor]) -> str:
        """Return what to call the gradients that are not finite."""
        names = [
            f"gradient of {self.optimizer._label(self.params[member])}"
            for member, grad in zip(members, map(local_part, grads), strict=True)
            if not torch.isfinite(grad.coalesce().values() if grad.is_sparse else grad).all()
        ]
        return ", ".join(names) or "a gradient in another process"


class Resident:
    """A plan that stays from step to step, over parameters and states whose memory can be used as it is."""

    def __init__(self, stepper: Stepper, members: list[int], states: list[list[Tensor]]) -> None:
        params = [stepper.params[member] for member in members]
        owners = [stepper.owners[member] for member in members]
        self.members = members
        self.rules = list(stepper.rules)
        self.version = stepper.steps._version
        self.entries = stepper.entries()
        # Which entry of which dict has to stay the tensor that the plan points into.
        named = [
            (stepper.optimizer.state[param], name, tensor)
            for member, owner, param, several in zip(members, owners, params, states, strict=True)
            for name, tensor in chain(
                zip(stepper.rules[owner][1], several, strict=True),
                [("step", stepper.step_views[member])] if stepper.method.counts_steps else [],
            )
        ]
        self.named = [entry for entry, _, _ in named], [name for _, name, _ in named], [state for *_, state in named]
        self.tensors = [*params, *chain.from_iterable(states)]
        self.sharded = stepper.sharded
        local = self.locals()
        self.layouts = _core.Layouts(Tensor.__dlpack_c_exchange_api__, local[: len(params)], local[len(params) :])
        # These views keep the memory, so that nothing else can be at an address that has not changed.
        self.views = list(map(plain, params))
        self.state_views = [list(map(plain, several)) for several in states]
        self.plan = plan_over(self.views, self.state_views, [stepper.rules[owner][0] for owner in owners])
        self.serial = any_overlap(self.views)
        # Whether gradients have to be viewed otherwise, or may have lazy signs.
        self.choosy = self.sharded or any(param.is_complex() for param in params)
        counts = stepper.counts(members)
        self.left = EXACT - max(counts) if stepper.steps.dtype == torch.float32 else math.inf
        self.rows, self.cohorts = cohorts_of(
            [(owner, steps, True) for owner, steps in zip(owners, counts, strict=True)]
        )

    def follow(self, members: list[int]) -> None:
        """Expect gradients of these members, no others."""
        present = set(members)
        cohorts = [self.cohorts[row] for row in self.rows]
        self.rows, self.cohorts = cohorts_of(
            [(owner, steps, member in present) for member, (owner, steps, _) in zip(self.members, cohorts, strict=True)]
        )
        self.present = members
        self.positions = [position for position, member in enumerate(self.members) if member in present]
        self.like = [self.views[position] for position in self.positions]
        self.single = [position for position, view in enumerate(self.like) if view.numel() == 1]

    def covers(self, members: list[int]) -> bool:
        """Whether the plan has these members."""
        return members == self.present or set(self.members).issuperset(members)

    def holds(self, stepper: Stepper) -> bool:
        """Whether parameters, states and step counts are what they were."""
        return (
            stepper.rules == self.rules
            and stepper.steps._version == self.version
            and self.left > 0
            and _core.same_objects(stepper.entries(), self.entries)
            and _core.entries_are(*self.named)
            and self.layouts.are_unchanged(self.locals())
        )

    def locals(self) -> list[Tensor]:
        """Return the parameters and states, or this process's parts of them."""
        if not self.sharded:
            return self.tensors
        with torch.no_grad():  # else each look at a local part is recorded
            return list(map(local_part, self.tensors))

    def fits(self, members: list[int], grads: list[Tensor]) -> bool:
        """Whether the gradients can be read beside the parameters as they are; if so, the plan will read them."""
        if members != self.present:
            self.follow(members)
        return (
            not self.choosy
            # (A lazy sign comes with gaps between the elements, unless there is only one.)
            and not any(grads[position].is_neg() for position in self.single)
            and self.layouts.point(self.plan, self.for_everyone(grads))
        )

    def for_everyone(self, values: list[Any]) -> list[Any]:
        """Return the values that belong to the members expected, with None for the others in between."""
        if len(values) == len(self.members):
            return values
        given = dict(zip(self.positions, values, strict=True))
        return [given.get(position) for position in range(len(self.members))]

    def prepared(self, grads: list[Tensor], in_place: bool) -> Prepared:
        """Return the plan, pointed at these gradients."""
        return Prepared(self.plan, self.rows, self.cohorts, grads, in_place, self.serial, [])

    def advance(self) -> None:
        """Count a step of those that had a gradient."""
        self.cohorts = [(owner, steps + present, present) for owner, steps, present in self.cohorts]
        self.left -= 1


def norm_of_shards(grads: list[Tensor]) -> float:
    """Return the norm of all gradients of all processes that share them."""
    norm = torch.nn.utils.get_total_norm(grads)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
