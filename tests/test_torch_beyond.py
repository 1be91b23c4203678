"""Beyond torch.optim: clipping, skipping and zeroing in the step. And the part of GradScaler that is done there too."""

import copy
import inspect
import math
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch_cases import assert_equal, every_optimizer, give_gradients, nonzero, ours, snapshot, theirs  # noqa: E402

import fastopt.torch  # noqa: E402
from fastopt import StepInfo  # noqa: E402

SHAPES = [(3, 2), (4,), (), (0,), (300,)]


def generator() -> Any:
    return torch.Generator().manual_seed(0)


def make_params(dtype: Any = torch.float64) -> list[Any]:
    gen = generator()
    return [nonzero(shape, dtype, gen).requires_grad_() for shape in SHAPES]


def grads_of(params: list[Any]) -> list[Any]:
    return [param.grad.clone() for param in params]


# ---- clipping ----


@pytest.mark.parametrize("max_norm", [0.0, 0.1, 1e6, math.inf])
@every_optimizer
def test_clipping_by_norm_is_torchs_before_the_step(name: str, max_norm: float) -> None:
    params, twins = make_params(), make_params()
    opt, other = ours(name)(params, lr=0.1, clip_norm=max_norm), ours(name)(twins, lr=0.1)
    gen = generator()
    for _ in range(3):
        give_gradients(params, gen)
        for param, twin in zip(params, twins, strict=True):
            twin.grad = param.grad.clone()
        before = grads_of(params)
        norm = torch.nn.utils.clip_grad_norm_(twins, max_norm)
        other.step()
        opt.step()
        assert_equal(grads_of(params), before)
        assert opt.last_step.grad_norm == pytest.approx(norm.item(), rel=1e-14)
        assert opt.last_step.clipped == (max_norm < norm.item())
        assert not opt.last_step.skipped
    torch.testing.assert_close(params, twins, rtol=1e-13, atol=1e-13)


@every_optimizer
def test_clipping_by_value_is_torchs_before_the_step(name: str) -> None:
    params, twins = make_params(), make_params()
    opt, other = ours(name)(params, lr=0.1, clip_value=0.5), ours(name)(twins, lr=0.1)
    for _ in range(3):
        give_gradients(params, generator())
        give_gradients(twins, generator())
        torch.nn.utils.clip_grad_value_(twins, 0.5)
        other.step()
        opt.step()
    assert_equal(params, twins)
    assert opt.last_step == (0.1, None, False, False)


def test_clipping_can_be_changed_between_steps() -> None:
    params = make_params()
    opt = fastopt.torch.SGD(params, lr=0.1)
    give_gradients(params, generator())
    opt.step()
    assert opt.last_step == StepInfo(0.1, None, False, False)
    opt.clip_norm = 1e-3
    opt.step()
    assert opt.last_step.clipped
    with pytest.raises(ValueError, match=r"Invalid clip_norm value: -1\.0"):
        opt.clip_norm = -1.0
    assert opt.clip_norm == 1e-3
    opt.param_groups[0]["clip_norm"] = -1.0
    with pytest.raises(ValueError, match=r"Invalid clip_norm value: -1\.0"):
        opt.step()


def test_before_the_first_step_there_is_no_last_step() -> None:
    assert fastopt.torch.SGD(make_params()).last_step is None


# ---- gradients that are not finite ----


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("first", [True, False])
@every_optimizer
def test_a_skipped_step_leaves_everything_as_it_was(name: str, bad: float, first: bool) -> None:
    options = {"momentum": 0.9} if name in ("SGD", "RMSprop") else {}
    params = make_params()
    opt = ours(name)(params, lr=0.1, nonfinite="skip", **options)
    give_gradients(params, generator())
    if not first:
        opt.step()
    params[-1].grad[250] = bad
    before, state = snapshot(opt), copy.deepcopy(opt.state_dict()["state"])
    opt.step()
    assert_equal(snapshot(opt), before)
    assert_equal(opt.state_dict()["state"], state)
    assert opt.step_count == int(not first)
    assert opt.last_step.skipped
    assert not math.isfinite(opt.last_step.grad_norm)
    opt.nonfinite = "raise"
    with pytest.raises(FloatingPointError, match=r"^not finite: gradient of param_groups\[0\]\['params'\]\[4\]$"):
        opt.step()
    assert_equal(snapshot(opt), before)
    assert_equal(opt.state_dict()["state"], state)


