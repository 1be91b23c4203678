"""What a step keeps of the parameters besides: their moving average, and copies; and averages on their own."""

import pickle
from typing import Any

import numpy as np
import pytest
from cases import Case, first_case_of_each_rule

import fastopt

BFLOAT16 = pytest.importorskip("ml_dtypes").bfloat16


@first_case_of_each_rule
def test_the_moving_average_follows_the_parameters(case: Case, dtype: str, rng: np.random.Generator) -> None:
    params = [rng.normal(size=shape).astype(dtype) for shape in [(70_000,), (3, 4), (0,)]]
    plain = [param.copy() for param in params]
    opt, other = case.make(params, ema=0.9), case.make(plain)
    expected = [param.astype(np.float64) for param in params]
    for _ in range(3):
        grads = [rng.normal(size=param.shape).astype(dtype) for param in params]
        opt.step(grads)
        other.step(grads)
        expected = [0.9 * average + 0.1 * param for average, param in zip(expected, plain, strict=True)]
    for param, same, average, wanted in zip(params, plain, opt.ema_state(), expected, strict=True):
        assert param.tobytes() == same.tobytes(), "the average has changed the step"
        assert average.dtype == dtype
        assert np.allclose(average, wanted, rtol=1e-6 if dtype == "float32" else 1e-15, atol=1e-7)


def test_the_averages_can_take_the_parameters_places() -> None:
    p, q = np.ones(3), np.full(2, 5.0)
    opt = fastopt.SGD([p, q], lr=1.0, ema=0.5)
    with pytest.raises(ValueError, match="Invalid ema"):
        fastopt.SGD(np.ones(1), ema=1.0)
    opt.step([np.ones(3), None])
    assert p.tolist() == [0.0] * 3
    opt.swap_ema()
    assert p.tolist() == [0.5] * 3
    assert q.tolist() == [5.0] * 2
    with pytest.raises(RuntimeError, match=r"params\[0\]: its moving average is in its place; swap_ema"):
        opt.step([np.ones(3), None])
    again = fastopt.SGD([p.copy(), q.copy()], lr=1.0, ema=0.5)
    again.load_state_dict(opt.state_dict())
    for each in (opt, again, pickle.loads(pickle.dumps(opt))):
        each.swap_ema()
        assert each.param_groups[0]["params"][0].tolist() == [0.0] * 3
        each.step([np.ones(3), None])
        assert each.ema_state()[0].tolist() == [-0.25] * 3


def test_there_may_be_no_average() -> None:
    opt = fastopt.SGD(np.ones(3))
    with pytest.raises(RuntimeError, match="there is no moving average: the option `ema`"):
        opt.swap_ema()
    opt.step(np.ones(3))
    opt.ema = 0.5  # from now on
    opt.step(np.ones(3))
    assert opt.ema_state()[0] == pytest.approx(np.full(3, (1 - 1e-3) * 0.5 + (1 - 2e-3) * 0.5))


def test_a_schedule_of_the_average() -> None:
    p = np.ones(1)
    opt = fastopt.SGD(p, lr=1.0, ema=lambda step: 0.0 if step == 0 else 0.75)
    opt.step(np.ones(1))
    assert opt.ema_state()[0][0] == 0.0
    opt.step(np.ones(1))
    assert opt.ema_state()[0][0] == -0.25


def test_a_skipped_step_averages_nothing() -> None:
    opt = fastopt.SGD(np.ones(2), lr=1.0, ema=0.5, nonfinite="skip")
    opt.step(np.ones(2))
    assert opt.step(np.array([np.nan, 1.0])).skipped
    assert opt.ema_state()[0].tolist() == [0.5, 0.5]


# ---- copies ----


@pytest.mark.parametrize("kind", [np.float16, BFLOAT16, np.float32])
@first_case_of_each_rule
def test_copies_are_the_parameters_rounded(case: Case, kind: Any, rng: np.random.Generator) -> None:
    params = [rng.normal(size=shape).astype(np.float32) for shape in [(20_000,), (3, 4), (7,)]]
    copies = [np.empty(param.shape, kind) for param in params[:2]]
    opt = case.make(params)
    opt.write_copies([*copies, None])
    for _ in range(3):
        for param, copy in zip(params, copies, strict=False):
            assert copy.tobytes() == param.astype(kind).tobytes()
        opt.step([rng.normal(size=param.shape).astype(np.float32) for param in params])


def test_copies_that_do_not_fit_are_refused() -> None:
    p, q = np.ones(4, np.float32), np.ones((2, 3))
    opt = fastopt.SGD({"p": p, "q": q})
    for bad, why in [
        (np.ones(3, np.float16), r"copy of params\['p'\]: expected the parameter's shape"),
        (np.ones(4), "expected the parameter's dtype float32, got float64"),
        (np.ones(4, np.int32), "expected dtype float32, float64, float16 or bfloat16"),
        (p, "overlaps a parameter in memory"),
    ]:
        with pytest.raises((TypeError, ValueError), match=why):
            opt.write_copies({"p": bad, "q": None})
    with pytest.raises(TypeError, match="expected the parameter's dtype float64"):
        opt.write_copies({"p": None, "q": np.ones((2, 3), np.float16)})
    assert p.tolist() == [1.0] * 4


# ---- averages on their own ----


