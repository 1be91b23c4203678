"""Products of matrices within a step: what is between measuring a parameter's update and adding it.

Some rules (Muon's) hand their updates over: the core leaves them, divided by their norms, in arrays of this module, and
goes on with what has been made of them. What makes it is a list of calls, prepared before the step begins: of functions
that run no code of Python's, so that no interrupt comes in between, into arrays that are there already.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from fastopt import _core

if TYPE_CHECKING:
    from fastopt.engine import Engine

Call = tuple[Any, ...]
"""A function, which runs no code of Python's, and its arguments."""

MOST = 2**24
"""Elements that are worked on together, at the most, unless one matrix has more."""

TINY = 1e-30
"""Added to what is divided by, where zero is divided by it."""


class Calls(ABC):
    """How a framework computes with its arrays. Matrices are the last two dimensions of three."""

    @staticmethod
    @abstractmethod
    def empty(shape: tuple[int, ...], dtype: str) -> Any:
        """Return a new array."""

    @staticmethod
    @abstractmethod
    def address(array: Any) -> int:
        """Return where it lies."""

    @staticmethod
    @abstractmethod
    def call(name: str, *arguments: Any, out: Any) -> Call:
        """Return the call of a function that both frameworks have, and that works element by element or is `matmul`."""

    @staticmethod
    @abstractmethod
    def total(array: Any, axis: int, out: Any) -> Call:
        """Return the call that sums along an axis."""

    @staticmethod
    @abstractmethod
    def polynomial(gram: Any, a: float, b: float, c: float, out: Any) -> list[Call]:
        """Return calls for ``out = a*I + b*gram + c*gram@gram``, of symmetric matrices; `gram` may be lost."""


class Batch(NamedTuple):
    """The updates of some parameters of one shape."""

    slots: list[int]
    array: Any
    shape: tuple[int, int]
    """Of a parameter, whose rows may be the columns in memory."""
    transposed: bool
    dtype: str


