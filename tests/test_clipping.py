"""Clipping by norm and by value: inside a step and on its own, with the extreme numbers of each dtype."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from arrays import BLOCK, LARGE, ULPS, Array, bits, nonzero, unchanged
from cases import FIRST_OF_EACH_RULE, Case, first_case_of_each_rule

import fastopt
from fastopt import clipping

NESTED: Callable[[Array, Array, Array], Any] = lambda a, b, c: {"a": a, "b": [b, {"c": c, "d": None}]}  # noqa: E731


def exact_norm(*arrays: Array) -> float:
    return math.sqrt(math.fsum(float(x) ** 2 for array in arrays for x in array.ravel()))


def same_norm(actual: float, expected: float) -> bool:
    """Equal but for what a lane's running sum (of a 16th of a block) may lose; the root halves that."""
    return abs(actual - expected) <= BLOCK / 16 / 4 * math.ulp(expected)


# ---- the norm ----


@pytest.mark.parametrize("size", [0, 1, 2, 15, 16, 17, 1000, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK + 77])
def test_norm(size: int, dtype: str, isa: str, rng: np.random.Generator) -> None:
    g = nonzero(rng, size, dtype)
    with unchanged(g):
        assert same_norm(fastopt.global_norm(g), exact_norm(g))


def test_norm_of_a_large_array(dtype: str, isa: str) -> None:
    g = np.full(LARGE, 3.0, dtype)
    assert same_norm(fastopt.global_norm(g), 3.0 * math.sqrt(LARGE))


@pytest.mark.slow
def test_norm_of_more_elements_than_32_bits_count() -> None:
    """Zeros that nobody has written take no memory; those that are written lie on either side of the limits."""
    try:
        g = np.zeros(2**32 + BLOCK + 1, "float32")
    except MemoryError:
        pytest.skip("this system does not promise memory that it may not have")
    g[[2**31 - 1, 2**31, 2**32, -1]] = 1.0, 2.0, 4.0, 10.0
    assert fastopt.global_norm(g) == 11.0


def test_norm_of_single_precision_is_summed_in_double_precision(isa: str) -> None:
    """In single precision, the small ones would be lost beside the large one."""
    g = np.full(2**20, 1e-4, "float32")
    g[5] = 1.0
    assert fastopt.global_norm(g) == pytest.approx(math.sqrt(1 + (2**20 - 1) * float(g[0]) ** 2), rel=1e-14)


def test_norm_of_a_structure(rng: np.random.Generator) -> None:
    a, b, c = nonzero(rng, 5, "float32"), nonzero(rng, (2, 3)), nonzero(rng, ())
    for grads in (NESTED(a, b, c), [a, b, c], (a, [b, c]), iter([a, None, b, c]), {"x": a, "y": {"z": b, "u": c}}):
        assert same_norm(fastopt.global_norm(grads), exact_norm(a, b, c))


@pytest.mark.parametrize("grads", [[], {}, None, [None], np.zeros(0), [np.zeros((0, 3)), np.zeros(4)]])
def test_norm_of_nothing(grads: Any) -> None:
    assert fastopt.global_norm(grads) == 0.0
    assert fastopt.clip_grad_norm(grads, 1.0) == 0.0


@pytest.mark.parametrize("size", [1, 3, 100, BLOCK + 5])
@pytest.mark.parametrize("magnitude", [1e200, 1.7e308, 1e-200, 1e-300, 5e-324, 3e-310, 1e154, 1e-162])
def test_norm_neither_overflows_nor_underflows(magnitude: float, size: int, isa: str) -> None:
    if magnitude * math.sqrt(size) > 1.7e308:
        assert fastopt.global_norm(np.full(size, magnitude)) == math.inf
    else:
        assert same_norm(fastopt.global_norm(np.full(size, magnitude)), magnitude * math.sqrt(size))


@pytest.mark.parametrize("magnitude", [1e-38, 1.2e-38, 1e-45, 3e38])
def test_norm_of_extreme_single_precision(magnitude: float, isa: str) -> None:
    g = np.full(1000, magnitude, "float32")
    assert fastopt.global_norm(g) == pytest.approx(float(g[0]) * math.sqrt(1000), rel=1e-14)