@pytest.mark.parametrize("source", [np.float32, np.float16, BFLOAT16])
@pytest.mark.parametrize("weight", [0.0, 0.005, 0.5, 0.995, 1.0, -0.5])
def test_lerp(source: Any, weight: float, rng: np.random.Generator) -> None:
    large, small = rng.normal(size=100_001).astype(np.float32), np.ones((2, 3), np.float32)
    there = rng.normal(size=100_001).astype(source)
    before, wanted = large.astype(np.float64), there.astype(np.float64)
    fastopt.lerp_({"a": large, "b": [small]}, {"a": there, "b": [np.zeros((2, 3), source)]}, weight)
    assert np.allclose(large, before + weight * (wanted - before), rtol=1e-6, atol=1e-6)
    if weight == 1.0:
        assert large.tobytes() == there.astype(np.float32).tobytes()
    assert np.allclose(small, 1 - weight, rtol=1e-6)


def test_lerp_refuses_what_it_cannot_do() -> None:
    x, y = np.ones(4), np.zeros(4)
    for targets, sources, weight, why in [
        (x, np.zeros(3), 0.5, "sources: expected the parameter's shape"),
        (x, x, 0.5, "sources overlaps targets in memory"),
        (x, y, float("nan"), "Invalid weight"),
        ([x, x[:2]], [y, y[:2]], 0.5, r"targets\[0\] and targets\[1\] overlap"),
        (x, y.astype(np.float32), 0.5, "dtype"),
    ]:
        with pytest.raises((TypeError, ValueError), match=why):
            fastopt.lerp_(targets, sources, weight)
    assert x.tolist() == [1.0] * 4


# ---- torch ----


def test_torch_averages_copies_and_swaps() -> None:
    torch = pytest.importorskip("torch")
    import fastopt.torch

    torch.manual_seed(0)
    dense = torch.nn.Parameter(torch.randn(300))
    strided = torch.nn.Parameter(torch.randn(6, 8)[:, ::2])
    half = torch.nn.Parameter(torch.randn(50).bfloat16())
    opt = fastopt.torch.AdamW([dense, strided, half], lr=0.1, ema=0.5)
    copies = {dense: torch.empty(300, dtype=torch.bfloat16), strided: torch.empty(6, 4, dtype=torch.float16)}
    opt.write_copies(copies)
    averages = [param.detach().float().clone() for param in (dense, strided, half)]
    for _ in range(3):
        for param in (dense, strided, half):
            param.grad = torch.randn_like(param)
        opt.step()
        for average, param in zip(averages, (dense, strided, half), strict=True):
            average.lerp_(param.detach().float(), 0.5)
        for param, copy in copies.items():
            assert torch.equal(copy, param.detach().to(copy.dtype))
    for average, ours in zip(averages, opt.ema_state(), strict=True):
        assert ours.dtype == torch.float32
        assert torch.allclose(average, ours, rtol=1e-6, atol=1e-7)
    params = [param.detach().clone() for param in (dense, strided, half)]
    opt.swap_ema()
    assert torch.equal(dense, opt.ema_state()[0])
    dense.grad = torch.ones_like(dense)
    with pytest.raises(RuntimeError, match="its moving average is in its place"):
        opt.step()
    opt.swap_ema()
    for param, before in zip((dense, strided, half), params, strict=True):
        assert torch.equal(param, before)
    opt.step()


def test_what_has_no_average_gets_no_entry_in_torch() -> None:
    torch = pytest.importorskip("torch")
    from fastopt.torch import SGD

    stepped, idle = (torch.ones(2, requires_grad=True) for _ in range(2))
    opt = SGD([stepped, idle], lr=1.0, ema=0.5)
    assert opt.ema_state()[0] is stepped
    with pytest.raises(RuntimeError, match="there is no moving average"):
        opt.swap_ema()
    assert not opt.state
    stepped.grad = torch.ones(2)
    opt.step()
    opt.swap_ema()
    assert opt.ema_state()[1] is idle
    opt.swap_ema()
    assert [*opt.state] == [stepped]


@pytest.mark.parametrize("target", ["float32", "float64", "bfloat16", "complex64"])
def test_torch_lerp(target: str) -> None:
    torch = pytest.importorskip("torch")
    import fastopt.torch

    torch.manual_seed(0)
    dtype = getattr(torch, target)
    targets = [torch.randn(70_000, dtype=dtype), torch.randn(6, 8, dtype=dtype).t(), torch.randn(9, dtype=dtype)[::3]]
    sources = [torch.randn(tensor.shape, dtype=dtype) for tensor in targets]
    version = targets[0]._version
    expected = [a + 0.25 * (b - a) for a, b in zip(targets, sources, strict=True)]
    fastopt.torch.lerp_(targets, sources, 0.25)
    for found, wanted in zip(targets, expected, strict=True):
        assert torch.allclose(
            found, wanted, rtol=1e-2 if target == "bfloat16" else 1e-5, atol=1e-2 if target == "bfloat16" else 1e-6
        )
    assert targets[0]._version > version
    with pytest.raises(ValueError, match=r"sources\[0\]: expected the shape of its target"):
        fastopt.torch.lerp_(targets[0], torch.ones(3), 0.5)
    with pytest.raises(ValueError, match="expected as many tensors"):
        fastopt.torch.lerp_(targets, sources[:1], 0.5)
