"""torch's tensors, for the engine.

Most tensors are plain memory, parameter, gradient and states in one order: those the kernels use where they are, step
after step. Others have a view that is (complex numbers as pairs, the local part of a sharded tensor). For the rest
(gaps, lazy signs) there are copies, written back after the step. What is odd about a tensor costs
nothing to the others.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from fastopt import _core, _dlpack, environment
from fastopt.backends.torch_compat import DTensor, exchange
from fastopt.clipping import clip_coefficient
from fastopt.engine import MASTER, REMAINDER, WHOLE_GROUPS, Buffers, Engine, Group, Request, RowPlaces, scales_of
from fastopt.products import Call, Calls

DTYPE_NAMES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}

CODES = {"signed8": torch.int8, "root8": torch.uint8}
"""Storage in 8 bits -> dtype of its codes."""

REMAINDERS = {"split": torch.int16, "split8": torch.int8}
"""Storage of a bfloat16 parameter in two pieces -> dtype of the one that is not the parameter."""

MASTERED = {
    None: (),
    "split": (torch.bfloat16,),
    "split8": (torch.bfloat16,),
    "float32": (torch.bfloat16, torch.float16),
}
"""Option `master` -> dtypes of the parameters that it is for."""

PIECES = {dtype: storage for storage, dtype in REMAINDERS.items()}

STORAGE_NAMES = {**DTYPE_NAMES, **{dtype: name for name, dtype in CODES.items()}}

DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}
COMPLEX = {name: dtype.to_complex() for name, dtype in DTYPES.items() if name != "bfloat16"}

EXACT = 2**24
"""Where float32 stops counting."""

_core.find_openmp()  # torch has come: its threads are the ones to share now


class CallsOfTorch(Calls):
    """torch's."""

    @staticmethod
    def empty(shape: tuple[int, ...], dtype: str) -> Any:
        """Return a new tensor."""
        with outside_inference():
            return torch.zeros(shape, dtype=DTYPES[dtype], device="cpu")

    @staticmethod
    def address(array: Any) -> int:
        """Return where it lies."""
        return int(array.data_ptr())

    @staticmethod
    def call(name: str, *arguments: Any, out: Any) -> Call:
        """Return the call of a function of torch's."""
        return partial(getattr(torch, name), out=out), *arguments

    @staticmethod
    def total(array: Any, axis: int, out: Any) -> Call:
        """Return the call that sums along an axis."""
        return partial(torch.sum, out=out), array, axis

    @staticmethod
    def polynomial(gram: Any, a: float, b: float, c: float, out: Any) -> list[Call]:
        """Return calls for ``out = a*I + b*gram + c*gram@gram``."""
        return [
            (partial(torch.baddbmm, beta=b, alpha=c, out=out), gram, gram, gram),
            (out.diagonal(dim1=1, dim2=2).add_, a),
        ]


