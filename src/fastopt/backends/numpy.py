"""NumPy's arrays, for the engine. They are used where they are or refused: nothing is copied."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastopt import _arrays, _core, environment
from fastopt.engine import WHOLE_GROUPS, Buffers, Engine, Group, RowPlaces, scales_of
from fastopt.products import Call, Calls
from fastopt.rows import Rows, as_rows


class CallsOfNumpy(Calls):
    """NumPy's."""

    @staticmethod
    def empty(shape: tuple[int, ...], dtype: str) -> Any:
        """Return a new array."""
        return np.zeros(shape, dtype)

    @staticmethod
    def address(array: Any) -> int:
        """Return where it lies."""
        return int(array.ctypes.data)

    @staticmethod
    def call(name: str, *arguments: Any, out: Any) -> Call:
        """Return the call of a universal function."""
        return getattr(np, name), *arguments, out

    @staticmethod
    def total(array: Any, axis: int, out: Any) -> Call:
        """Return the call that sums along an axis."""
        return np.add.reduce, array, axis, None, out

    @staticmethod
    def polynomial(gram: Any, a: float, b: float, c: float, out: Any) -> list[Call]:
        """Return calls for ``out = a*I + b*gram + c*gram@gram``: a matrix times itself transposed is half the work."""
        diagonal = np.einsum("...ii->...i", out)
        return [
            (np.matmul, gram, gram.swapaxes(1, 2), out),
            (np.multiply, out, c, out),
            (np.multiply, gram, b, gram),
            (np.add, out, gram, out),
            (np.add, diagonal, a, diagonal),
        ]


