"""JAX's arrays, for `fastopt.jax`: the step as a custom call of XLA's, which csrc/xla.c answers."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from fastopt import _core
from fastopt.rows import Rows

OLDEST = (0, 5, 0)

if jax.__version_info__ < OLDEST:
    raise ImportError(f"fastopt.jax needs jax {'.'.join(map(str, OLDEST))} or newer, got {jax.__version__}")

VERSION = f"{zlib.crc32(repr((_core.RULES, _core.OPTIONS, _core.STORAGES)).encode()):08x}"
MEASURE, STEP = f"fastopt_measure_{VERSION}", f"fastopt_step_{VERSION}"
"""Have in their names what the numbers in a call mean: one that another version compiled and kept is not found here."""

OPTION_ROWS = 2
"""Rows of options: for what decays, and for what a mask leaves out."""

CLIP_VALUE, AVERAGE_WEIGHT, SCALE, SKIPPED = range(
    OPTION_ROWS * len(_core.OPTIONS), OPTION_ROWS * len(_core.OPTIONS) + 4
)
"""Where the numbers of all parameters belong, after the rows of options."""

PLAIN = "sgd"
"""The rule whose update is the gradient."""

MOST_IN_A_CALL = 64
"""Parameters. The time to compile a call grows faster than with their number."""


def interface() -> tuple[int, int]:
    """Return the version of XLA's foreign function interface, which its header alone says."""
    header = (Path(jax.ffi.include_dir()) / "xla" / "ffi" / "api" / "c_api.h").read_text(encoding="utf-8")
    major, minor = (
        int(re.findall(rf"^#define XLA_FFI_API_{part} (\d+)$", header, re.M)[0]) for part in ("MAJOR", "MINOR")
    )
    return major, minor


MAJOR, MINOR = interface()

if MAJOR != 0:  # (minor versions only add to it)
    raise ImportError(
        f"fastopt.jax knows version 0 of XLA's foreign function interface, jax {jax.__version__} has {MAJOR}"
    )

for _name, _handler in zip((MEASURE, STEP), _core.xla_handlers(MINOR), strict=True):
    jax.ffi.register_ffi_target(_name, _handler, platform="cpu")


class Numbers(NamedTuple):
    """Numbers of a call, and those among them that are operands."""

    fixed: NDArray[np.float64]
    traced: tuple[tuple[int, Any], ...]
    """Where in `fixed` each belongs, and what it is."""

    @property
    def places(self) -> NDArray[np.int64]:
        """Where they belong."""
        return np.array([place for place, _ in self.traced], np.int64)

    @property
    def operands(self) -> list[Any]:
        """What they are."""
        return [operand for _, operand in self.traced]


class Kept(NamedTuple):
    """How something is stored that is kept of a parameter, and where."""

    storage: str
    at: tuple[int, int] | None = None
    """In which array, and from which element on. None of a parameter is in its own memory."""
    beside: tuple[int, int] | None = None
    """The same of what lies beside it: scales, a remainder."""

    @property
    def said(self) -> tuple[int, ...]:
        """All of it in numbers, as a call has it."""
        return _core.STORAGES[self.storage], *(self.at or (-1, 0)), *(self.beside or (-1, 0))


class Tensor(NamedTuple):
    """How a parameter is stepped."""

    rule: str
    owner: int
    """Its row of options."""
    param: Kept
    """Itself; or its master, which it is a copy of."""
    states: tuple[Kept, ...]
    average: tuple[Kept, ...]
    """Its moving average, or nothing."""
    numbers: tuple[Kept, ...]
    decays: tuple[Kept, ...]
    """The logarithm of all decays that there have been, and of those that each of its rows has had; or nothing."""
    matrix: tuple[int, int]
    """Rows, and elements of a row, of the matrices by which its states go, if any do."""
    table: tuple[int, int]
    """Rows, and elements of a row, along the first dimension."""
    wide: bool
    """Whether it is computed in double precision."""

    @property
    def kept(self) -> tuple[Kept, ...]:
        """All of these, as a call has them."""
        none = Kept("float64")
        return self.param, *self.states, *self.average, *self.numbers, *(self.decays or (none, none))