def test_norm_over_the_whole_range_at_once(isa: str) -> None:
    assert same_norm(fastopt.global_norm([np.array([3e200]), np.array([1e-200, 0.0]), np.array([4e200])]), 5e200)
    assert same_norm(fastopt.global_norm([np.array([3e-200]), np.array([5e-324]), np.array([4e-200])]), 5e-200)


def test_nonfinite_norm(dtype: str, isa: str) -> None:
    for position in (0, 1, 16, 66):
        g = np.ones(67, dtype)
        g[position] = np.inf
        assert fastopt.global_norm(g) == np.inf
        g[position] = -np.inf
        assert fastopt.global_norm(g) == np.inf
        g[(position + 1) % 67] = np.nan
        assert math.isnan(fastopt.global_norm(g))
        g[position] = 1
        assert math.isnan(fastopt.global_norm([np.ones(3, dtype), g, np.ones(3, dtype)]))


@pytest.mark.parametrize("bad", [0.0, np.inf, -np.inf, np.nan])
def test_largest_magnitude(bad: float, dtype: str, isa: str, rng: np.random.Generator) -> None:
    """What decides about scaling and about finiteness, over several arrays and blocks; a NaN wins over all."""
    for position in (0, 63, BLOCK, 2 * BLOCK):
        grads = [nonzero(rng, 2 * BLOCK + 1, dtype), np.zeros(3, dtype), nonzero(rng, 17, dtype)]
        grads[0][position] = bad
        largest = clipping.gradient_plan(grads, writeable=False).max_abs(2)
        np.testing.assert_equal(largest, float(np.max(np.abs(np.concatenate(grads)))))
    assert clipping.gradient_plan(np.zeros(100, dtype), writeable=False).max_abs(1) == 0.0


# ---- clipping in place ----


@pytest.mark.parametrize("max_norm", [0.0, 1e-3, 1.0, 7.5])
def test_clip_grad_norm(max_norm: float, dtype: str, isa: str, rng: np.random.Generator) -> None:
    a, b, c = nonzero(rng, 50, dtype), nonzero(rng, (7, 9), dtype), np.asarray(nonzero(rng, (), dtype))
    before = [a.copy(), b.copy(), c.copy()]
    norm = fastopt.clip_grad_norm(NESTED(a, b, c), max_norm)
    assert same_norm(norm, exact_norm(*before))
    factor = max_norm / (norm + 1e-6)
    for clipped, original in zip((a, b, c), before, strict=True):
        np.testing.assert_allclose(clipped, original * factor, rtol=float(np.finfo(dtype).eps))
    assert fastopt.global_norm([a, b, c]) <= max_norm


@pytest.mark.parametrize("max_norm", [1e3, 1e300, math.inf])
def test_small_gradients_are_not_touched(max_norm: float, dtype: str, rng: np.random.Generator) -> None:
    grads = [nonzero(rng, 50, dtype), nonzero(rng, 3, dtype)]
    with unchanged(grads):
        assert same_norm(fastopt.clip_grad_norm(grads, max_norm), exact_norm(*grads))


def test_a_norm_just_at_the_bound_is_clipped_by_torchs_margin() -> None:
    g = np.array([3.0, 4.0])
    assert fastopt.clip_grad_norm(g, 5.0) == 5.0
    assert g.tolist() == [3.0 * (5.0 / (5.0 + 1e-6)), 4.0 * (5.0 / (5.0 + 1e-6))]


@pytest.mark.parametrize("magnitude", [1e200, 1e-200])
def test_clipping_extreme_gradients(magnitude: float, isa: str) -> None:
    g = np.full(4, magnitude)
    assert fastopt.clip_grad_norm(g, magnitude) == pytest.approx(2 * magnitude)
    # Below torch's 1e-6, nothing is ever clipped but to even smaller norms.
    factor = magnitude / (2 * magnitude + 1e-6)
    assert g.tolist() == pytest.approx([magnitude * factor] * 4)


@pytest.mark.parametrize("value", [0.0, 0.5, 1e-300, 1e300, math.inf])
def test_clip_grad_value(value: float, dtype: str, isa: str, rng: np.random.Generator) -> None:
    a, b = nonzero(rng, 67, dtype), nonzero(rng, (3, 2), dtype)
    bound = np.dtype(dtype).type(min(value, float(np.finfo(dtype).max)))
    expected = [np.clip(a, -bound, bound), np.clip(b, -bound, bound)]
    fastopt.clip_grad_value({"a": a, "b": [b, None]}, value)
    assert a.tolist() == expected[0].tolist()
    assert b.tolist() == expected[1].tolist()


