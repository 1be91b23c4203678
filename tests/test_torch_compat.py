"""What depends on torch's version: tensors that are read by asking Python, and versions that are too old."""

from collections.abc import Callable
from typing import Any

import pytest
from interpreter import python

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402

import fastopt.torch  # noqa: E402
from fastopt import _dlpack  # noqa: E402
from fastopt.backends import torch_compat  # noqa: E402


@pytest.fixture(params=["as torch offers", "by asking"])
def exchange(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors read through DLPack's exchange in C where torch has it, and as before it had."""
    if request.param == "by asking":
        asking = _dlpack.exchange_by_asking(torch_compat.DLPACK_DTYPES)
        monkeypatch.setattr("fastopt.backends.torch.exchange", lambda: asking)


PARAMETERS: list[Callable[[], Tensor]] = [
    lambda: torch.ones(3, 4),
    lambda: torch.ones(4, 3).t(),
    lambda: torch.ones(3, 8)[:, ::2],
    lambda: torch.ones(2, 3, 4, 5).to(memory_format=torch.channels_last),
    lambda: torch.ones(5, dtype=torch.float64),
    lambda: torch.ones(5, dtype=torch.bfloat16),
    lambda: torch.ones(5, dtype=torch.float16),
    lambda: torch.ones(5, dtype=torch.complex64),
    lambda: torch.ones(()),
    lambda: torch.ones(0, 3),
    lambda: torch.ones(1, 1, 1, 1, 1, 1),
]


@pytest.mark.parametrize("make", PARAMETERS)
def test_every_kind_of_tensor_takes_the_same_steps(exchange: None, make: Callable[[], Tensor]) -> None:
    tensors = make(), make().contiguous()
    params = [torch.nn.Parameter(tensor) for tensor in tensors]
    steps = [fastopt.torch.AdamW([param], lr=0.1) for param in params]
    for k in range(3):
        for param, opt in zip(params, steps, strict=True):
            param.grad = torch.full_like(param, k - 0.5)
            opt.step()
    assert torch.equal(*params)
    assert params[0].numel() == 0 or not torch.equal(params[0], make())


def transpose_in_place(param: Tensor, entry: dict[str, Any]) -> None:
    param.data = param.data.t()
    param.grad = torch.tensor([[1.0, 2.0], [3.0, 4.0]])


def move(param: Tensor, entry: dict[str, Any]) -> None:
    param.data = param.data.clone()


def move_state(param: Tensor, entry: dict[str, Any]) -> None:
    entry["exp_avg"].data = entry["exp_avg"].clone()


def replace_state(param: Tensor, entry: dict[str, Any]) -> None:
    entry["exp_avg_sq"] = entry["exp_avg_sq"].double()


def share_count(param: Tensor, entry: dict[str, Any]) -> None:
    entry["step"].share_memory_()


@pytest.mark.parametrize("change", [transpose_in_place, move, move_state, replace_state, share_count])
def test_what_changes_between_two_steps_is_noticed(exchange: None, change: Callable[..., None]) -> None:
    params = [torch.nn.Parameter(torch.tensor([[1.0, 2.0], [3.0, 4.0]])) for _ in range(2)]
    optimizers = [fastopt.torch.AdamW(params[:1], lr=0.1), torch.optim.AdamW(params[1:], lr=0.1)]
    for _ in range(2):
        for param, opt in zip(params, optimizers, strict=True):
            param.grad = torch.tensor([[1.0, -2.0], [3.0, -4.0]])
            opt.step()
            change(param, opt.state[param])
            opt.step()
    torch.testing.assert_close(*params)
    assert [float(opt.state[param]["step"]) for param, opt in zip(params, optimizers, strict=True)] == [4, 4]


def test_a_torch_that_is_too_old_is_refused_by_its_number() -> None:
    done = python("import torch; torch.__version__ = type(torch.__version__)('2.5.1+cpu'); import fastopt.torch")
    assert done.returncode == 1
    assert done.stderr.endswith("ImportError: fastopt.torch needs torch 2.6 or newer, got 2.5.1+cpu\n")
