"""The same bits of parameters and state: whatever threads, split, instruction set, address, order, repeat or resume."""

import copy
import pickle
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
from arrays import BLOCK, BYTES_A_THREAD, DTYPES, SIZES, Array, Guarded, bits, fingerprint, nonzero
from cases import CASES, FIRST_OF_EACH_RULE, Case, every_case, first_case_of_each_rule

import fastopt
from fastopt import Optimizer, _core

cases_that_split = pytest.mark.parametrize(
    "case", [case for case in CASES if not (case.clips_by_norm or case.measures)]
)

THREADS = (1, 2, 3, 7)
STEPS = 2

FMA_ISAS = [name for name in fastopt.available_isas() if name != "portable"]


def lengths(dtype: str) -> tuple[int, ...]:
    """Sizes that keep every thread busy.

    The last array begins, in float32, in the bytes that are left over when they have shared the others equally.
    """
    size = np.dtype(dtype).itemsize
    around = (1, BLOCK - 1, 0, BLOCK + 1, 17, 1)
    long = max(THREADS) * BYTES_A_THREAD // size
    while size * (long + sum(around)) % max(THREADS) < 4:
        long += 1
    return (long, *around)


LENGTHS = {dtype: lengths(dtype) for dtype in DTYPES}


@cache
def drawn(sizes: tuple[int, ...], dtype: str) -> list[list[Array]]:
    rng = np.random.default_rng(7)
    return [[nonzero(rng, size, dtype) for size in sizes] for _ in range(1 + STEPS)]


def data(sizes: Sequence[int], dtype: str) -> tuple[list[Array], list[list[Array]]]:
    """Parameters, and gradients for each step; always the same."""
    params, *grads = copy.deepcopy(drawn(tuple(sizes), dtype))
    return params, grads


def after_steps(case: Case, params: Any, all_grads: Sequence[Any], **step_options: bool) -> list[bytes]:
    """Bits of parameters and states, each end to end, however they are split."""
    opt = case.make(params)
    for grads in all_grads:
        opt.step(grads, **step_options)
    return bits_end_to_end(opt)


def bits_end_to_end(opt: Optimizer) -> list[bytes]:
    states = [state for _, state in sorted(opt.state_dict()["state"].items())]
    names = sorted({name for state in states for name in state} - {"step", *opt.method.numbers})
    params = [param for group in opt.param_groups for param in group["params"]]
    return [bits(params), *(bits([state[name] for state in states]) for name in names)]


@every_case
def test_any_number_of_threads(case: Case, dtype: str) -> None:
    found = []
    for threads in THREADS:
        fastopt.set_num_threads(threads)
        params, grads = data(LENGTHS[dtype], dtype)
        found.append(after_steps(case, params, grads))
    assert all(other == found[0] for other in found[1:])


@cases_that_split
def test_any_split_into_parameters(case: Case, dtype: str) -> None:
    splits = [[], [1], [5, 5, 8], [BLOCK], [BLOCK - 1, BLOCK + 1], [100, 2 * BLOCK + 3], list(range(0, 20_000, 1237))]
    found = []
    for cuts in splits:
        (param,), all_grads = data([20_000], dtype)
        grads = [np.split(grad, cuts) for (grad,) in all_grads]
        found.append(after_steps(case, np.split(param, cuts), grads))
    assert all(other == found[0] for other in found[1:])


@every_case
def test_every_instruction_set_with_fma(case: Case, dtype: str) -> None:
    if len(FMA_ISAS) < 2:
        pytest.skip(f"this machine has one instruction set with FMA: {FMA_ISAS}")
    found = []
    for isa in FMA_ISAS:
        _core.use_isa(isa)
        params, grads = data((*SIZES, BLOCK + 1), dtype)
        found.append(after_steps(case, params, grads))
    assert all(other == found[0] for other in found[1:])


@first_case_of_each_rule
def test_any_address(case: Case, dtype: str, isa: str) -> None:
    found = []
    for offset in (0, 1, 7):
        values, all_grads = data(SIZES, dtype)
        params, room = Guarded(SIZES, dtype, offset), Guarded(SIZES, dtype, 2 * offset)
        opt = case.make(params.arrays)
        for param, value in zip(params.arrays, values, strict=True):
            param[:] = value
        for grads in all_grads:
            for place, grad in zip(room.arrays, grads, strict=True):
                place[:] = grad
            opt.step(room.arrays)
        found.append(bits_end_to_end(opt))
    assert all(other == found[0] for other in found[1:])


