"""bfloat16 and float16: conversions to the last bit, arithmetic in float32, states in either dtype."""

import math
from typing import Any

import pytest
from cases import Case

torch = pytest.importorskip("torch")

from torch_cases import CASES, assert_equal, errors_in_ulps, every_optimizer, nonzero, ours, takes_grad_dtype, theirs  # noqa: E402

import fastopt.torch  # noqa: E402
from fastopt import _core  # noqa: E402

half = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


def all_values(dtype: Any) -> Any:
    """All 65536 bit patterns."""
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)


def same_numbers(actual: Any, expected: Any) -> bool:
    """Whether two tensors agree to the last bit; one NaN is as good as another."""
    a_nan = 0x7FFF
    actual, expected = (torch.where(values.isnan(), a_nan, values.view(torch.int16)) for values in (actual, expected))
    return bool(torch.equal(actual, expected))


@half
def test_every_value_survives_the_way_to_float32_and_back(dtype: Any, isa: str) -> None:
    """p = p - 0*g is what it was."""
    values = all_values(dtype)
    param = values.clone().requires_grad_()
    param.grad = torch.zeros_like(values)
    fastopt.torch.SGD([param], lr=0.0).step()
    # (-0 - 0*0 is 0: the only value that arithmetic changes.)
    assert same_numbers(param.detach() + 0.0, values + 0.0)


@half
def test_every_gradient_is_read_as_what_it_is(dtype: Any, isa: str) -> None:
    """p = 0 + 1*g."""
    param = torch.zeros(2**16, dtype=dtype, requires_grad=True)
    param.grad = all_values(dtype)
    fastopt.torch.SGD([param], lr=1.0, maximize=True).step()
    assert same_numbers(param.detach() + 0.0, all_values(dtype) + 0.0)


def hard_to_round(dtype: Any) -> Any:
    """Float32 numbers at, and next to, every number of the dtype and every middle between two, and random ones."""
    exact = all_values(dtype).float()
    numbers = exact[exact.isfinite()].unique()
    middles = (numbers[1:].double() + numbers[:-1].double()) / 2
    largest = numbers[-1].double() + (numbers[-1].double() - numbers[-2].double()) / 2
    edges = torch.cat([numbers.double(), middles, torch.stack([largest, -largest])]).float()
    up, down = (torch.nextafter(edges, torch.full_like(edges, toward)) for toward in (math.inf, -math.inf))
    generator = torch.Generator().manual_seed(1)
    patterns = torch.randint(-(2**31), 2**31, (2**16,), generator=generator, dtype=torch.int64)
    return torch.cat([edges, up, down, patterns.to(torch.int32).view(torch.float32), exact[~exact.isfinite()]])


@half
def test_float32_is_rounded_to_the_nearest_and_ties_to_even(dtype: Any, isa: str) -> None:
    """With a velocity v in float32, p = 0 - 1*v: any float32 is what a step has to round."""
    values = hard_to_round(dtype)
    param = torch.zeros(values.shape, dtype=dtype, requires_grad=True)
    param.grad = torch.zeros_like(param)
    opt = fastopt.torch.SGD([param], lr=1.0, momentum=1.0, state_dtype=torch.float32)
    opt.state[param]["momentum_buffer"] = -values
    opt.step()
    assert same_numbers(param.detach() + 0.0, values.to(dtype) + 0.0)


WRITTEN_BEFORE = {"lamb", "stable_adamw", "prodigy"}
"""Rules that step by states as they were stored when they were measured: MEASURE(..., WRITTEN) of csrc/rules.def."""


@pytest.mark.parametrize("case", [case for case in CASES if case.rule not in WRITTEN_BEFORE])
@pytest.mark.parametrize("state_dtype", [None, torch.float32], ids=["states in half", "states in float32"])
@half
def test_a_step_is_the_float32_step_rounded(case: Case, dtype: Any, state_dtype: Any) -> None:
    """To the last bit, for parameters and states."""
    if state_dtype is None and (case.rule in _core.SMALL or case.optimizer == "Adafactor"):
        pytest.skip("small states are settled, and stored, before the step reads them")
    generator = torch.Generator().manual_seed(0)
    start = [nonzero(shape, dtype, generator) for shape in [(7, 5), (), (0,), (131,)]]
    narrow = [values.clone().requires_grad_() for values in start]
    wide = [values.float().requires_grad_() for values in start]
    opt = ours(case.optimizer)(narrow, **case.options, state_dtype=state_dtype)
    expected = ours(case.optimizer)(wide, **case.options)
    for one, other in zip(narrow, wide, strict=True):
        for name, value in opt.state.get(one, {}).items():  # Adagrad's first states, rounded
            expected.state[other][name].copy_(value)
    for step in range(5):
        for one, other in zip(narrow, wide, strict=True):
            one.grad = nonzero(one.shape, dtype, generator)
            other.grad = one.grad.float()
        if step == 3:
            narrow[1].grad = wide[1].grad = None
        opt.step()
        expected.step()
        assert_equal(narrow, [values.detach().to(dtype) for values in wide])
        for one, other in zip(narrow, wide, strict=True):
            other.data.copy_(one)
            for name in expected.state.get(other, {}):
                state = opt.state[one][name]
                if name in case.cls.method.states:
                    assert state.dtype == (state_dtype or dtype)
                    assert_equal(state, expected.state[other][name].to(state.dtype))
                    expected.state[other][name].copy_(state)