class Arrays(Engine):
    """The step of parameters that are arrays."""

    watch: _arrays.Watch
    calls_of_framework = CallsOfNumpy

    def __init__(self, face: Any, parts: list[tuple[Group, list[Any]]]) -> None:
        super().__init__(face, parts)
        self.watch = _arrays.Watch(self.plan, self.params)
        self.memory = _arrays.Memory(self.params)

    def gradients(self, grads: list[Any]) -> list[Any]:
        """Return the gradients as they were given."""
        return grads

    def zeroing(self, grads: list[Any]) -> list[Call]:
        """Return the calls that zero gradients."""
        return [(grad.fill, 0) for grad in grads if grad is not None]

    def look(self, grads: list[Any], zero: bool, given: bool) -> list[int]:
        """Point the plan at the gradients; return the parameters that have to be bound anew."""
        return self.watch.look(grads, zero)

    def label(self, slot: int) -> str:
        """Return a parameter's place in what the user gave: `params['w']`."""
        return str(self.face._labels[slot])

    def check(self, slot: int) -> None:
        """Raise unless a parameter is still where it was, and writeable."""
        param, label = self.params[slot], self.label(slot)
        if self.face._places[slot] != (_arrays.place(param)[0], param.size):
            raise RuntimeError(f"{label}: was resized after the optimizer was made; make a new optimizer")
        _arrays.as_array(param, label, True)
        if self.rule_of(slot)[0] in _core.SMALL and not param.flags.c_contiguous:
            raise ValueError(f"{label}: expected a C-contiguous array, whose rows have states of their own")

    def entry(self, slot: int) -> dict[str, Any]:
        """Return the states of a parameter."""
        state: dict[str, Any] = self.face._state[slot]
        return state

    def found(self, slot: int, name: str) -> Any:
        """Return what is kept for a parameter under a name, or None."""
        return self.face._state[slot].get(name)

    def dtype_name(self, slot: int) -> str:
        """Return the name of a parameter's dtype."""
        return str(self.params[slot].dtype.name)

    def start_state(self, slot: int, name: str, storage: str, value: float | None) -> dict[str, Any]:
        """Return arrays in the parameter's memory order."""
        param = self.params[slot]
        shape = self.method.state_shape(name, param.shape)
        if shape != param.shape:
            return {name: np.full(shape, value, dtype_of(storage))}
        if value == 0:
            return empty(name, param, storage, np.zeros)
        return stored(name, param if value is None else np.full_like(param, value, subok=False), storage)

    def fit_state(self, slot: int, name: str, storage: str, entry: dict[str, Any]) -> dict[str, Any]:
        """Return the state, checked: somebody may have resized it; in another precision if that is wanted."""
        param, label, array = self.params[slot], f"{name} of {self.label(slot)}", entry[name]
        if scales_of(name) in entry:
            check_codes(array, entry[scales_of(name)], param, label)
            if array.dtype == dtype_of(storage):
                return {key: entry[key] for key in (name, scales_of(name))}
            array = decoded(array, entry[scales_of(name)])
        shape = self.method.state_shape(name, param.shape)
        if shape == param.shape:
            fit = _arrays.beside(array, param, label, True, True)
        else:
            fit = _arrays.as_array(array, label, True, True)
            if fit.shape != shape or not fit.flags.c_contiguous:
                raise ValueError(f"{label}: expected shape {shape} in C order, got {fit.shape}")
        return {name: fit} if fit.dtype == dtype_of(storage) else stored(name, fit, storage)

    def address(self, array: Any) -> int:
        """Return the address of an array."""
        return int(array.ctypes.data)

    def count_place(self, slot: int, entry: dict[str, Any], fresh: bool) -> tuple[int, bool]:
        """Return the address in the optimizer's own count."""
        steps = self.face._steps
        if fresh and not self.method.counts_steps:
            steps[slot] = 0  # what is counted there is how often the states were updated
        return steps.ctypes.data + slot * steps.itemsize, False

    def start_number(self, slot: int, value: float) -> Any:
        """Return an array of no dimension."""
        return np.array(value)

    def number_place(self, slot: int, entry: dict[str, Any], name: str) -> tuple[int, bool]:
        """Return the address of an array of no dimension."""
        return entry[name].ctypes.data, False

    def start_decay(self, slot: int, value: Any) -> Any:
        """Return an array of one number a row, or of none."""
        return np.zeros(()) if value is None else np.full(self.params[slot].shape[:1], float(value))

    def decay_place(self, slot: int, name: str, numbers: Any) -> int:
        """Return the address of an array that nobody else has."""
        address: int = numbers.ctypes.data
        return address

    def buffers(self, slot: int, grad: Any, states: list[Any], zero: bool) -> Buffers:
        """Return where the arrays are; the gradient is checked."""
        param, label = self.params[slot], f"gradient of {self.label(slot)}"
        place = _arrays.place(param)
        array = None
        rows = as_rows(grad, label, param.shape)
        if rows is not None:
            if zero and not isinstance(grad, Rows):
                raise ValueError(f"{label}: is a sparse matrix, which is not zeroed in a step (zero_grad=True)")
            return self.buffers_of_rows(slot, rows, states, zero)
        if grad is not None:
            array = _arrays.beside(grad, param, label, zero)
            owner = self.memory.owner(array)
            if owner is not None:
                raise ValueError(f"{label}: overlaps {self.label(owner)} in memory")
        grad_place = None if array is None else _arrays.place(array)
        return Buffers(param.size, place, grad_place, list(map(_arrays.place, states)), array, True)

    def buffers_of_rows(self, slot: int, rows: Rows, states: list[Any], zero: bool) -> Buffers:
        """Return where the arrays are for a gradient of some rows, which is made dense if all rows are stepped."""
        param, label = self.params[slot], f"gradient of {self.label(slot)}"
        options = self.values[self.owners[slot]]
        what = self.method.sparse(options)
        if what == "refuse":
            also = "; lazy=True steps rows alone" if "lazy" in options else ""
            raise TypeError(f"{label}: expected a NumPy array, got rows{also}")
        values = _arrays.as_array(rows.values, f"values of {label}", zero)
        if values.dtype != param.dtype:
            raise TypeError(f"values of {label}: expected the parameter's dtype {param.dtype}, got {values.dtype}")
        if not param.ndim or values.shape[1:] != param.shape[1:]:
            raise ValueError(
                f"values of {label}: expected rows of shape {param.shape[1:]}, got an array of shape {values.shape}"
            )
        if not (param.flags.c_contiguous and values.flags.c_contiguous):
            raise ValueError(f"{label}: expected C-contiguous arrays, of which single rows can be stepped")
        owner = self.memory.owner(values)
        if owner is not None:
            raise ValueError(f"{label}: overlaps {self.label(owner)} in memory")
        indices = rows.indices
        averaged = self.whole["ema"] is not None and not options["lazy"]  # (all rows' averages move)
        whole = self.rows_are_whole(values[:1].size, in_order=True)
        if not whole and options["lazy"]:
            raise ValueError(f"{label}: has rows of {values[:1].size} elements, {WHOLE_GROUPS}")
        if what == "dense" or averaged or not whole:
            wrong = np.flatnonzero((indices < 0) | (indices >= len(param)))
            if wrong.size:
                raise IndexError(
                    f"{label}: expected row numbers of at least 0 and below {len(param)}, got {indices[wrong[0]]} "
                    f"at {wrong[0]}"
                )
            dense = np.zeros_like(param)
            np.add.at(dense, indices, values)
            place: Any = _arrays.place(dense)
            kept = (dense, values)
        else:
            numbers = indices.ctypes.data, indices.dtype == np.int64, len(indices)
            place = RowPlaces(numbers, _arrays.place(values), param[:1].size, environment.pass_threads())
            kept = (indices, values)
        at = _arrays.place(param)
        return Buffers(param.size, at, place, list(map(_arrays.place, states)), kept, True)

    def calls(self, grads: list[Any], bound: dict[int, Buffers], zero: bool) -> tuple[bool, list[Any], list[Any]]:
        """Raise if gradients overlap that both are to be zeroed."""
        rows = [bound[slot].kept[-1] for slot in bound if isinstance(bound[slot].kept, tuple)]
        if zero:
            arrays = [bound[slot].kept if slot in bound else grad for slot, grad in enumerate(grads)]
            arrays = [array[-1] if isinstance(array, tuple) else array for array in arrays]
            pair = _arrays.Memory(arrays).collision()
            if pair is not None:
                raise ValueError(
                    f"gradients of {self.label(pair[0])} and {self.label(pair[1])} overlap in memory, so that they "
                    "cannot both be zeroed"
                )
        return zero, [], [(values.fill, 0) for values in rows if zero]

    def is_transposed(self, slot: int) -> bool:
        """Whether a matrix lies in memory column by column."""
        return not self.params[slot].flags.c_contiguous

    def has_rows(self, slot: int, grad: Any) -> bool:
        """Whether a gradient is of some rows, or an earlier one was."""
        return isinstance(grad, Rows) or hasattr(grad, "tocsr") or "row_log_decay" in self.entry(slot)

    def has_stepped(self, slot: int, name: str) -> bool:
        """Whether its steps are more than none: the states are there before."""
        return bool(self.face._steps[slot])

    def copy_of(self, slot: int) -> Any:
        """Return what a parameter is copied to in each step, or None."""
        return self.face._copies[slot]

    def duplicate(self, slot: int) -> Any:
        """Return a copy of a parameter."""
        return self.params[slot].copy(order="K")

    def assign(self, slot: int, values: Any) -> None:
        """Write a parameter."""
        self.params[slot][...] = values

    def is_finite(self, grad: Any) -> bool:
        """Whether all entries are finite."""
        rows = as_rows(grad, "gradient", np.shape(grad))
        return bool(np.isfinite(grad if rows is None else rows.values).all())

    def threads(self) -> int:
        """Return the number of threads that was asked for, or OpenMP's."""
        return environment.pass_threads()