@pytest.mark.parametrize(
    "case", [case for case in FIRST_OF_EACH_RULE if case.rule not in _core.SMALL and case.optimizer != "Adafactor"]
)
def test_memory_order_and_shape(case: Case, dtype: str) -> None:
    """The same memory seen as a vector, a matrix in C order and one in Fortran order."""
    found = []
    for view in (np.ravel, lambda array: array.reshape(5, 12), lambda array: array.reshape(12, 5).T):
        (param,), all_grads = data([60], dtype)
        found.append(after_steps(case, view(param), [view(grad) for (grad,) in all_grads]))
    assert all(other == found[0] for other in found[1:])


@first_case_of_each_rule
def test_repeats(case: Case, dtype: str) -> None:
    found = [after_steps(case, *data(LENGTHS[dtype], dtype)) for _ in range(3)]
    assert found[1] == found[0]
    assert found[2] == found[0]


@every_case
def test_zeroing_the_gradients_on_the_way(case: Case, dtype: str) -> None:
    params, all_grads = data(SIZES, dtype)
    kept = after_steps(case, params, all_grads)
    params, all_grads = data(SIZES, dtype)
    zeroed = after_steps(case, params, all_grads, zero_grad=True)
    assert zeroed == kept
    assert not any(grad.any() for grads in all_grads for grad in grads)


def from_state_dict(case: Case, opt: Optimizer) -> Optimizer:
    fresh = case.make([param.copy() for param in opt.param_groups[0]["params"]])
    fresh.load_state_dict(opt.state_dict())
    return fresh


def from_pickle(case: Case, opt: Optimizer) -> Optimizer:
    copied = pickle.loads(pickle.dumps(opt))
    assert isinstance(copied, Optimizer)
    return copied


def from_deepcopy(case: Case, opt: Optimizer) -> Optimizer:
    return copy.deepcopy(opt)


@pytest.mark.parametrize("resumed", [from_state_dict, from_pickle, from_deepcopy])
@pytest.mark.parametrize("steps_before", [0, 1, 2])
@every_case
def test_resume(
    case: Case, steps_before: int, resumed: Callable[[Case, Optimizer], Optimizer], rng: np.random.Generator
) -> None:
    """The last parameter has no gradient in odd steps, so that the counts of steps differ."""
    sizes = (33, 5, 0, 7)

    def grads_at(step: int) -> list[Array | None]:
        grads: list[Array | None] = [nonzero(rng, size) for size in sizes]
        return [*grads[:-1], None if step % 2 else grads[-1]]

    opt = case.make([nonzero(rng, size) for size in sizes])
    for step in range(steps_before):
        opt.step(grads_at(1 - step))
    again = resumed(case, opt)
    assert fingerprint(again) == fingerprint(opt)
    for step in range(3):
        grads = grads_at(step)
        assert opt.step(grads) == again.step(grads)
        assert fingerprint(again) == fingerprint(opt)


@pytest.mark.parametrize("max_norm", [1.0, 1e9])
def test_global_norm_is_the_same_everywhere(dtype: str, max_norm: float) -> None:
    """For any number of threads, any instruction set with FMA, and as often as it is asked for."""
    found = set()
    for isa in FMA_ISAS or ["portable"]:
        _core.use_isa(isa)
        for threads in THREADS:
            fastopt.set_num_threads(threads)
            params, (grads, *_) = data(LENGTHS[dtype], dtype)
            info = fastopt.SGD(params, clip_norm=max_norm).step(grads)
            found.add(fastopt.global_norm(grads))
            found.add(info.grad_norm or 0.0)
            found.add(fastopt.clip_grad_norm(grads, max_norm))
    assert len(found) == 1


def test_clipping_in_place_is_the_same_everywhere(dtype: str) -> None:
    found = []
    for isa in FMA_ISAS or ["portable"]:
        _core.use_isa(isa)
        for threads in THREADS:
            fastopt.set_num_threads(threads)
            _, (grads, *_) = data(LENGTHS[dtype], dtype)
            fastopt.clip_grad_norm(grads, 1.0)
            fastopt.clip_grad_value(grads, 1e-3)
            found.append(bits(grads))
    assert all(other == found[0] for other in found[1:])