def test_clip_grad_value_of_nonfinite_entries(dtype: str, isa: str) -> None:
    g = np.array([np.inf, -np.inf, np.nan, 0.25, -0.0] * 9, dtype)
    fastopt.clip_grad_value(g, 0.5)
    assert g[:2].tolist() == [0.5, -0.5]
    assert np.isnan(g[2::5]).all()
    assert (g[3::5] == 0.25).all()
    assert np.signbit(g[4::5]).all()


def test_clip_grad_norm_of_nonfinite_gradients_is_torchs(dtype: str, isa: str) -> None:
    """A NaN spoils everything; an infinity wipes everything out and leaves a NaN in its own place."""
    g, other = np.array([1.0, np.nan, 1.0], dtype), np.ones(3, dtype)
    assert math.isnan(fastopt.clip_grad_norm([g, other], 1.0))
    assert np.isnan(g).all()
    assert np.isnan(other).all()
    g, other = np.array([1.0, -np.inf, 1.0], dtype), np.ones(3, dtype)
    assert fastopt.clip_grad_norm([g, other], 1.0) == np.inf
    assert np.isnan(g).tolist() == [False, True, False]
    assert other.tolist() == [0.0] * 3
    assert g[0] == g[2] == 0.0


# ---- bad input ----

CLIPPERS: list[Any] = [
    pytest.param(lambda grads, bound=1.0: fastopt.clip_grad_norm(grads, bound), id="norm"),
    pytest.param(lambda grads, bound=1.0: fastopt.clip_grad_value(grads, bound), id="value"),
]


@pytest.mark.parametrize("bound", [-1, -1e-300, math.nan, -math.inf, None, "1", True, 1j], ids=repr)
@pytest.mark.parametrize("clip", CLIPPERS)
def test_bad_bound(clip: Callable[..., Any], bound: Any) -> None:
    g = np.array([3.0, 4.0])
    with unchanged(g), pytest.raises(ValueError, match=rf"^Invalid (max_norm|clip_value) value: {bound}$"):
        clip(g, bound)


@pytest.mark.parametrize("bound", [1, np.float32(1), np.int64(1), np.array(1.0)])
@pytest.mark.parametrize("clip", CLIPPERS)
def test_every_kind_of_number_is_a_bound(clip: Callable[..., Any], bound: Any) -> None:
    g, same = np.array([3.0, 4.0]), np.array([3.0, 4.0])
    clip(g, bound)
    clip(same, 1.0)
    assert g.tolist() == same.tolist()


@pytest.mark.parametrize("clip", CLIPPERS)
def test_bad_gradients(clip: Callable[..., Any]) -> None:
    fine = np.array([30.0, 40.0])
    frozen = fine.copy()
    frozen.flags.writeable = False
    for bad, message in [
        (np.ones(3, int), r"grads\['b'\]\[1\]: expected dtype"),
        (np.ones(6)[::2], r"grads\['b'\]\[1\]: expected a contiguous array"),
        (frozen, r"grads\['b'\]\[1\]: expected a writeable array"),
        (fine[1:], r"grads\['a'\] and grads\['b'\]\[1\] overlap in memory"),
        (fine, r"grads\['a'\] and grads\['b'\]\[1\] overlap in memory"),
        (1.5, r"grads\['b'\]\[1\]: expected a NumPy array, got float"),
    ]:
        with unchanged(fine), pytest.raises((TypeError, ValueError), match=message):
            clip({"a": fine, "b": [None, bad]})


def test_the_norm_may_be_asked_of_what_cannot_be_written() -> None:
    g = np.array([3.0, 4.0])
    g.flags.writeable = False
    assert fastopt.global_norm(g) == 5.0
    assert fastopt.global_norm([g, g]) == math.sqrt(50)


# ---- clipping inside the step ----


