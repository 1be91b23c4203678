"""Offload: the numbers of the plain optimizer on float32 masters, whatever arrives when."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from cases import CASES, Case

torch = pytest.importorskip("torch")

from torch_cases import assert_equal, nonzero, ours  # noqa: E402

from fastopt import optimizers  # noqa: E402
from fastopt.torch import link, offload  # noqa: E402
from fastopt.torch.offload import Offload  # noqa: E402

STEPS = 4
SHAPES = [(7, 5), (), (0,), (131,), (3, 4, 2, 5), (70_000,), (9, 9)]


class LateLink(link.Link):
    """A device whose copies happen later, each way in order: what does not wait reads old numbers."""

    def __init__(self) -> None:
        self.ways = [ThreadPoolExecutor(1), ThreadPoolExecutor(1)]
        self.last: Any = None
        self.ups = 0

    def later(self, way: int, source: Any, target: Any) -> Any:
        def copy() -> None:
            time.sleep(0.001)
            with torch.no_grad():
                target.copy_(source)

        return self.ways[way].submit(copy)

    def down(self, source: Any, target: Any) -> Callable[[], object]:
        target.fill_(float("nan"))
        return self.later(0, source.clone(), target).result

    def up(self, source: Any, target: Any) -> None:
        self.ups += 1
        with torch.no_grad():
            kept = target.clone()
            target.copy_(target)  # the version of now is the one after the copy
        self.last = self.later(1, source, target.data)
        del kept

    def join(self) -> None:
        if self.last is not None:
            self.last.result()


@pytest.fixture(params=["at once", "late"])
def device(request: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "late":
        monkeypatch.setattr(offload, "link_to", lambda device: LateLink())


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offload, "CHUNK", 1000)


pytestmark = [pytest.mark.usefixtures("device", "small_chunks")]


def make_params(dtype: Any, seed: int = 0) -> list[Any]:
    generator = torch.Generator().manual_seed(seed)
    params = [nonzero(shape, dtype, generator) for shape in SHAPES]
    params[4] = params[4].contiguous(memory_format=torch.channels_last)
    return [param.requires_grad_() for param in params]


def masters_of(params: list[Any]) -> list[Any]:
    return [param.detach().float().clone().requires_grad_() for param in params]


def backward(params: list[Any], step: int, masters: list[Any] | None = None, leave_out: int | None = None) -> None:
    """Give parameters gradients by a backward pass, and masters the same."""
    generator = torch.Generator().manual_seed(100 + step)
    grads = [nonzero(param.shape, param.dtype, generator) for param in params]
    used = [k for k in range(len(params)) if k != leave_out]
    sum((params[k].float() * grads[k].float()).sum() for k in used).backward()
    for k in used if masters else ():
        assert masters is not None
        so_far = 0 if masters[k].grad is None else masters[k].grad
        masters[k].grad = so_far + grads[k].float()


def rounded(masters: list[Any], params: list[Any]) -> list[Any]:
    return [master.detach().to(param.dtype) for master, param in zip(masters, params, strict=True)]


def in_groups(params: list[Any], **first: Any) -> list[dict[str, Any]]:
    return [{"params": params[:3], **first}, {"params": params[3:]}]


@pytest.mark.parametrize("in_backward", [True, False])
@pytest.mark.parametrize("clip_norm", [None, 1.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("name", optimizers.registry())
def test_the_bits_of_the_plain_optimizer(name: str, dtype: Any, clip_norm: Any, in_backward: bool) -> None:
    params = make_params(dtype)
    masters = masters_of(params)
    plain = ours(name)(in_groups(masters, lr=0.02), lr=0.01, clip_norm=clip_norm)
    opt = Offload(in_groups(params, lr=0.02), ours(name), in_backward=in_backward, lr=0.01, clip_norm=clip_norm)
    for step in range(STEPS):
        backward(params, step, masters, leave_out=1 if step == 2 else None)
        assert not in_backward or all(param.grad is None for param in params)
        opt.step()
        plain.step()
        assert opt.last_step == plain.last_step
        assert_equal(params, rounded(masters, params))
        opt.zero_grad()
        plain.zero_grad()
    assert opt.step_count == plain.step_count == STEPS
    for param, master in zip(params, masters, strict=True):
        expected = plain.state.get(master, {})
        assert_equal({key: opt.state[param][key] for key in expected}, dict(expected))
        assert_equal(opt.state[param]["master"], master.detach())


@pytest.mark.parametrize("state_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
def test_every_rule(case: Case, state_dtype: str) -> None:
    """Also what rounds states at random, by the number of the tensor."""
    params = make_params(torch.bfloat16)
    masters = masters_of(params)
    plain = ours(case.optimizer)(masters, **case.options, state_dtype=state_dtype)
    opt = Offload(params, ours(case.optimizer), **case.options, state_dtype=state_dtype)
    for step in range(STEPS):
        backward(params, step, masters)
        opt.step()
        plain.step()
        plain.zero_grad()
        assert_equal(params, rounded(masters, params))