class Products:
    """The updates of an engine that are handed over, and what is done to them."""

    def __init__(self, calls: type[Calls]) -> None:
        self.of = calls
        self.keys: dict[int, tuple[Any, ...]] = {}
        self.batches: dict[int, Batch] = {}
        self.scratch: dict[str, Any] = {}
        self.known: Any = None
        self.found: list[Call] = []

    def place(self, engine: Engine, slot: int) -> tuple[int, int]:
        """Return where a parameter's update is to be, (address, storage)."""
        if self.keys.get(slot) != self.key(engine, slot):
            self.lay_out(engine, slot)
        batch = self.batches[slot]
        return self.of.address(batch.array[batch.slots.index(slot)]), _core.STORAGES[batch.dtype]

    @staticmethod
    def key(engine: Engine, slot: int) -> tuple[Any, ...]:
        """Return what parameters have in common that are worked on together."""
        dtype = "float64" if engine.dtype_name(slot) == "float64" else "float32"
        return engine.owners[slot], tuple(engine.params[slot].shape), engine.is_transposed(slot), dtype

    def lay_out(self, engine: Engine, slot: int) -> None:
        """Find a place for a parameter's update, and for all beside which it can be worked on."""
        key = self.key(engine, slot)
        owner, (rows, columns), transposed, dtype = key
        alike = [
            other
            for other in engine.slots[owner]
            if other == slot
            or (
                other not in self.keys
                and self.key(engine, other) == key
                and engine.rule_of(other)[0] in _core.HANDED_OVER
            )
        ]
        several = max(1, MOST // max(1, rows * columns))
        in_memory = (columns, rows) if transposed else (rows, columns)
        for start in range(0, len(alike), several):
            slots = alike[start : start + several]
            array = self.of.empty((len(slots), *in_memory), dtype)
            batch = Batch(slots, array, (rows, columns), transposed, dtype)
            self.keys.update(dict.fromkeys(slots, key))
            self.batches.update(dict.fromkeys(slots, batch))
        self.known = None

    def calls(self, engine: Engine, grads: list[Any]) -> list[Call]:
        """Return what is to be done to the updates of the parameters that have a gradient."""
        if not self.batches:
            return []
        stepped = [slot for slot in self.batches if grads[slot] is not None]
        options = [[values[name] for name in engine.method.between] for values in engine.values]
        kept = [engine.entry(slot).get(name) for slot in stepped for name in self.row_numbers(engine, slot)]
        known = (stepped, options, list(map(id, kept)))
        if known != self.known:
            self.found = [call for slots, array in self.parts(stepped) for call in self.work(engine, slots, array)]
            self.known = known
        return self.found

    @staticmethod
    def row_numbers(engine: Engine, slot: int) -> tuple[str, ...]:
        """Return the names of what is kept for each row of a parameter."""
        return engine.method.row_numbers(engine.rule_of(slot)[0], engine.values[engine.owners[slot]])

    def parts(self, stepped: list[int]) -> Iterator[tuple[list[int], Any]]:
        """Yield which parameters are worked on together, and their updates: one by one if some of a batch rest."""
        there = set(stepped)
        for batch in {id(self.batches[slot]): self.batches[slot] for slot in stepped}.values():
            if there.issuperset(batch.slots):
                yield batch.slots, batch.array
            else:
                for index, slot in enumerate(batch.slots):
                    if slot in there:
                        yield [slot], batch.array[index : index + 1]

    def work(self, engine: Engine, slots: list[int], updates: Any) -> Iterator[Call]:
        """Yield the calls that make updates orthogonal, and as large as they are to be."""
        batch, options = self.batches[slots[0]], engine.values[engine.owners[slots[0]]]
        if 0 in batch.shape:
            return
        method: Any = engine.method
        ratio = method.ratio(options, *batch.shape)
        in_rows = self.row_numbers(engine, slots[0])
        polynomials = method.polynomials(options)
        if polynomials and not in_rows:  # (the last product can have the factor, too)
            polynomials[-1] = tuple(ratio * number for number in polynomials[-1])
        yield from self.iterate(updates, polynomials, batch.dtype)
        if in_rows:
            rows = [engine.entry(slot)[in_rows[0]] for slot in slots]
            yield from self.even_out(updates, rows, batch, options, ratio)
        elif not polynomials:
            yield self.of.call("multiply", updates, ratio, out=updates)

    def iterate(self, x: Any, polynomials: list[tuple[float, ...]], dtype: str) -> Iterator[Call]:
        """Yield the calls for ``x = (a + b*g + c*g@g) @ x``, g being ``x @ x.T``, or ``x.T @ x`` if smaller."""
        count, rows, columns = x.shape
        wide, side = rows <= columns, min(rows, columns)
        y, gram, polynomial = self.views(dtype, x.shape, (count, side, side), (count, side, side))
        source, target = x, y
        for a, b, c in polynomials:
            flipped = source.swapaxes(1, 2)
            yield self.of.call("matmul", *((source, flipped) if wide else (flipped, source)), out=gram)
            yield from self.of.polynomial(gram, a, b, c, polynomial)
            yield self.of.call("matmul", *((polynomial, source) if wide else (source, polynomial)), out=target)
            source, target = target, source
        if source is not x:
            yield self.of.call("multiply", source, 1.0, out=x)

    def even_out(self, x: Any, kept: list[Any], batch: Batch, options: dict[str, Any], ratio: float) -> Iterator[Call]:
        """Yield the calls that divide rows by the root of a moving average of their mean squares, at the same norm."""
        of, count, (rows, columns) = self.of, len(kept), batch.shape
        squares, mean, root, part, norm, before = self.views(
            batch.dtype, x.shape, *[(count, rows)] * 3, *[(count,)] * 2
        )
        beta = options["normuon_beta"]
        yield of.call("multiply", x, x, out=squares)
        yield of.total(squares, 1 if batch.transposed else 2, mean)
        yield of.total(mean, 1, before)
        for index, average in enumerate(kept):
            yield of.call("multiply", mean[index], (1 - beta) / columns, out=part[index])
            yield of.call("multiply", average, beta, out=average)
            yield of.call("add", average, part[index], out=average)
            yield of.call("sqrt", average, out=root[index])
        yield of.call("add", root, max(options["eps"], TINY), out=root)
        yield of.call("divide", mean, root, out=part)
        yield of.call("divide", part, root, out=part)
        yield of.total(part, 1, norm)
        yield of.call("add", norm, TINY, out=norm)
        yield of.call("divide", before, norm, out=norm)
        yield of.call("sqrt", norm, out=norm)
        yield of.call("multiply", norm, ratio, out=norm)
        yield of.call("divide", norm[:, None], root, out=root)
        yield of.call("multiply", x, root[:, None, :] if batch.transposed else root[:, :, None], out=x)

    def views(self, dtype: str, *shapes: tuple[int, ...]) -> list[Any]:
        """Return arrays of these shapes, one after the other in memory that all parts share."""
        sizes = [math.prod(shape) for shape in shapes]
        if dtype not in self.scratch or len(self.scratch[dtype]) < sum(sizes):
            self.scratch[dtype] = self.of.empty((sum(sizes),), dtype)
        flat, start, views = self.scratch[dtype], 0, []
        for size, shape in zip(sizes, shapes, strict=True):
            views.append(flat[start : start + size].reshape(shape))
            start += size
        return views
