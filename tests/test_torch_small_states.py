"""States of another shape than the parameter's, in torch: as torch's Adafactor, and in tables with sparse gradients."""

from typing import Any

import pytest

torch = pytest.importorskip("torch")

import fastopt.torch  # noqa: E402

SHAPES = [(), (7,), (5, 3), (1, 9), (9, 1), (130, 300), (4, 3, 3, 3), (3, 200, 70), (70, 1, 200)]

OPTIONS: list[dict[str, Any]] = [
    {},
    {"weight_decay": 0.1, "d": 1.5},
    {"eps": (1e-3, 1e-3), "maximize": True},
    {"beta2_decay": -0.5, "lr": 0.3},
    {"eps": (1e-2, 0.5)},
]

TOLERANCES = {torch.float64: 1e-13, torch.float32: 2e-5, torch.bfloat16: 0.1, torch.float16: 0.02}


def parameters(dtype: Any) -> list[Any]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in SHAPES]


def give_gradients(params: list[Any], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)


def assert_alike(params: list[Any], others: list[Any], tolerance: float) -> None:
    for param, other in zip(params, others, strict=True):
        torch.testing.assert_close(param, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_adafactor_has_torchs_numbers_and_states(dtype: Any, options: dict[str, Any]) -> None:
    params, others = parameters(dtype), parameters(dtype)
    opt, other = fastopt.torch.Adafactor(params, **options), torch.optim.Adafactor(others, **options)
    for seed in range(10):
        give_gradients(params, seed)
        give_gradients(others, seed)
        opt.step()
        other.step()
    assert_alike(params, others, TOLERANCES[dtype])
    for mine, theirs in zip(params, others, strict=True):
        state, expected = opt.state[mine], other.state[theirs]
        assert list(state) == list(expected)
        for name, value in expected.items():
            assert (state[name].shape, state[name].dtype) == (value.shape, value.dtype)
            torch.testing.assert_close(state[name], value, rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype])


@pytest.mark.parametrize("here_first", [True, False])
def test_adafactors_checkpoints_go_on_in_the_other(here_first: bool) -> None:
    classes = [fastopt.torch.Adafactor, torch.optim.Adafactor]
    first, second = classes if here_first else reversed(classes)
    params, others = parameters(torch.float64), parameters(torch.float64)
    opt, other = first(params), first(others)
    for seed in range(3):
        for each, optimizer in ((params, opt), (others, other)):
            give_gradients(each, seed)
            optimizer.step()
    successor = second(others)
    successor.load_state_dict(other.state_dict())
    for seed in range(3, 6):
        for each, optimizer in ((params, opt), (others, successor)):
            give_gradients(each, seed)
            optimizer.step()
    assert_alike(params, others, 1e-13)


@pytest.mark.parametrize("cls", [fastopt.torch.Adafactor, fastopt.torch.Adagrad, fastopt.torch.AdamW])
def test_memory_in_another_order_is_brought_to_rows(cls: Any) -> None:
    options = {} if cls is fastopt.torch.Adafactor else {"rowwise": True}
    values = torch.randn(6, 4, dtype=torch.float64)
    plain, odd = values.clone().requires_grad_(), values.t().contiguous().t().requires_grad_()
    opt, other = cls([plain], **options), cls([odd], **options)
    for seed in range(3):
        give_gradients([plain, odd][:1], seed)
        odd.grad = plain.grad.t().contiguous().t()
        opt.step()
        other.step()
    assert (plain == odd).all()
    assert odd.stride() == (1, 6)


def test_a_state_that_is_replaced_in_place_is_noticed() -> None:
    param, other = torch.ones(4, 3, requires_grad=True), torch.ones(4, 3, requires_grad=True)
    opt, twin = fastopt.torch.Adafactor([param]), fastopt.torch.Adafactor([other])
    for step in range(3):
        for each, optimizer in ((param, opt), (other, twin)):
            each.grad = torch.arange(12.0).reshape(4, 3)
            optimizer.step()
        if step == 0:
            opt.state[param]["row_var"] = opt.state[param]["row_var"].clone()
            opt.state[param]["col_var"].data = opt.state[param]["col_var"].clone()
    assert (param == other).all()
    opt.state[param]["row_var"] = torch.zeros(4, 3)
    with pytest.raises(RuntimeError, match=r"row_var of .* has shape \(4, 3\), expected \(4, 1\)"):
        opt.step()


def test_a_table_with_row_wise_states_and_sparse_gradients() -> None:
    table = torch.nn.Embedding(50, 8, sparse=True)
    dense = torch.nn.Embedding(50, 8, _weight=table.weight.detach().clone())
    opt = fastopt.torch.Adagrad(table.parameters(), rowwise=True, initial_accumulator_value=0.5)
    other = fastopt.torch.Adagrad(dense.parameters(), rowwise=True, initial_accumulator_value=0.5)
    for numbers in ([1, 4, 1, 49], [0, 4, 7, 7]):
        for each, optimizer in ((table, opt), (dense, other)):
            optimizer.zero_grad()
            each(torch.tensor(numbers)).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(table.weight, dense.weight)
    state = opt.state[table.weight]["row_sum"]
    assert state.shape == (50, 1)
    assert "sum" not in opt.state[table.weight]
    assert (state[[2, 3]] == 0.5).all()
    assert (state[[1, 4, 49, 0, 7]] > 0.5).all()
    assert opt.state_bytes() < 50 * 8 + 16


def test_what_is_not_for_rows_is_refused() -> None:
    matrix = torch.ones(2, 3, dtype=torch.complex64, requires_grad=True)
    matrix.grad = torch.ones_like(matrix)
    for opt in (fastopt.torch.Adafactor([matrix]), fastopt.torch.Adagrad([matrix], rowwise=True)):
        with pytest.raises(RuntimeError, match="does not support complex parameters with states of rows"):
            opt.step()
