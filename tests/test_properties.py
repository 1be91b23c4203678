"""What holds for every case, every shape and every dtype, looked for by hypothesis."""

import copy
from typing import Any

import numpy as np
import reference
from arrays import DTYPES, Array, assert_close, bits, fingerprint, joined, unchanged
from cases import CASES, Case
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

import fastopt
from fastopt import _core


def knows_elements_alone(case: Case) -> bool:
    """Whether an element's step, whatever the parameter's shape, depends on no other."""
    if case.cls.method.between and case.options.get("use_muon") is not False:
        return False
    return not (case.clips_by_norm or case.measures or case.rule in _core.SMALL)


ELEMENTWISE = [case for case in CASES if knows_elements_alone(case)]

cases = st.sampled_from(CASES)
elementwise_cases = st.sampled_from(ELEMENTWISE)
dtypes = st.sampled_from(DTYPES)
shapes = arrays_of.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=9)
seeds = st.integers(0, 2**32 - 1)


@st.composite
def placed(draw: st.DrawFn, values: Array) -> Array:
    """The values in C or Fortran order, at some number of elements past where NumPy would put them."""
    offset = draw(st.integers(0, 17))
    buffer = np.empty(offset + values.size, values.dtype)
    fortran = draw(st.booleans())
    place = buffer[offset:].reshape(values.shape[::-1]).T if fortran else buffer[offset:].reshape(values.shape)
    place[...] = values
    return place


def like(param: Array, values: Array) -> Array:
    """The values, in the parameter's memory order."""
    found = np.empty_like(param)
    found[...] = values
    return found


def drawn(seed: int, shape: tuple[int, ...], dtype: str, scale: float = 1.0) -> Array:
    return np.asarray(np.random.default_rng(seed).normal(0, scale, shape)).astype(dtype)


structures = st.recursive(
    shapes,
    lambda inner: (
        st.lists(inner, min_size=1, max_size=3)
        | st.dictionaries(st.sampled_from("abcd"), inner, min_size=1, max_size=3)
    ),
    max_leaves=6,
)


def mapped(structure: Any, make: Any) -> Any:
    """The structure with `make(shape)` for each shape."""
    if isinstance(structure, dict):
        return {key: mapped(entry, make) for key, entry in structure.items()}
    if isinstance(structure, list):
        return [mapped(entry, make) for entry in structure]
    return make(structure)


@given(st.data(), elementwise_cases, dtypes, shapes, seeds)
def test_any_shape_order_and_address_matches_the_oracle(
    data: st.DataObject, case: Case, dtype: str, shape: tuple[int, ...], seed: int
) -> None:
    p = data.draw(placed(drawn(seed, shape, dtype)))
    g = like(p, drawn(seed + 1, shape, dtype))
    expected, _ = reference.step(
        case.rule, joined([p]), joined([g]), {}, 1, case.options_at(0), clip_value=case.clipping_at(0)[1]
    )
    with unchanged(g):
        case.make(p).step(g)
    # The first update is the rate times something up to 10 (rmsprop: 1/sqrt(1 - alpha)).
    assert_close(joined([p]), expected, np.maximum(np.abs(expected), 1.0), dtype, "parameter", ulps=16)


@given(cases, dtypes, structures, seeds)
def test_a_structure_is_as_good_as_the_flat_list(case: Case, dtype: str, structure: Any, seed: int) -> None:
    counter = iter(range(seed, seed + 100))
    params = mapped(structure, lambda shape: drawn(next(counter), shape, dtype))
    grads = mapped(structure, lambda shape: drawn(next(counter), shape, dtype))
    nested = case.make(copy.deepcopy(params))
    flat_params = case.make(params).param_groups[0]["params"]
    flat_grads = case.make(grads).param_groups[0]["params"]
    flat = case.make([param.copy() for param in flat_params])
    for _ in range(2):
        assert nested.step(grads) == flat.step(flat_grads)
    assert fingerprint(nested) == fingerprint(flat)


@given(elementwise_cases, dtypes, st.integers(1, 100), seeds)
def test_elements_do_not_know_of_each_other(case: Case, dtype: str, size: int, seed: int) -> None:
    """A shuffled array takes the same steps, shuffled."""
    order = np.random.default_rng(seed).permutation(size)
    p, shuffled = drawn(seed, (size,), dtype), drawn(seed, (size,), dtype)[order]
    opt, other = case.make(p), case.make(shuffled)
    for step in range(3):
        g = drawn(seed + 1 + step, (size,), dtype)
        opt.step(g)
        other.step(g[order])
    assert bits([p[order]]) == bits([shuffled])


@given(cases, dtypes, shapes, seeds)
def test_a_rate_of_zero_leaves_parameters_as_they_are(
    case: Case, dtype: str, shape: tuple[int, ...], seed: int
) -> None:
    assume(case.rule != "rprop")  # whose rate is where its steps begin
    assume(not case.options.get("fixed_decay"))  # which the rate does not scale
    p = drawn(seed, shape, dtype)
    before = p.copy()
    opt = case.make(p, lr=0.0)
    for step in range(3):
        opt.step(drawn(seed + 1 + step, shape, dtype))
    assert (p == before).all()