class Tensors(Engine):
    """The step of parameters that are tensors. `look` finds the gradients by itself."""

    watch: _dlpack.Watch
    calls_of_framework = CallsOfTorch
    strict = False  # as in torch

    def __init__(self, face: Any, parts: list[tuple[Group, list[Any]]]) -> None:
        super().__init__(face, parts)
        may_be_sparse = "lazy" in self.method.options
        self.watch = _dlpack.Watch(exchange(), self.plan, self.params, may_be_sparse)
        self.sharded = any(isinstance(param, DTensor) for param in self.params)
        first = {id(param): slot for slot, param in reversed([*enumerate(self.params)])}
        self.repeated = [slot for slot, param in enumerate(self.params) if first[id(param)] != slot]
        """Parameters that stand in their group twice: torch warns of them, and steps them twice."""
        self.serial = False
        self.left = math.inf
        """How many steps the counts in float32 have place for."""
        # Every parameter's "step" is an entry of one tensor, unless it is the user's own.
        double = torch.get_default_dtype() == torch.float64
        with outside_inference():
            dtype = torch.float64 if double else torch.float32
            self.steps = torch.zeros(len(self.params), dtype=dtype, device="cpu")
            self.step_views = list(self.steps)
        self.versions: dict[int, int] = {}
        """Of each parameter that is a copy of a master, its version when it was one."""
        self.updates = np.ones(len(self.params))  # how often states were updated; all that matters is whether ever

    # ---- what has changed ----

    def take_options(self, owner: int, group: Group, given: list[Any]) -> None:
        """Look at a group's options."""
        self.face._refuse(group)
        super().take_options(owner, group, given)

    def is_current(self, groups: list[Group]) -> bool:
        """Whether these are still the groups and parameters."""
        return _core.same_objects(groups, self.groups) and _core.members_are(groups, self.params, self.owners)

    def gradients(self, grads: list[Any]) -> list[Any]:
        """Return the parameters' gradients."""
        return [param.grad for param in self.params]

    def zeroing(self, grads: list[Any]) -> list[Call]:
        """Return the calls that zero gradients."""
        return [(grad.detach().zero_,) for grad in grads if grad is not None]

    def look(self, grads: list[Any], zero: bool, given: bool) -> list[int]:
        """Put the gradients into the list, and point the plan at those that lie beside their parameters."""
        self.left -= 1
        if self.left <= 0:
            for slot in range(len(self.params)):
                self.watch.release(slot)
            self.left = math.inf
        for slot in self.repeated:
            self.check_repeated(slot)
        new = self.watch.look(grads, self.face.state, given)
        for slot, version in self.versions.items():
            if slot not in new and version != self.params[slot]._version:
                self.take_over(slot)
        if self.method.refusal_of_dense and any(grad is not None and not grad.is_sparse for grad in grads):
            raise RuntimeError(self.method.refusal_of_dense)
        return new

    def label(self, slot: int) -> str:
        """Return a parameter's name, if it has one, or its place in the groups."""
        return str(self.face._label(self.params[slot]))

    def refuse(self, slot: int, why: str, whose: str = "") -> NoReturn:
        """Raise `RuntimeError`."""
        raise RuntimeError(f"{whose}{self.label(slot)} {why}")

    def check(self, slot: int) -> None:
        """Raise `RuntimeError` if a parameter is none to step on."""
        param = self.params[slot]
        why = complaint(param)
        if why:
            self.refuse(slot, why)
        if any(stride == 0 and size > 1 for stride, size in zip(param.stride(), param.shape, strict=True)):
            self.refuse(slot, "has elements that share memory, which no step can update; make it a clone()")
        owner = self.owners[slot]
        rule, names = self.rule_of(slot)
        if rule in _core.HANDED_OVER and param.is_complex():
            self.refuse(slot, "is complex, which Muon does not support")
        if (rule in _core.SCOPES or self.values[owner].get("cautious")) and is_sharded(param):
            what = f"but what {self.method.__name__} does depends on sums over whole tensors"
            self.refuse(slot, f"is sharded among processes, {what}; use an optimizer that knows elements alone")
        if rule in _core.SMALL and (param.is_complex() or isinstance(param, DTensor)):
            kind = "complex" if param.is_complex() else "DTensor"
            name = self.method.__name__
            self.refuse(slot, f"is {kind}, and {name} does not support {kind} parameters with states of rows")
        for name, state in self.face.state.get(param, {}).items():
            if name not in names or state is None:
                continue
            if not isinstance(state, Tensor):
                self.refuse(slot, f"is of type {type(state).__name__}, expected a tensor", f"{name} of ")
            shape = self.method.state_shape(name, param.shape)
            if state.shape != shape:
                self.refuse(slot, f"has shape {tuple(state.shape)}, expected {tuple(shape)}", f"{name} of ")
            scales = self.face.state[param].get(scales_of(name))
            if scales is None and state.dtype in CODES.values():
                self.refuse(slot, f"is of dtype {state.dtype} and has no scales beside it", f"{name} of ")
            if scales is not None and not (fit_scales(scales, state.numel()) and state.dtype in CODES.values()):
                what = f"are {tuple(scales.shape)} of dtype {scales.dtype} beside {state.dtype}"
                expected = f"{groups_of(state.numel())} in float32 beside int8 or uint8"
                self.refuse(slot, f"{what}, expected {expected}", f"the scales of {name} of ")

    def check_repeated(self, slot: int) -> None:
        """Raise `RuntimeError` unless a step can take the two steps of a parameter one after the other, as torch's."""
        measures = self.rule_of(slot)[0] in _core.SCOPES or self.values[self.owners[slot]].get("cautious")
        if self.whole["accumulate"] == 1 and not measures:
            return
        what = f"{self.method.__name__} measures all before it steps any" if measures else "accumulate adds to one mean"
        self.refuse(slot, f"is in its group twice, which fastopt cannot step as torch does: {what}")

    # ---- states and counts ----

    def entry(self, slot: int) -> dict[str, Any]:
        """Return the optimizer's entry for a parameter, made now if need be."""
        entry: dict[str, Any] = self.face.state[self.params[slot]]
        return entry

    def found(self, slot: int, name: str) -> Any:
        """Return what is kept for a parameter under a name, or None."""
        return self.face.state.get(self.params[slot], {}).get(name)

    def forget(self, slot: int, name: str, made: Any) -> None:
        """Take back an entry that was made for a step that was not taken, and the dict if nothing else is in it."""
        super().forget(slot, name, made)
        if not self.face.state[self.params[slot]]:
            del self.face.state[self.params[slot]]

    def start_options(self, slot: int) -> Any:
        """Return the options that say what states start as: the optimizer's, as in torch."""
        return self.face.defaults

    def dtype_name(self, slot: int) -> str:
        """Return the name of a parameter's dtype, or that of its real and imaginary parts."""
        return DTYPE_NAMES[real_dtype(self.params[slot])]

    def storage(self, slot: int, name: str) -> str:
        """Return how a state is to be stored: also without `state_dtype`, in float32 if states have that precision."""
        storage = super().storage(slot, name)
        param = self.params[slot]
        if storage in CODES and (param.is_complex() or isinstance(param, DTensor)):
            return "float32"
        if storage == "float32" or self.whole["state_dtype"] is not None or param.dtype.itemsize > 2:
            return storage
        _, names = self.rule_of(slot)
        made = {made for of, made, _ in self.made if of == slot}
        entry = self.face.state.get(param, {})
        present = [entry[name] for name in names if entry.get(name) is not None and name not in made]
        return storage if all(state.dtype == param.dtype for state in present) else "float32"

    def goes_by_rows(self, slot: int, grad: Tensor | None = None) -> bool:
        """Whether a parameter is stepped row after row, however it lies in memory."""
        return self.rule_of(slot)[0] in _core.SMALL or self.catches_up(slot, grad)

    def laid_out(self, slot: int, dtype: torch.dtype, device: str = "cpu") -> Tensor:
        """Return a tensor without gaps in the order in which a parameter is stepped."""
        param = self.params[slot].detach()
        if is_dense(param) and not self.goes_by_rows(slot):
            return torch.empty_like(param, dtype=dtype, device=device)
        return torch.empty(param.shape, dtype=dtype, device=device)

    def start_state(self, slot: int, name: str, storage: str, value: float | None) -> dict[str, Any]:
        """Return tensors in the parameter's memory order."""
        param = self.params[slot].detach()
        if storage in CODES:
            with outside_inference(), torch.no_grad():
                if value == 0:
                    groups = torch.zeros(groups_of(param.numel()), dtype=torch.float32, device="cpu")
                    return {name: self.laid_out(slot, CODES[storage]).zero_(), scales_of(name): groups}
                whole = self.laid_out(slot, torch.float32)
                return encoded(name, whole.copy_(param) if value is None else whole.fill_(value), storage)
        dtype = dtype_of(storage, param)
        shape = self.method.state_shape(name, param.shape)
        with outside_inference(), torch.no_grad():
            if shape != param.shape and value is not None:
                return {name: torch.full(shape, value, dtype=dtype, device="cpu")}
            if value is None:
                return {name: torch.empty_like(param, dtype=dtype).copy_(param)}
            start = complex(value, value) if param.is_complex() else value
            return {name: torch.full_like(param, start, dtype=dtype)}

    def fit_state(self, slot: int, name: str, storage: str, entry: dict[str, Any]) -> dict[str, Any]:
        """Return the state in the dtype that is wanted, and in the parameter's order where that has no gaps."""
        param, state, scales = self.params[slot], entry[name], entry.get(scales_of(name))
        with outside_inference(), torch.no_grad():
            if scales is not None:
                like = self.laid_out(slot, state.dtype, "meta")
                if state.dtype == CODES.get(storage) and same_order(state, like):
                    return {name: state, scales_of(name): scales}
                state = decoded(state, scales)
            if storage in CODES:
                return encoded(name, self.laid_out(slot, torch.float32).copy_(state), storage)
            dtype = dtype_of(storage, param)
            if state.layout != torch.strided:  # momentum of sparse gradients, in torch
                state = state.to_dense()
            if state.shape != param.shape:
                return {name: state if state.dtype == dtype and state.is_contiguous() else state.to(dtype).contiguous()}
            here, there = local_part(state), local_part(param)
            if state.dtype == dtype and (same_order(here, there) or not is_dense(there)):
                return {name: state}
            return {name: torch.empty_like(param, dtype=dtype).copy_(state)}

    def address(self, array: Any) -> int:
        """Return the address of a tensor."""
        return int(array.data_ptr())

    def has_master(self, slot: int) -> bool:
        """Whether a parameter has something beside it that makes a float32 of it."""
        return self.params[slot].dtype in MASTERED[self.whole["master"]]

    def has_entry(self, slot: int, has_states: bool) -> bool:
        """Whether something is kept for a parameter."""
        return super().has_entry(slot, has_states) or self.has_master(slot)

    def param_place(self, slot: int, place: tuple[int, int], entry: dict[str, Any]) -> tuple[int, ...]:
        """Return where a parameter is: it may be in two pieces, the copy of a master, or rounded at random."""
        param, master, stochastic = self.params[slot], self.whole["master"], self.whole["rounding"] == "stochastic"
        if stochastic and master is not None:
            raise ValueError(f"rounding: 'stochastic' is for parameters without a master, got master={master!r} too")
        self.versions.pop(slot, None)
        if not self.has_master(slot):
            for name in (REMAINDER, MASTER):
                entry.pop(name, None)
            if stochastic and param.dtype == torch.bfloat16:
                return place[0], _core.STORAGES["bfloat16_stochastic"]
            return place
        if isinstance(param, DTensor):
            self.refuse(slot, f"is sharded, for which there is no master={master!r}")
        matrix = self.matrix(slot)
        size = math.prod(matrix) if matrix and master != "float32" else 0
        if size % _core.GROUP and size != max(param.numel(), 1):
            self.refuse(slot, f"has matrices of {size} elements, expected a multiple of 32 (master={master!r})")
        for name, dtypes in ((REMAINDER, PIECES.keys()), (MASTER, {torch.float32})):
            kept = entry.get(name)
            if kept is not None and (kept.shape != param.shape or kept.dtype not in dtypes):
                self.refuse(slot, f"is of dtype {kept.dtype} and shape {tuple(kept.shape)}", f"{name} of ")
        with outside_inference(), torch.no_grad():
            return (self.master_place if master == "float32" else self.split_place)(slot, place, entry)

    def split_place(self, slot: int, whole: tuple[int, int], entry: dict[str, Any]) -> tuple[int, ...]:
        """Return where a parameter and its remainder are, which is made of the master if there was one."""
        storage, rest = self.whole["master"], entry.get(REMAINDER)
        like = self.laid_out(slot, REMAINDERS[storage])
        place = whole[0], _core.STORAGES[storage], like.data_ptr()
        if rest is None and entry.get(MASTER) is None:
            self.enter(slot, entry, {REMAINDER: like.zero_()})
        elif rest is None:
            master = self.laid_out(slot, torch.float32).copy_(entry.pop(MASTER))
            _core.convert(place, (master.data_ptr(), _core.STORAGES["float32"]), master.numel())
            entry[REMAINDER] = like
        elif rest.dtype != like.dtype or not same_order(rest, like):
            factor = rest.element_size() - like.element_size()  # 16 bits from 8, or 8 from 16
            wide = rest.to(torch.int32) * 256 if factor < 0 else (rest.to(torch.int32) >> 8 if factor else rest)
            entry[REMAINDER] = like.copy_(wide)
        return *place[:2], entry[REMAINDER].data_ptr()

    def master_place(self, slot: int, whole: tuple[int, int], entry: dict[str, Any]) -> tuple[int, ...]:
        """Return where the master of a parameter is, which is made of both pieces if it was in two."""
        param, master, rest = self.params[slot].detach(), entry.get(MASTER), entry.pop(REMAINDER, None)
        like = self.laid_out(slot, torch.float32)
        place = like.data_ptr(), _core.STORAGES["float32"]
        if rest is not None:
            rest = self.laid_out(slot, rest.dtype).copy_(rest)
            _core.convert(place, (whole[0], _core.STORAGES[PIECES[rest.dtype]], rest.data_ptr()), like.numel())
            entry[MASTER] = like
        elif master is None:
            self.enter(slot, entry, {MASTER: like.copy_(param)})
        elif not same_order(master, like):
            entry[MASTER] = like.copy_(master)
        self.take_over(slot)
        return entry[MASTER].data_ptr(), place[1]

    def take_over(self, slot: int) -> None:
        """Give a master the values that somebody else has written into its parameter."""
        param, master = self.params[slot].detach(), self.entry(slot)[MASTER]
        with outside_inference(), torch.no_grad():
            torch.where(master.to(param.dtype) == param, master, param.float(), out=master)
        self.versions[slot] = param._version

    def count_place(self, slot: int, entry: dict[str, Any], fresh: bool) -> tuple[int, bool]:
        """Return the address of the entry "step"; without one all that matters is whether it is the first."""
        if not self.method.counts_steps:
            if fresh:
                self.updates[slot] = 0
            return self.updates.ctypes.data + slot * self.updates.itemsize, False
        step: Any = entry.get("step")
        if not counts(step):
            value = 0.0 if step is None else float(step)
            with outside_inference(), torch.no_grad():
                made = self.step_views[slot] if value < EXACT else torch.zeros((), dtype=torch.float64, device="cpu")
                made.fill_(value)
            entry["step"] = made
            if step is None:
                self.made.append((slot, "step", made))
            step = made
        single = step.dtype == torch.float32
        if single:
            self.left = min(self.left, EXACT - float(step))
        return step.data_ptr(), single

    def start_number(self, slot: int, value: float) -> Any:
        """Return a tensor of one float, in the precision that torch has for such."""
        with outside_inference():
            double = torch.get_default_dtype() == torch.float64
            return torch.tensor(value, dtype=torch.float64 if double else torch.float32, device="cpu")

    def number_place(self, slot: int, entry: dict[str, Any], name: str) -> tuple[int, bool]:
        """Return the address of a tensor of one float, made of what is there if need be."""
        if not counts(entry[name], exact=False):
            entry[name] = self.start_number(slot, float(entry[name]))
        return entry[name].data_ptr(), entry[name].dtype == torch.float32

    def start_decay(self, slot: int, value: Any) -> Any:
        """Return a tensor of one number a row, or of one."""
        with outside_inference():
            if value is None:
                return torch.zeros((), dtype=torch.float64, device="cpu")
            return torch.full(self.params[slot].shape[:1], float(value), dtype=torch.float64, device="cpu")

    def decay_place(self, slot: int, name: str, numbers: Any) -> int:
        """Return the address of a tensor of one number a row."""
        shape = self.params[slot].shape[:1]
        if not (isinstance(numbers, Tensor) and numbers.dtype == torch.float64 and numbers.is_contiguous()):
            self.refuse(slot, "is no contiguous tensor of float64", f"{name} of ")
        if numbers.shape != shape:
            self.refuse(slot, f"has shape {tuple(numbers.shape)}, expected {tuple(shape)}", f"{name} of ")
        return numbers.data_ptr()

    # ---- buffers ----

    def buffers(self, slot: int, grad: Any, states: list[Any], zero: bool) -> Buffers:
        """Return where everything lies, or copies of what is not plain."""
        param = self.params[slot]
        if grad is not None:
            grad = self.admitted(slot, grad)
        if grad is not None and grad.is_sparse:
            return self.buffers_of_rows(slot, grad, states)
        write_back: list[Call] = []
        p = ordered(param, in_rows(param) if self.goes_by_rows(slot, grad) else None, write_back)
        several = self.states_beside(slot, p, states, write_back)
        g = None if grad is None else brought(plain_gradient(grad, param), p)
        ordinary = not (isinstance(param, DTensor) or param.is_complex())
        return self.placed(p, g, several, ordinary and not write_back, write_back)

    def states_beside(self, slot: int, p: Tensor, states: list[Tensor], write_back: list[Call]) -> list[Tensor]:
        """Return states in the memory order of a parameter; small ones are as they are."""
        small = _core.SMALL.get(self.rule_of(slot)[0], ())
        return [
            state if k < len(small) and small[k] else ordered(state, p, write_back) for k, state in enumerate(states)
        ]

    def admitted(self, slot: int, grad: Tensor) -> Tensor:
        """Return a gradient, checked; a sparse one made dense unless the rows it has are all that a step changes."""
        param = self.params[slot]
        if grad.shape != param.shape:
            self.refuse(slot, f"has shape {tuple(grad.shape)}, expected {tuple(param.shape)}", "gradient of ")
        options = self.values[self.owners[slot]]
        what = self.method.sparse(options) if grad.is_sparse else ""
        if what in ("", "refuse"):
            why = complaint(grad)
            if why:
                also = ", or step only its rows (lazy=True)" if what and "lazy" in options else ""
                self.refuse(slot, why + also, "gradient of ")
            return grad
        by_rows = self.method.catches_up(options) or self.rule_of(slot)[0] in _core.SMALL
        if by_rows and grad.sparse_dim() > 1:
            why = "lazy=True" if self.method.catches_up(options) else "rowwise=True"
            self.refuse(slot, f"has {grad.sparse_dim()} sparse dimensions, expected 1 ({why})", "gradient of ")
        averaged = self.whole["ema"] is not None and not options["lazy"]  # (all rows' averages move)
        rows = what == "rows" and not averaged and grad.sparse_dim() and param.numel()
        width = math.prod(param.shape[grad.sparse_dim() :])
        if rows and not self.rows_are_whole(width, param.is_contiguous() or self.goes_by_rows(slot)):
            if options["lazy"]:
                self.refuse(slot, f"has rows of {width} elements, {WHOLE_GROUPS}", "gradient of ")
            rows = False
        return grad if rows else grad.to_dense()

    def bind(self, slot: int, grad: Any, zero: bool = False) -> Buffers:
        """As ever; but of a table of which the plan knows all but the rows of this gradient, only those are found."""
        param = self.params[slot]
        if grad is None or not (grad.is_sparse and self.watch.holds(slot) and param.is_contiguous()):
            return super().bind(slot, grad, zero)
        admitted = self.admitted(slot, grad)
        if not admitted.is_sparse or self.method.catches_up(self.values[self.owners[slot]]):
            return super().bind(slot, grad, zero)
        rows, kept = self.row_places(admitted, param)
        self.set_rows(slot, rows)
        return Buffers(0, (0, 0), rows, [], kept, True)

    def row_places(self, grad: Tensor, param: Tensor) -> tuple[RowPlaces, tuple[Tensor, Tensor]]:
        """Return where the rows of a gradient and their values are, and what keeps them there."""
        dims, grad = grad.sparse_dim(), grad.detach()
        indices = grad._indices()
        numbers = indices[0]
        for dim in range(1, dims):
            numbers = numbers * grad.shape[dim] + indices[dim]
        values = plain_gradient(grad._values(), param).contiguous()
        if (values.dtype == torch.float64) != (param.dtype == torch.float64):
            values = values.to(param.dtype)
        numbers = numbers.contiguous()
        width = math.prod(param.shape[dims:])
        rows = RowPlaces((numbers.data_ptr(), True, len(numbers)), place(values), width, thread_count())
        return rows, (numbers, values)

    def buffers_of_rows(self, slot: int, grad: Tensor, states: list[Tensor]) -> Buffers:
        """Return where everything lies for a gradient of some rows; only a table with gaps is copied."""
        param = self.params[slot]
        write_back: list[Call] = []
        p = ordered(param, in_rows(param), write_back)
        several = self.states_beside(slot, p, states, write_back)
        rows, found = self.row_places(grad, p)
        stay = not (write_back or param.is_complex())
        kept = (p, *found, several, write_back)
        return Buffers(p.numel(), place(p), rows, list(map(place, several)), kept, stay, write_back)

    def placed(
        self, param: Tensor, grad: Tensor | None, states: list[Tensor], stay: bool, write_back: list[Call]
    ) -> Buffers:
        """Return the addresses of plain tensors."""
        places = [place(tensor) for tensor in (param, *states)]
        grad_place = None if grad is None else place(grad)
        kept = (param, grad, states, write_back)
        return Buffers(param.numel(), places[0], grad_place, places[1:], kept, stay, write_back)

    def calls(self, grads: list[Any], bound: dict[int, Buffers], zero: bool) -> tuple[bool, list[Any], list[Any]]:
        """Return the copies back and the version counters, and what zeroes gradients that the pass does not."""
        increment = torch._C._increment_version
        stepped = self.params
        if self.watch.missing:
            stepped = [param for param, grad in zip(self.params, grads, strict=True) if grad is not None]
        after = [call for buffers in bound.values() for call in buffers.write_back]
        after.append((increment, stepped))
        if not zero:
            return False, after, []
        # (A gradient that two parameters share must not be zeroed before both have used it.)
        apart = self.plan.gradients_are_apart()
        directly = [grad for slot, grad in enumerate(grads) if grad is not None and apart and slot not in bound]
        others = [grad for slot, grad in enumerate(grads) if grad is not None and not (apart and slot not in bound)]
        return apart, after, [(increment, directly), *((grad.zero_,) for grad in others)]

    def run(self, grads: list[Any], request: Request) -> tuple[float, float, bool]:
        """Call the kernels; of sharded parameters the norm is that of all processes' parts."""
        watch = request.nonfinite != "propagate"
        if not (self.sharded and (request.want_norm or watch)):
            return self.run_unrecorded(grads, request)
        norm = request.unscale * norm_of_shards([grad for grad in grads if grad is not None])
        if watch and not math.isfinite(norm):
            with torch.no_grad():
                for function, *arguments in request.always:
                    function(*arguments)
            return norm, 1.0, True
        coefficient = clip_coefficient(norm, request.clip_norm) if math.isfinite(request.clip_norm) else 1.0
        scaled = request._replace(
            unscale=request.unscale * coefficient, clip_norm=math.inf, want_norm=False, nonfinite="propagate"
        )
        self.run_unrecorded(grads, scaled)
        return norm, coefficient, False

    def run_unrecorded(self, grads: list[Any], request: Request) -> tuple[float, float, bool]:
        """Call the kernels; autograd does not record what is copied back or zeroed after them."""
        records = (len(request.after) > 1 or request.always) and torch.is_grad_enabled()
        with torch.no_grad() if records else nullcontext():
            done = super().run(grads, request)
        self.versions = {slot: self.params[slot]._version for slot in self.versions}
        return done

    def is_transposed(self, slot: int) -> bool:
        """Whether a matrix lies in memory column by column."""
        local = local_part(self.params[slot])
        return not local.is_contiguous() and is_dense(local)

    def has_rows(self, slot: int, grad: Any) -> bool:
        """Whether a gradient is sparse, or an earlier one was."""
        return (grad is not None and grad.is_sparse) or self.has_stepped(slot, "row_log_decay")

    def has_stepped(self, slot: int, name: str) -> bool:
        """Whether the state is there."""
        return self.face.state.get(self.params[slot], {}).get(name) is not None

    def copy_of(self, slot: int) -> Any:
        """Return what a parameter is copied to in each step, or None: of a master it is the parameter."""
        copy = self.face._copies.get(self.params[slot])
        if self.whole["master"] != "float32" or not self.has_master(slot):
            return copy
        if copy is not None:
            self.refuse(slot, "has a copy already, the master's (master='float32')", "write_copies: ")
        return self.params[slot]

    def duplicate(self, slot: int) -> Any:
        """Return a copy of a parameter."""
        return self.params[slot].detach().clone()

    def assign(self, slot: int, values: Any) -> None:
        """Write a parameter."""
        with torch.no_grad():
            self.params[slot].copy_(values)

    def is_finite(self, grad: Any) -> bool:
        """Whether all entries of this process's part are finite."""
        local = local_part(grad)
        return bool(torch.isfinite(local.coalesce().values() if local.is_sparse else local).all())

    def threads(self) -> int:
        """Return what was asked of fastopt, or else of torch; 1 where parameters share memory."""
        if self.watch.moved:
            self.serial = self.plan.params_overlap()
            self.watch.moved = False
        return 1 if self.serial else thread_count()


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


