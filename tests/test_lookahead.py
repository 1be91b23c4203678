"""Lookahead around optimizers for arrays and for tensors."""

import copy
import pickle
from typing import Any

import numpy as np
import pytest

import fastopt


def grads(step: int) -> list[Any]:
    rng = np.random.default_rng(step)
    return [rng.normal(size=(3, 4)), rng.normal(size=5)]


def params() -> list[Any]:
    return grads(1000)


def test_the_formula() -> None:
    fast, slow, p = np.ones(3), np.ones(3), np.ones(3)
    opt = fastopt.Lookahead(fastopt.SGD(p, lr=0.1), k=3, alpha=0.25)
    for step in range(1, 10):
        g = np.random.default_rng(step).normal(size=3)
        opt.step(g)
        fast = fast - 0.1 * g
        if step % 3 == 0:
            slow = slow + 0.25 * (fast - slow)
            fast = slow
        np.testing.assert_allclose(p, fast, rtol=1e-14)
    assert opt.step_count == 9


def test_a_skipped_step_does_not_count() -> None:
    p = np.ones(3)
    opt = fastopt.Lookahead(fastopt.SGD(p, lr=0.1, nonfinite="skip"), k=2, alpha=0.5)
    opt.step(np.ones(3))
    assert opt.step(np.full(3, np.nan)).skipped
    assert (opt.counter, p[0]) == (1, 0.9)
    opt.step(np.ones(3))
    assert opt.counter == 0
    assert p == pytest.approx(np.full(3, 0.9))


def test_a_snapshot_goes_on() -> None:
    first, second = params(), params()
    opt = fastopt.Lookahead(fastopt.Adam(first, lr=0.1), k=3)
    for step in range(4):
        opt.step(grads(step))
    saved = opt.state_dict()
    for one, other in zip(first, second, strict=True):
        other[...] = one
    again = fastopt.Lookahead(fastopt.Adam(second), k=3)
    again.load_state_dict(saved)
    for step in range(4, 9):
        opt.step(grads(step))
        again.step(grads(step))
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_snapshot_of_the_optimizer_alone_begins_slow_weights_anew() -> None:
    p = np.ones(3)
    inner = fastopt.SGD(p, lr=0.1)
    opt = fastopt.Lookahead(inner, k=2)
    opt.step(np.ones(3))
    opt.load_state_dict(inner.state_dict())
    np.testing.assert_array_equal(opt.slow_params[0], p)
    assert opt.counter == 0


def test_snapshots_that_do_not_fit_change_nothing() -> None:
    opt = fastopt.Lookahead(fastopt.SGD(np.ones(3), lr=0.1))
    saved = opt.state_dict()
    saved["lookahead"]["slow_params"] = [np.ones(4)]
    with pytest.raises(ValueError, match="slow weights of the parameters' shapes"):
        opt.load_state_dict(saved)
    assert opt.slow_params[0].shape == (3,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k: expected at least 1, got 0"),
        ({"k": 1.5}, "k: expected a whole number"),
        ({"alpha": -0.1}, "Invalid alpha value: -0.1"),
        ({"alpha": 1.1}, "Invalid alpha value: 1.1"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fastopt.Lookahead(fastopt.SGD(np.ones(3)), **options)


def test_what_is_no_optimizer() -> None:
    with pytest.raises(TypeError, match="optimizer: expected one of fastopt, got object"):
        fastopt.Lookahead(object())


def test_new_groups_and_pickles() -> None:
    opt = fastopt.Lookahead(fastopt.SGD([np.ones(3)], lr=0.1), k=2)
    opt.add_param_group({"params": np.full(2, 2.0)})
    for _ in range(2):
        opt.step([[np.ones(3)], np.ones(2)])
    assert [array[0] for array in opt.slow_params] == pytest.approx([0.9, 1.9])
    again = pickle.loads(pickle.dumps(opt))
    assert (again.k, again.counter, len(again.param_groups)) == (2, 0, 2)


def test_as_pytorch_optimizer_and_with_torchs_schedulers() -> None:
    torch = pytest.importorskip("torch")
    reference = pytest.importorskip("pytorch_optimizer")
    import fastopt.torch as of_torch

    ours = [torch.tensor(values, requires_grad=True) for values in params()]
    theirs = [torch.tensor(values, requires_grad=True) for values in params()]
    opt: Any = of_torch.Lookahead(of_torch.AdamW(ours, lr=0.1), k=4, alpha=0.3)
    other = reference.Lookahead(torch.optim.AdamW(theirs, lr=0.1), k=4, alpha=0.3)
    schedulers = [torch.optim.lr_scheduler.LinearLR(each, 1.0, 0.1, 20) for each in (opt, other.optimizer)]
    for step in range(20):
        for one, two, grad in zip(ours, theirs, grads(step), strict=True):
            one.grad, two.grad = torch.tensor(grad), torch.tensor(grad)
        opt.step()
        other.step()
        opt.zero_grad()
        assert all(param.grad is None for param in ours)
        for scheduler in schedulers:
            scheduler.step()
        if step == 10:
            opt.load_state_dict(copy.deepcopy(opt.state_dict()))
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


def test_what_is_set_is_set_in_the_optimizer() -> None:
    p = np.ones(3)
    opt = fastopt.Lookahead(fastopt.SGD(p, lr=1.0))
    opt.clip_norm = 1.0
    opt.k = 2
    assert opt.optimizer.clip_norm == 1
    opt.step(np.array([3.0, 4.0, 0.0]))
    opt.step(np.array([0.0, 4.0, 3.0]))
    np.testing.assert_allclose(p, 1 - np.array([0.6, 1.6, 0.6]) / 2, rtol=1e-5)


@pytest.mark.parametrize("fused", [None, True])
def test_a_gradient_scaler_of_torch(fused: bool | None) -> None:
    torch = pytest.importorskip("torch")
    import fastopt.torch

    param = torch.nn.Parameter(torch.ones(2))
    opt: Any = fastopt.torch.Lookahead(fastopt.torch.SGD([param], lr=0.1, fused=fused), k=100)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for factor in (1.0, float("inf"), 2.0):  # (with the second one nothing is changed)
        opt.zero_grad()
        scaler.scale((param * factor).sum()).backward()
        scaler.step(opt)
        scaler.update()
    torch.testing.assert_close(param.detach(), torch.full((2,), 0.7))
