"""Every rule with every option, on every dtype and instruction set, against the oracle in float64."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import reference
from arrays import BLOCK, LARGE, SIZES, ULPS, Guarded, assert_close, joined, nonzero
from cases import CASES, Case, every_case, first_case_of_each_rule

from fastopt import Optimizer, StepInfo, _core


def joined_state(opt: Optimizer) -> reference.State:
    """The state of all parameters, end to end; empty before the first step."""
    states = list(opt.state_dict()["state"].values())
    names = states[0].keys() - {"step"} if states else ()
    return {
        name: joined(state[name] for state in states) if states[0][name].ndim else states[0][name] for name in names
    }


def kept_by(opt: Optimizer) -> dict[str, Any]:
    """The numbers that the group keeps from step to step."""
    return {name: opt.param_groups[0][name] for name in opt.method.advances}


def checked_norm(info: StepInfo, g: reference.Array) -> float:
    """The norm that a step found, 0 where it looked for none.

    It is compared here, with a tolerance of its own: a sum over all gradients, of whose rounding every element then
    has its part.
    """
    if info.grad_norm is None:
        return 0.0
    assert math.isclose(info.grad_norm, math.sqrt(math.fsum(g**2)), rel_tol=1e-14)
    return info.grad_norm


def expected_step(
    case: Case,
    sizes: Sequence[int],
    p: reference.Array,
    g: reference.Array,
    state: reference.State,
    t: int,
    norm: float,
    kept: dict[str, Any],
) -> tuple[reference.Array, reference.State]:
    """The oracle's step of the parameters of these sizes, all end to end; the group has kept these numbers."""
    if _core.SCOPES.get(case.rule) == "plan":
        sizes = [sum(sizes)]
    clip_norm, clip_value = case.clipping_at(t - 1)
    params, states = [], []
    for part in parts_of(sizes):
        one = reference.step(
            case.rule,
            p[part],
            g[part],
            {name: values[part] if values.ndim else values for name, values in state.items()},
            t,
            {**case.options_at(t - 1), **kept},
            clip_coefficient=reference.clip_coefficient(norm, clip_norm),
            clip_value=clip_value,
        )
        params.append(one[0])
        states.append(one[1])
    names = states[0]
    return np.concatenate(params), {
        name: np.concatenate([one[name] for one in states]) if states[0][name].ndim else states[0][name]
        for name in names
    }


def parts_of(sizes: Sequence[int]) -> list[slice]:
    ends = np.cumsum(sizes)
    return [slice(int(end) - size, int(end)) for end, size in zip(ends, sizes, strict=True)]


def check_steps(case: Case, sizes: Sequence[int], dtype: str, rng: np.random.Generator, steps: int) -> None:
    """Compare step by step: the oracle goes on from what the kernel left, so that errors do not add up."""
    params, grads = Guarded(sizes, dtype, first_offset=1), Guarded(sizes, dtype, first_offset=6)
    params.fill(rng)
    opt = case.make(params.arrays)
    for t in range(1, steps + 1):
        grads.fill(rng)
        p, g, state, kept = joined(params.arrays), joined(grads.arrays), joined_state(opt), kept_by(opt)
        given = grads.buffer.tobytes()
        info = opt.step(grads.arrays)
        expected, expected_state = expected_step(case, sizes, p, g, state, t, checked_norm(info, g), kept)
        # Parameters and updates are of order one, and up to three of them may nearly cancel.
        assert_close(joined(params.arrays), expected, np.maximum(np.abs(p), 1.0), dtype, f"step {t}: parameter")
        actual_state = joined_state(opt)
        assert actual_state.keys() == expected_state.keys()
        for name, values in expected_state.items():
            summand = np.abs(values).max() if case.cancels else state.get(name, 0.0)
            assert_close(actual_state[name], values, summand, dtype, f"step {t}: {name}")
        assert grads.buffer.tobytes() == given, "a gradient was written"
    params.assert_intact()