class Program(NamedTuple):
    """What is the same for all parameters of a step."""

    options: Numbers
    """Two rows of all options, then clip_value and the weight of the moving average."""
    clip_norm: Numbers
    skips: bool
    """Whether a step is skipped if a gradient is not finite."""
    advances: list[int]
    """Where in a row of options the numbers belong that are kept for all parameters together."""
    between: Callable[[list[int], list[Any], Any, list[Any]], tuple[list[Any], list[Any]]]
    """What makes new updates of those that a rule hands over, and new arrays of all that is kept. It is given which
    parameters they are of, the updates, whether the step is skipped, and these arrays."""


class Written(NamedTuple):
    """What a step writes: in the same memory where XLA can have it so, where that has been donated."""

    heads: list[Any]
    """The number of steps and, if there are any, the halves of the numbers that all parameters have together."""
    arrays: list[Any]
    """What is kept, of many parameters in each."""
    params: list[Any]


def step(program: Program, tensors: list[Tensor], written: Written, grads: list[Any]) -> Written:
    """Return what a step writes. A gradient is an array, or `Rows`."""
    options, halves = program.options, None
    if program.skips or program.clip_norm.traced or np.isfinite(program.clip_norm.fixed[0]):
        halves = measure(program.clip_norm, program.skips, tensors, grads)
        traced = ((SCALE, halves[:2]), (SKIPPED, halves[2:]))
        options = Numbers(options.fixed, (*options.traced, *traced))
    params = list(written.params)
    # Parameters with the same options are to be neighbours, as are those of a group in other frameworks.
    order = sorted(range(len(grads)), key=lambda i: tensors[i].owner)
    seats = dict(zip(order, range(len(order)), strict=True))

    def kind(i: int) -> tuple[str, bool]:
        return tensors[i].rule, tensors[i].wide

    order.sort(key=kind)
    parts = [part for (rule, _), alike in groupby(order, kind) for part in parts_of(rule, list(alike))]
    for part in parts:  # (one after the other: each takes all threads)
        given = Written(written.heads, written.arrays, [params[i] for i in part])
        own, of_part = [tensors[i] for i in part], [grads[i] for i in part]
        handed = own[0].rule in _core.HANDED_OVER
        call = partial(call_of, program, seats=[seats[i] for i in part], counts=part is parts[-1])
        if handed:
            skipped = False if halves is None else (halves[2:] != 0).any()
            given, updates = hand_over(partial(call, options, counts=False), own, given, of_part)
            of_part, arrays = program.between(part, updates, skipped, given.arrays)
            given = Written(given.heads, arrays, given.params)
            own = [tensor._replace(rule=PLAIN, states=()) for tensor in own]
        written = call(plain(options) if handed else options, own, given, of_part)
        for i, param in zip(part, written.params, strict=True):
            params[i] = param
    return Written(written.heads, written.arrays, params)


def parts_of(rule: str, alike: list[int]) -> list[list[int]]:
    """Return which parameters of a rule are stepped in one call."""
    together = len(alike) if _core.SCOPES.get(rule) == "plan" else MOST_IN_A_CALL
    return [alike[first : first + together] for first in range(0, len(alike), together)]


def hand_over(
    call: Callable[..., Written], own: list[Tensor], given: Written, grads: list[Any]
) -> tuple[Written, list[Any]]:
    """Return what a call writes that changes states alone, and the updates that it hands over."""
    ends = np.cumsum([param.size for param in given.params]).tolist()
    starts = [0, *ends[:-1]]
    updates = jax.numpy.zeros(ends[-1], "float64" if own[0].wide else "float32")
    place = len(given.arrays)
    states = _core.RULES[own[0].rule][1] - 1
    own = [
        tensor._replace(states=(*tensor.states[:states], Kept(updates.dtype.name, (place, start))), average=())
        for tensor, start in zip(own, starts, strict=True)
    ]
    found = call(own, Written(given.heads, [*given.arrays, updates], given.params), grads)
    flat = found.arrays[place]
    shaped = [flat[a:b].reshape(p.shape) for a, b, p in zip(starts, ends, given.params, strict=True)]
    return Written(found.heads, found.arrays[:place], found.params), shaped