@pytest.mark.parametrize("dampening", [0.0, 0.5])
def test_the_first_step_after_a_skipped_one_is_the_first(dampening: float) -> None:
    """SGD's first velocity is the gradient itself, whatever the dampening."""
    params, twins = make_params(), make_params()
    opt = fastopt.torch.SGD(params, lr=0.1, momentum=0.9, dampening=dampening, nonfinite="skip")
    other = torch.optim.SGD(twins, lr=0.1, momentum=0.9, dampening=dampening)
    give_gradients(params, generator())
    params[0].grad[0, 0] = math.nan
    opt.step()
    resumed = fastopt.torch.SGD(params, lr=0.1, momentum=0.9, dampening=dampening)
    resumed.load_state_dict(opt.state_dict())
    gen = generator()
    for _ in range(3):
        give_gradients(params, gen)
        for param, twin in zip(params, twins, strict=True):
            twin.grad = param.grad.clone()
        resumed.step()
        other.step()
    torch.testing.assert_close(params, twins, rtol=1e-13, atol=1e-13)


@every_optimizer
def test_finite_gradients_are_not_skipped_however_large(name: str) -> None:
    param = torch.zeros(8, dtype=torch.float64, requires_grad=True)
    param.grad = torch.full((8,), 1e308, dtype=torch.float64)
    opt = ours(name)([param], nonfinite="skip")
    opt.step()
    assert not opt.last_step.skipped


# ---- zeroing in the step ----


@every_optimizer
def test_zeroing_in_the_step(name: str) -> None:
    params, twins = make_params(torch.float32), make_params(torch.float32)
    opt, other = ours(name)(params, lr=0.1, zero_grad_in_step=True), ours(name)(twins, lr=0.1)
    for _ in range(3):
        for p in (params, twins):
            sum((param * param).sum() for param in p).backward()
        buffers = [param.grad for param in params]
        opt.step()
        other.step()
        other.zero_grad()
        assert all(param.grad is buffer for param, buffer in zip(params, buffers, strict=True))
        assert not any(param.grad.any() for param in params)
    assert_equal(params, twins)


def test_zeroing_gradients_that_had_to_be_copied() -> None:
    params = [torch.ones(4, 4, requires_grad=True), torch.ones(3, dtype=torch.complex64, requires_grad=True)]
    grads = [torch.ones(4, 4).tril().t(), torch.ones(3, dtype=torch.complex64)]
    params[0].grad, params[1].grad = grads
    fastopt.torch.SGD(params, lr=1.0, zero_grad_in_step=True).step()
    assert_equal(params[0], 1 - torch.ones(4, 4).triu())
    assert not any(grad.any() for grad in grads)


def test_zeroing_a_gradient_that_two_parameters_share() -> None:
    size = 200_000
    params = [torch.zeros(size, requires_grad=True) for _ in range(3)]
    shared = torch.ones(size)
    for param in params:
        param.grad = shared
    fastopt.torch.SGD(params, lr=1.0, zero_grad_in_step=True).step()
    for param in params:
        assert_equal(param, torch.full((size,), -1.0))
    assert not shared.any()


def test_a_skipped_step_zeroes_too_or_the_next_ones_would_accumulate_into_nan() -> None:
    param = torch.ones(3, requires_grad=True)
    opt = fastopt.torch.SGD([param], lr=1.0, nonfinite="skip", zero_grad_in_step=True)
    (param * torch.tensor([1.0, math.nan, 1.0])).sum().backward()
    opt.step()
    assert opt.last_step is not None
    assert opt.last_step.skipped
    param.sum().backward()
    opt.step()
    assert param.tolist() == [0.0] * 3


# ---- GradScaler ----