@pytest.mark.parametrize("bounds", [{"clip_norm": 2.0}, {"clip_value": 0.5}, {"clip_norm": 4.0, "clip_value": 0.6}])
@first_case_of_each_rule
def test_a_step_that_clips_is_clipping_and_a_step(
    case: Case, bounds: dict[str, float], dtype: str, isa: str, rng: np.random.Generator
) -> None:
    inside, outside = nonzero(rng, 67, dtype), np.empty(67, dtype)
    outside[:] = inside
    clipping, plain = case.make(inside, **{"clip_norm": None, **bounds}), case.make(outside, clip_norm=None)
    for _ in range(4):
        g = nonzero(rng, 67, dtype)
        with unchanged(g):
            info = clipping.step(g)
        if "clip_norm" in bounds:
            assert info.grad_norm == fastopt.clip_grad_norm(g, bounds["clip_norm"])
            assert info.clipped
        if "clip_value" in bounds:
            fastopt.clip_grad_value(g, bounds["clip_value"])
        plain.step(g)
    # Clipped gradients in memory are rounded once more than those that stay in registers.
    scale = np.maximum(np.abs(outside), 1.0)
    assert (np.abs(inside - outside) <= 4 * 4 * ULPS[dtype] * np.finfo(dtype).eps * scale).all()


def test_the_norm_is_of_all_groups_together_and_of_the_gradients_as_given(dtype: str) -> None:
    opt = fastopt.SGD(
        [{"params": np.ones(1, dtype), "weight_decay": 5.0}, {"params": [np.ones(1, dtype), np.ones(1, dtype)]}],
        clip_norm=1.0,
        maximize=True,
    )
    grads = [np.full(1, value, dtype) for value in (2.0, 3.0, 6.0)]
    assert opt.step(grads).grad_norm == 7.0
    assert opt.step([grads[0], [None, grads[2]]]).grad_norm == math.sqrt(40)


def test_weight_decay_is_not_clipped(dtype: str) -> None:
    w = np.full(2, 100.0, dtype)
    fastopt.SGD(w, lr=1.0, weight_decay=0.5, clip_norm=1e-3, clip_value=1e-3).step(np.ones(2, dtype))
    assert w.tolist() == pytest.approx([50.0] * 2, abs=2e-3)


def test_bounds_may_be_schedules_and_may_be_edited() -> None:
    w = np.zeros(1)
    opt = fastopt.SGD(w, lr=1.0, clip_value=lambda step: 1.0 / (1 + step), clip_norm=lambda step: 10.0 - step)
    moves: list[float] = []
    for _ in range(3):
        before = float(w[0])
        assert opt.step(np.array([9.5])).clipped == (len(moves) >= 1)
        moves.append(before - float(w[0]))
    assert moves == pytest.approx([1.0, 1 / 2, 1 / 3])
    opt.clip_value = None
    opt.clip_norm = 0.5
    before = float(w[0])
    assert opt.step(np.array([2.0])) == (1.0, 2.0, True, False)
    assert before - w[0] == pytest.approx(0.5, rel=1e-6)
    opt.clip_norm = None
    assert opt.step(np.array([2.0])) == (1.0, None, False, False)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize(
    "case",
    [
        case
        for case in FIRST_OF_EACH_RULE
        if "decoupled_weight_decay" in case.cls.method.options
        and not case.measures
        and "z" not in case.cls.method.states
    ],
)
def test_infinite_parameters_stay_infinite(case: Case, weight_decay: float, dtype: str, isa: str) -> None:
    """Zero weight decay multiplies nothing: zero times infinity would be NaN."""
    w = np.array([np.inf, -np.inf, 1.0] * 15, dtype)
    decoupled = {} if case.cls.method.options["decoupled_weight_decay"].fixed else {"decoupled_weight_decay": True}
    opt = case.make(w, weight_decay=weight_decay, **decoupled)
    for _ in range(3):
        opt.step(np.full(45, 2.0, dtype))
    assert (w[0::3] == np.inf).all()
    assert (w[1::3] == -np.inf).all()
    assert np.isfinite(w[2::3]).all()
    if weight_decay == 0:
        coupled = np.array([np.inf, -np.inf], dtype)
        case.make(coupled).step(np.ones(2, dtype))
        assert coupled.tolist() == [np.inf, -np.inf]


def test_clipping_reads_gradients_only(dtype: str) -> None:
    g = nonzero(np.random.default_rng(0), 3 * BLOCK + 1, dtype)
    given = bits([g])
    fastopt.SGD(np.zeros_like(g), clip_norm=1e-3, clip_value=1e-6, nonfinite="raise").step(g)
    assert bits([g]) == given