def plain(options: Numbers) -> Numbers:
    """Return the options with which a finished update is added: clipping and sign were the gradient's."""
    fixed = options.fixed.copy()
    maximize = [row * len(_core.OPTIONS) + _core.OPTIONS["maximize"] for row in range(OPTION_ROWS)]
    fixed[[*maximize, CLIP_VALUE, SCALE]] = 0.0, 0.0, np.inf, 1.0
    return Numbers(fixed, tuple(pair for pair in options.traced if pair[0] not in (CLIP_VALUE, SCALE)))


def call_of(
    program: Program,
    options: Numbers,
    own: list[Tensor],
    given: Written,
    grads: list[Any],
    *,
    seats: list[int],
    counts: bool,
) -> Written:
    """Return what a call writes, of parameters with the same rule."""
    kept = [kept for tensor in own for kept in tensor.kept]
    at_random = any(one.storage.endswith("_stochastic") for one in kept)
    operands, tables = operands_of(own, grads)
    found = iter(
        call(
            STEP,
            options.operands,
            [*given.heads, *given.arrays, *given.params],
            operands,
            **tables,
            rule=np.int64(_core.RULES[own[0].rule][0]),
            options=options.fixed,
            places=options.places,
            owners=np.array([tensor.owner for tensor in own], np.int64),
            average=np.int64(len(own[0].average)),
            kept=np.array([one.said for one in kept], np.int64).ravel(),
            matrices=np.array([tensor.matrix for tensor in own], np.int64).ravel(),
            seats=np.array(seats if at_random else range(len(own)), np.int64),
            advances=np.array(program.advances, np.int64),
            counts=np.int64(counts),
        )
    )
    return Written(*([next(found) for _ in arrays] for arrays in given))


def operands_of(tensors: list[Tensor], grads: list[Any]) -> tuple[list[Any], dict[str, Any]]:
    """Return the arrays that gradients are in a call, and what it has to know of those of some rows."""
    sparse = [i for i, grad in enumerate(grads) if isinstance(grad, Rows)]
    values = [grad.values if isinstance(grad, Rows) else grad for grad in grads]
    tables = np.array([tensor.table for tensor in tensors], np.int64).ravel()
    return [*values, *(grads[i].indices for i in sparse)], {"tables": tables, "sparse": np.array(sparse, np.int64)}


def measure(clip_norm: Numbers, skips: bool, tensors: list[Tensor], grads: list[Any]) -> Any:
    """Return what depends on all gradients: the factor that clips them, and whether the step is skipped, in halves."""
    result = jax.ShapeDtypeStruct((4,), jax.numpy.uint32)
    run = jax.ffi.ffi_call(MEASURE, result, vmap_method="sequential")
    operands, tables = operands_of(tensors, grads)
    attributes = {"options": clip_norm.fixed, "places": clip_norm.places, "skips": np.int64(skips), **tables}
    return without_derivative(lambda *operands: run(*operands, **attributes))(*clip_norm.operands, *operands)


def call(target: str, traced: list[Any], written: list[Any], read: list[Any], **attributes: Any) -> list[Any]:
    """Return what a call writes."""
    results = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in written]
    aliases = {len(traced) + place: place for place in range(len(written))}
    run = jax.ffi.ffi_call(target, results, vmap_method="sequential", input_output_aliases=aliases)
    found: list[Any] = without_derivative(lambda *operands: run(*operands, **attributes))(*traced, *written, *read)
    return found


def without_derivative(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function, but with a clear error where its derivative is asked for."""

    def refuse(primals: Any, tangents: Any) -> Any:
        raise TypeError(
            "fastopt.jax: a step has no derivative; take the gradient of the loss alone, or stop it with "
            "jax.lax.stop_gradient before the step"
        )

    guarded: Callable[..., Any] = jax.custom_jvp(function)
    guarded.defjvp(refuse)  # type: ignore[attr-defined]
    return guarded