@given(elementwise_cases, dtypes, st.integers(1, 70), st.data(), seeds)
def test_a_nan_stays_at_its_own_index(case: Case, dtype: str, size: int, data: st.DataObject, seed: int) -> None:
    index = data.draw(st.integers(0, size - 1))
    in_gradient = data.draw(st.booleans())
    p, clean = drawn(seed, (size,), dtype), drawn(seed, (size,), dtype)
    opt, other = case.make(p), case.make(clean)
    if not in_gradient:
        p[index] = np.nan
    for step in range(2):
        g = drawn(seed + 1 + step, (size,), dtype)
        other.step(g)
        if in_gradient and step == 0:
            g[index] = np.nan
        opt.step(g)
    assert np.isnan(p[index])
    elsewhere = np.arange(size) != index
    assert bits([p[elsewhere]]) == bits([clean[elsewhere]])


@given(cases, dtypes, st.lists(shapes, min_size=1, max_size=4), st.integers(0, 3), seeds)
def test_round_trip_of_the_state(case: Case, dtype: str, sizes: list[tuple[int, ...]], steps: int, seed: int) -> None:
    rng = np.random.default_rng(seed)

    def grads() -> list[Array | None]:
        return [None if rng.random() < 0.3 else np.asarray(rng.normal(size=size)).astype(dtype) for size in sizes]

    opt = case.make([drawn(seed, size, dtype) for size in sizes])
    for _ in range(steps):
        opt.step(grads())
    again = case.make([param.copy() for param in opt.param_groups[0]["params"]])
    again.load_state_dict(opt.state_dict())
    assert fingerprint(again) == fingerprint(opt)
    for _ in range(2):
        each = grads()
        assert again.step(each) == opt.step(each)
    assert fingerprint(again) == fingerprint(opt)


@given(elementwise_cases, dtypes, st.integers(1, 60), seeds)
def test_maximizing_is_minimizing_the_opposite(case: Case, dtype: str, size: int, seed: int) -> None:
    p, q = drawn(seed, (size,), dtype), drawn(seed, (size,), dtype)
    climbing = not case.options.get("maximize", False)
    opt, other = case.make(p), case.make(q, maximize=climbing)
    for step in range(3):
        g = drawn(seed + 1 + step, (size,), dtype)
        opt.step(g)
        other.step(-g)
    assert bits([p]) == bits([q])


@given(dtypes, st.lists(shapes, max_size=4), seeds, st.floats(1e-6, 100))
def test_clipping_bounds_the_norm_and_keeps_the_direction(
    dtype: str, sizes: list[tuple[int, ...]], seed: int, max_norm: float
) -> None:
    grads = [drawn(seed + index, size, dtype) for index, size in enumerate(sizes)]
    before = joined(grads) if grads else np.zeros(0)
    norm = fastopt.clip_grad_norm(grads, max_norm)
    after = joined(grads) if grads else np.zeros(0)
    assert abs(norm - np.linalg.norm(before)) <= 1e-13 * norm
    assert np.linalg.norm(after) <= max(max_norm, 0) * (1 + float(np.finfo(dtype).eps))
    assert fastopt.global_norm(grads) <= norm
    assume(norm > 0)
    factor = min(1.0, max_norm / (norm + 1e-6))
    np.testing.assert_allclose(after, before * factor, rtol=2 * float(np.finfo(dtype).eps), atol=1e-40)


any_float64 = st.floats(allow_nan=True, allow_infinity=True, allow_subnormal=True)


@given(arrays_of.arrays(np.float64, st.integers(0, 40), elements=any_float64))
def test_norm_of_any_numbers(g: Array) -> None:
    norm = fastopt.global_norm(g)
    if np.isnan(g).any():
        assert np.isnan(norm)
    elif np.isinf(g).any():
        assert norm == np.inf
    elif not g.any():
        assert norm == 0
    else:
        _, exponent = np.frexp(np.abs(g).max())
        with np.errstate(over="ignore"):  # the norm may be beyond the largest number
            scaled = np.ldexp(np.linalg.norm(np.ldexp(g, -int(exponent))), int(exponent))
        assert norm == scaled or abs(norm - scaled) <= 1e-14 * norm + 5e-324


@given(elementwise_cases, arrays_of.arrays(np.float32, st.integers(1, 40), elements=st.floats(width=32)), seeds)
def test_any_gradient_whatever_leaves_the_others_alone(case: Case, g: Array, seed: int) -> None:
    """NaN, infinities, subnormals, the largest numbers: no element sees what another one is."""
    p = drawn(seed, (g.size,), "float32")
    alone = [np.array([value]) for value in p]
    opt, others = case.make(p), [case.make(each) for each in alone]
    for _ in range(2):
        opt.step(g)
        for other, value in zip(others, g, strict=True):
            other.step(np.array([value]))
    np.testing.assert_array_equal(p, np.concatenate(alone))