# ---- precisions ----


@cache
def bfloat16() -> np.dtype[Any]:
    """Return bfloat16's dtype where the package ml_dtypes is installed, or else that of its bits."""
    try:
        import ml_dtypes
    except ImportError:
        return np.dtype(np.uint16)
    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype


CODES = {"signed8": np.dtype(np.int8), "root8": np.dtype(np.uint8)}
"""Storage in 8 bits -> dtype of its codes."""


def dtype_of(storage: str) -> np.dtype[Any]:
    """Return the dtype of what is stored so."""
    if storage in CODES:
        return CODES[storage]
    return bfloat16() if storage.startswith("bfloat16") else np.dtype(storage)


def empty(name: str, like: NDArray[Any], storage: str, make: Callable[..., Any] = np.empty) -> dict[str, Any]:
    """Return the entries of a state in the memory order of another array: itself and, in 8 bits, its scales."""
    order = "C" if like.flags.c_contiguous else "F"
    entries = {name: make(like.shape, dtype=dtype_of(storage), order=order)}
    if storage in CODES:
        entries[scales_of(name)] = make(groups_of(like.size), dtype=np.float32)
    return entries


def stored(name: str, array: NDArray[Any], storage: str) -> dict[str, Any]:
    """Return a state's entries in that precision, rounded to nearest, in the array's memory order."""
    entries = empty(name, array, storage)
    beside = [scales.ctypes.data for key, scales in entries.items() if key != name]
    place = (entries[name].ctypes.data, _core.STORAGES[storage.removesuffix("_stochastic")], *beside)
    _core.convert(place, _arrays.place(array), array.size)
    return entries


def groups_of(size: int) -> int:
    """Return how many scales as many elements have."""
    return -(-size // _core.GROUP)


def check_codes(codes: Any, scales: Any, param: NDArray[Any], label: str) -> None:
    """Raise unless these can be a state of the parameter in 8 bits."""
    if codes.shape != param.shape:
        raise ValueError(f"{label}: expected the parameter's shape {param.shape}, got {codes.shape}")
    if codes.dtype not in CODES.values():
        raise TypeError(f"{label}: expected codes of dtype int8 or uint8 beside scales, got {codes.dtype}")
    if scales.dtype != np.float32 or scales.shape != (groups_of(codes.size),):
        raise ValueError(
            f"{label}: expected {groups_of(codes.size)} scales in float32, got shape {scales.shape} of {scales.dtype}"
        )


def decoded(codes: NDArray[Any], scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return what a state in 8 bits stands for, in the memory order of its codes."""
    values = np.empty_like(codes, dtype=np.float32)
    storage = next(name for name, dtype in CODES.items() if dtype == codes.dtype)
    place = codes.ctypes.data, _core.STORAGES[storage], scales.ctypes.data
    _core.convert(_arrays.place(values), place, codes.size)
    return values