@pytest.mark.parametrize("name", ["Adagrad", "Adam", "AdamW"])
@half
def test_it_is_torchs_fused_step(name: str, dtype: Any) -> None:
    """torch's fused kernels of these compute in float32 too; sums in another order may round to the neighbour."""
    generator = torch.Generator().manual_seed(0)
    values = nonzero((1000,), dtype, generator)
    param, twin = values.clone().requires_grad_(), values.clone().requires_grad_()
    opt, other = ours(name)([param], lr=0.1), theirs(name)([twin], lr=0.1, fused=True)
    for _ in range(3):
        param.grad = nonzero(param.shape, dtype, generator)
        twin.grad = param.grad.clone()
        opt.step()
        other.step()
        errors = errors_in_ulps(param.detach(), twin.detach(), twin.detach().abs().clamp(min=1))
        assert errors.max() <= 1
        assert (errors == 0).double().mean() > 0.95
        param.data.copy_(twin)
        for key, state in other.state[twin].items():
            opt.state[param][key].copy_(state)


@every_optimizer
@half
def test_parameters_move(name: str, dtype: Any) -> None:
    """(torch 2.13's fused SGD leaves bfloat16 parameters on the CPU where they are.)"""
    param = torch.ones(100, dtype=dtype, requires_grad=True)
    param.grad = torch.ones_like(param)
    ours(name)([param], lr=2.0).step()
    assert (param < 1).all()


@every_optimizer
@half
def test_exact_states_stay_exact_over_checkpoints(name: str, dtype: Any) -> None:
    """Small updates of a moving average are lost in bfloat16, and kept in float32, also when it is loaded."""
    options = {"momentum": 0.9} if name in ("SGD", "RMSprop") else {}
    generator = torch.Generator().manual_seed(0)
    param = nonzero((50,), dtype, generator).requires_grad_()
    opt = ours(name)([param], lr=0.01, state_dtype=torch.float32, **options)
    for _ in range(3):
        param.grad = nonzero(param.shape, dtype, generator)
        opt.step()
    copy = param.detach().clone().requires_grad_()
    resumed = ours(name)([copy], **options)
    resumed.load_state_dict(opt.state_dict())
    for _ in range(3):
        param.grad = nonzero(param.shape, dtype, generator)
        copy.grad = param.grad.clone()
        opt.step()
        resumed.step()
    assert_equal(copy, param)
    assert_equal(resumed.state_dict()["state"], opt.state_dict()["state"])
    assert {state.dtype for state in resumed.state[copy].values()} == {torch.float32}


@half
def test_states_are_widened_where_float32_is_asked_for(dtype: Any) -> None:
    param = torch.ones(9, dtype=dtype, requires_grad=True)
    param.grad = torch.ones_like(param)
    narrow = fastopt.torch.Adam([param])
    narrow.step()
    wide = fastopt.torch.Adam([param], state_dtype=torch.float32)
    wide.load_state_dict(narrow.state_dict())
    expected = wide.state[param]["exp_avg"].float() * 0.9 + 0.1
    wide.step()
    assert wide.state[param]["exp_avg"].dtype == torch.float32
    torch.testing.assert_close(wide.state[param]["exp_avg"], expected)


def test_state_dtype_changes_nothing_for_other_dtypes() -> None:
    params = [
        torch.ones(3, dtype=dtype, requires_grad=True) for dtype in (torch.float32, torch.float64, torch.complex64)
    ]
    opt = fastopt.torch.Adagrad(params, state_dtype=torch.float32)
    for param in params:
        param.grad = torch.ones_like(param)
    opt.step()
    assert [opt.state[param]["sum"].dtype for param in params] == [param.dtype for param in params]


def test_adagrads_first_states_are_of_the_dtype_asked_for() -> None:
    param = torch.ones(3, dtype=torch.bfloat16, requires_grad=True)
    param.grad = torch.ones_like(param)
    opt = fastopt.torch.Adagrad([param], initial_accumulator_value=0.1, state_dtype=torch.float32)
    opt.step()
    assert opt.state[param]["sum"].dtype == torch.float32
    torch.testing.assert_close(opt.state[param]["sum"], torch.full((3,), 1.1))


@pytest.mark.parametrize("bad", [torch.float64, torch.float16, "half"])
def test_another_state_dtype_is_refused(bad: Any) -> None:
    with pytest.raises(
        ValueError,
        match=r"Invalid state_dtype: expected None, 'float32', 'bfloat16'",
    ):
        fastopt.torch.Adam([torch.zeros(1, requires_grad=True)], state_dtype=bad)


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental:UserWarning")
def test_half_complex_parameters() -> None:
    param = torch.tensor([1 + 2j, -3 + 0.5j], dtype=torch.complex32, requires_grad=True)
    param.grad = torch.tensor([2 - 4j, 8 + 1j], dtype=torch.complex32)
    fastopt.torch.SGD([param], lr=0.25).step()
    assert param.detach().to(torch.complex64).tolist() == [0.5 + 3j, -5 + 0.25j]


@takes_grad_dtype
@pytest.mark.parametrize("grad_dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("gaps", [False, True])
def test_gradients_in_a_precision_of_their_own_are_not_rounded(dtype: Any, grad_dtype: Any, gaps: bool) -> None:
    """The first velocity is the gradient."""
    values = torch.linspace(-1.0, 1.0, 1500).reshape(3, 500)
    values = values.repeat_interleave(2, 1)[:, ::2] if gaps else values
    param = torch.zeros_like(values, dtype=dtype).requires_grad_()
    param.grad_dtype = grad_dtype
    param.grad = values.to(grad_dtype)
    opt = fastopt.torch.SGD([param], lr=1.0, momentum=0.9, state_dtype=torch.float32)
    opt.step()
    assert_equal(opt.state[param]["momentum_buffer"], values.to(grad_dtype).float())
    assert_equal(param.grad, values.to(grad_dtype))