def dtype_of(storage: str, param: Tensor) -> torch.dtype:
    """Return the dtype of what is stored so beside a parameter. No dtype is both complex and of bfloat16."""
    if not param.is_complex():
        return DTYPES[storage.removesuffix("_stochastic")]
    return COMPLEX.get(storage, torch.complex64)


# ---- in 8 bits ----


def groups_of(size: int) -> int:
    """Return how many scales as many elements have."""
    return -(-size // _core.GROUP)


def fit_scales(scales: Any, size: int) -> bool:
    """Whether these can be the scales of as many codes."""
    fits = isinstance(scales, Tensor) and scales.shape == (groups_of(size),) and scales.dtype == torch.float32
    return fits and scales.is_contiguous() and scales.device.type == "cpu"


def encoded(name: str, values: Tensor, storage: str) -> dict[str, Any]:
    """Return the entries of a state in 8 bits, in the memory order of its values: codes and scales."""
    codes = torch.empty_like(values, dtype=CODES[storage])
    scales = torch.empty(groups_of(values.numel()), dtype=torch.float32, device="cpu")
    _core.convert((*place(codes), scales.data_ptr()), place(values), values.numel())
    return {name: codes, scales_of(name): scales}


def decoded(codes: Tensor, scales: Tensor) -> Tensor:
    """Return what a state in 8 bits stands for, in the memory order of its codes."""
    values = torch.empty_like(codes, dtype=torch.float32)
    _core.convert(place(values), (*place(codes), scales.data_ptr()), codes.numel())
    return values


# ---- in two pieces ----


def split(values: Tensor, storage: str) -> tuple[Tensor, Tensor]:
    """Return a float32 tensor as bfloat16 and what is left, in the memory order of its values."""
    high, rest = torch.empty_like(values, dtype=torch.bfloat16), torch.empty_like(values, dtype=REMAINDERS[storage])
    target = high.data_ptr(), _core.STORAGES[storage], rest.data_ptr()
    _core.convert(target, place(values), values.numel())
    return high, rest


def joined(high: Tensor, rest: Tensor) -> Tensor:
    """Return what two pieces stand for, in the memory order of the first."""
    values = torch.empty_like(high, dtype=torch.float32)
    high, rest = (torch.empty_like(values, dtype=piece.dtype).copy_(piece) for piece in (high, rest))
    source = high.data_ptr(), _core.STORAGES[PIECES[rest.dtype]], rest.data_ptr()
    _core.convert(place(values), source, values.numel())
    return values


# ---- views and copies ----


def is_sharded(tensor: Tensor) -> bool:
    """Whether other processes have other parts of a tensor."""
    return isinstance(tensor, DTensor) and not all(placement.is_replicate() for placement in tensor.placements)


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
    """Return a gradient in the memory order of `like`, and in a dtype that goes with it; a copy unless it is that."""
    fits = grad.dtype == like.dtype or torch.float64 not in (grad.dtype, like.dtype)
    if fits and not grad.is_neg() and same_order(grad, like):
        return grad
    return torch.empty_like(like, dtype=grad.dtype if fits else like.dtype).copy_(grad)


def in_rows(param: Tensor) -> Tensor | None:
    """Return plain numbers whose order has row after row, which `ordered` is to bring those of a parameter to."""
    return None if param.is_contiguous() else plain(torch.empty(param.shape, dtype=param.dtype, device="cpu"))


def ordered(tensor: Tensor, like: Tensor | None, write_back: list[Call]) -> Tensor:
    """Return plain numbers in the memory order of `like` (None: any without gaps); a copy only if need be."""
    local = local_part(tensor).detach()
    if has_plain_view(local) and (like is None or same_order(plain(local), like)):
        return plain(local)
    if like is None:
        like = plain(torch.empty(local.shape, dtype=local.dtype, device="cpu"))
    copy = torch.empty_like(like, dtype=real_dtype(local))
    values = torch.view_as_complex(copy) if local.is_complex() else copy
    values.copy_(local)
    write_back.append((local.copy_, values))
    return copy


def counts(step: Any, exact: bool = True) -> bool:
    """Whether the kernels can count in this object: a tensor of one float, which may be shared with other processes.

    Where not `exact`, they only have to write there.
    """
    return (
        isinstance(step, Tensor)
        and not isinstance(step, DTensor)
        and step.numel() == 1
        and step.device.type == "cpu"
        and step.layout == torch.strided
        and (step.dtype == torch.float64 or (step.dtype == torch.float32 and (not exact or float(step) < EXACT)))
        and step.data_ptr() != 0
    )


def outside_inference() -> AbstractContextManager[Any]:
    """Return a context in which tensors are made that autograd may use later.

    (That of torch changes the modes of autograd, and an interrupt within it leaves them so. It is rarely needed.)
    """
    return torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()


# ---- for plans ----


def place(tensor: Tensor) -> tuple[int, int]:
    """Return a plain tensor's (address, storage)."""
    return tensor.data_ptr(), _core.STORAGES[STORAGE_NAMES[tensor.dtype]]


def as_list(tensors: Tensor | Iterable[Tensor]) -> list[Tensor]:
    """Return one tensor, or several, as a list."""
    return [tensors] if isinstance(tensors, Tensor) else list(tensors)


def thread_count() -> int:
    """Return what to pass for the number of threads: the one that was asked of fastopt, or at most torch's."""
    return environment.chosen_threads() or -torch.get_num_threads()


def norm_of_shards(grads: list[Tensor]) -> float:
    """Return the norm of all gradients of all processes that share them."""
    norm = torch.nn.utils.get_total_norm(grads)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