@every_case
def test_steps_match_the_oracle(case: Case, dtype: str, isa: str, rng: np.random.Generator) -> None:
    check_steps(case, SIZES, dtype, rng, steps=6)


@first_case_of_each_rule
def test_steps_match_the_oracle_around_a_block(case: Case, dtype: str, isa: str, rng: np.random.Generator) -> None:
    check_steps(case, [BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 1], dtype, rng, steps=2)


@first_case_of_each_rule
def test_large_array_matches_the_oracle(case: Case, dtype: str, rng: np.random.Generator) -> None:
    check_steps(case, [LARGE], dtype, rng, steps=1)


@pytest.mark.slow
@first_case_of_each_rule
def test_large_arrays_match_the_oracle(case: Case, dtype: str, isa: str, rng: np.random.Generator) -> None:
    # (Of so many averages some nearly cancel at the second step: their signs are those of rounding.)
    check_steps(case, [LARGE], dtype, rng, steps=1 if case.rule == "signum" else 2)


@every_case
def test_many_steps_stay_with_the_oracle(case: Case, dtype: str, rng: np.random.Generator) -> None:
    """The oracle goes its own way here; the errors of the steps may add up."""
    steps, size = 200, 37
    p = nonzero(rng, size, dtype)
    opt = case.make(p)
    expected, state, scale = joined([p]), reference.State(), np.abs(p).astype(np.float64)
    for t, g in enumerate(nonzero(rng, (steps, size), dtype), start=1):
        kept = kept_by(opt)
        norm = checked_norm(opt.step(g), joined([g]))
        expected, state = expected_step(case, [size], expected, joined([g]), state, t, norm, kept)
        scale = np.maximum(scale, np.abs(expected))
    assert_close(joined([p]), expected, scale, dtype, "parameter", ulps=ULPS[dtype] * steps / 4)


# (Without beta, FTRL divides by a root that such gradients do not show in. So does its reference.)
@pytest.mark.parametrize(
    "case", [case for case in CASES if _core.RULES[case.rule][1] > 0 and case.all_options.get("beta") != 0]
)
def test_states_below_the_normal_range_become_zero_where_no_parameter_shows_it(
    case: Case, dtype: str, isa: str
) -> None:
    if case.rule == "prodigy" and dtype == "float32":
        pytest.skip("its epsilon, times d, is too small to hide them")
    if case.rule == "lamb" and case.options.get("decoupled_weight_decay"):
        pytest.skip("its ratio makes a step of the smallest states, as long as their norm is not zero")
    smallest = float(np.finfo(dtype).smallest_normal)
    p = np.ones(67, dtype)
    opt = case.make(p)
    opt.step(np.full(67, smallest * 4, dtype))
    for _ in range(60):
        opt.step(np.full(67, smallest / 8, dtype))
    state = joined_state(opt)
    for name in case.cls.method.states.keys() & state.keys():
        values = state[name]
        shows = does_it_show(case, 62, {key: value[:1] if value.ndim else value for key, value in state.items()}, name)
        assert ((values == 0) | (np.abs(values) >= smallest) | shows).all(), name
        kind = opt.method.states[name].kind
        assert not shows or kind == "square" or values.all(), name  # (squares underflow by themselves)
    assert np.isfinite(p).all()


def does_it_show(case: Case, t: int, state: reference.State, name: str) -> bool:
    """Whether it makes a difference to a parameter that a state is tiny, not zero: as the sign of a moment does."""
    options = {**case.options_at(t - 1), "weight_decay": 0, "cautious": False, "cautious_decay": False}
    moved = [
        [reference.step(case.rule, np.ones(1), np.full(1, g), {**state, name: size}, t, options)[0] for g in (-1, 0, 1)]
        for size in (np.zeros(1), np.full(1, 1e-60))
    ]
    return bool(np.abs(np.array(moved[0]) - np.array(moved[1])).max() > 1e-6)