def scaled_training(name: str, make: Any, scaler: Any, dtype: Any, steps: int = 6, **options: Any) -> Any:
    """Train a little; the third loss overflows."""
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3).to(dtype)
    opt = make(name)(model.parameters(), lr=0.01, **options)
    inputs = nonzero((steps, 5, 4), dtype, generator())
    scales, skipped = [], []
    for step in range(steps):
        opt.zero_grad()
        loss = model(inputs[step]).square().mean() * (math.inf if step == 2 else 1.0)
        scaler.scale(loss).backward()
        scaler.step(opt)
        scaler.update()
        scales.append(scaler.get_scale())
        skipped.append(bool(opt.last_step.skipped) if hasattr(opt, "last_step") else None)
    assert not hasattr(opt, "grad_scale")
    return list(model.parameters()), opt.state_dict()["state"], scales, skipped


@pytest.mark.parametrize("fused", [False, True])
@every_optimizer
def test_grad_scaler(name: str, fused: bool) -> None:
    """Steps are torch's, the overflow is skipped, and the step count with it: as in torch by the scaler, or by the step
    itself where that is `fused`.
    """
    if fused and "fused" not in inspect.signature(ours(name)).parameters:
        pytest.skip(f"{name} has no such option in torch")

    def scaler() -> Any:
        return torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)

    options = {"fused": True} if fused else {}
    params, state, scales, skipped = scaled_training(name, ours, scaler(), torch.float64, **options)
    twins, expected, expected_scales, _ = scaled_training(name, theirs, scaler(), torch.float64)
    assert scales == expected_scales
    # (torch asked no fused Adagrad to skip before 2.10.)
    asked = getattr(ours(name)([torch.ones(1, requires_grad=True)], **options), "_step_supports_amp_scaling", False)
    assert skipped == [step == 2 and asked for step in range(6)]
    torch.testing.assert_close(params, twins, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(state, expected, rtol=1e-12, atol=1e-12)


@every_optimizer
def test_unscaling_in_the_step_is_exact_and_leaves_the_gradient_alone(name: str) -> None:
    params, twins = make_params(torch.float32), make_params(torch.float32)
    opt, other = ours(name)(params, clip_norm=1.0, clip_value=0.5), ours(name)(twins, clip_norm=1.0, clip_value=0.5)
    give_gradients(twins, generator())
    for param, twin in zip(params, twins, strict=True):
        param.grad = twin.grad * 1024
    before = grads_of(params)
    opt.grad_scale, opt.found_inf = torch.tensor(1024.0), torch.tensor(0.0)
    opt.step()
    other.step()
    assert_equal(params, twins)
    assert opt.last_step == other.last_step
    assert_equal(grads_of(params), before)


@every_optimizer
def test_a_step_with_found_inf_changes_nothing(name: str) -> None:
    params = make_params()
    opt = ours(name)(params)
    give_gradients(params, generator())
    opt.found_inf = torch.tensor(1.0)
    state_dict, before = copy.deepcopy(opt.state_dict()), snapshot(opt)
    opt.step()
    assert_equal(snapshot(opt), before)
    assert_equal(opt.state_dict(), state_dict)
    assert opt.last_step.skipped
    assert opt.step_count == 0


@pytest.mark.parametrize("overflow", [None, 0, 2])
def test_gradients_unscaled_and_clipped_by_hand(overflow: int | None) -> None:
    def script(make: Any) -> Any:
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 3).double()
        opt = make("AdamW")(model.parameters(), lr=0.01)
        for step, x in enumerate(nonzero((4, 5, 4), torch.float64, generator())):
            opt.zero_grad()
            loss = model(x).square().mean() * (math.inf if step == overflow else 1.0)
            scaler.scale(loss).backward()
            scaler.unscale_(opt)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            scaler.step(opt)
            scaler.update()
        return list(model.parameters()), opt.state_dict()["state"], scaler.get_scale()

    torch.testing.assert_close(script(ours), script(theirs), rtol=1e-12, atol=1e-12)


def test_a_disabled_grad_scaler() -> None:
    params, *_ = scaled_training("SGD", ours, torch.amp.GradScaler("cpu", enabled=False), torch.float64, steps=2)
    twins, *_ = scaled_training("SGD", theirs, torch.amp.GradScaler("cpu", enabled=False), torch.float64, steps=2)
    torch.testing.assert_close(params, twins)


def test_autocast_to_bfloat16() -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 8)
    opt = fastopt.torch.AdamW(model.parameters(), lr=0.01)
    losses = []
    for x in nonzero((20, 16, 8), torch.float32, generator()):
        opt.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = (model(x) - x).square().mean()
        loss.backward()
        opt.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
