"""Sparse gradients in torch: any rule steps only their rows, and decoupled decay catches up."""

import copy
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch_cases import aligned_to_elements  # noqa: E402

import fastopt.torch  # noqa: E402
from fastopt import schedules  # noqa: E402

LAZY: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {"momentum": 0.9, "weight_decay": 0.1}),
    ("Adagrad", {"weight_decay": 0.1}),
    ("RMSprop", {"centered": True, "momentum": 0.5}),
    ("Adam", {"amsgrad": True}),
    ("Adam", {"weight_decay": 0.1}),
    ("AdamW", {"weight_decay": 0.0}),
    ("Lion", {}),
]

BATCHES = [[1, 4, 1], [0], [], [5, 5, 5, 2], [3, 1]]


def sparse(rows: list[int], values: Any, shape: tuple[int, ...]) -> Any:
    return torch.sparse_coo_tensor(torch.tensor([rows], dtype=torch.int64), values, shape, check_invariants=True)


def drawn(*shape: int, dtype: Any = torch.float64) -> Any:
    return torch.randn(shape, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64], ids=str)
@pytest.mark.parametrize(("name", "options"), LAZY)
def test_lazy_steps_are_those_of_the_rows_alone(name: str, options: dict[str, Any], dtype: Any) -> None:
    """Each batch's rows, picked out with their states, stepped as a dense parameter of their own."""
    torch.manual_seed(0)
    shape, cls = (6, 3, 2), getattr(fastopt.torch, name)
    table = drawn(*shape, dtype=dtype).requires_grad_()
    head = drawn(4, dtype=dtype).requires_grad_()
    opt = cls([table, head], lr=0.1, lazy=True, **options)
    mirror = table.detach().clone()
    states: dict[str, Any] = {}
    for step, rows in enumerate(BATCHES):
        values = drawn(len(rows), *shape[1:], dtype=dtype)
        table.grad, head.grad = sparse(rows, values, shape), drawn(4, dtype=dtype)
        opt.step()
        picked = sorted(set(rows))
        part = mirror[picked].clone().requires_grad_()
        part.grad = table.grad.to_dense()[picked]
        other = cls([part], lr=0.1, **options)
        if step:
            chosen = {key: value[picked] if value.dim() else torch.tensor(float(step)) for key, value in states.items()}
            other.state[part] = chosen
        other.step()
        for key, value in other.state[part].items():
            if value.dim():
                states.setdefault(key, torch.zeros(shape, dtype=dtype))[picked] = value
            else:
                states[key] = value
        mirror[picked] = part.detach()
        torch.testing.assert_close(table.detach(), mirror, rtol=0, atol=0)
    for key, value in states.items():
        if value.dim():
            torch.testing.assert_close(opt.state[table][key], value, rtol=0, atol=0)


def decaying(step: int) -> float:
    return 0.1 / (1 + step)


@pytest.mark.parametrize("lr", [0.1, decaying], ids=["constant", "scheduled"])
@pytest.mark.parametrize("name", ["AdamW", "Lion"])
def test_decay_catches_up(name: str, lr: Any) -> None:
    """As a dense step does with gradients that are zero where there are none, if no moment outlives its step."""
    torch.manual_seed(0)
    betas = (0.0, 0.9) if name == "AdamW" else (0.0, 0.0)
    start = drawn(50, 4)
    table, dense = start.clone().requires_grad_(), start.clone().requires_grad_()
    cls = getattr(fastopt.torch, name)
    opt = cls([table], lr=lr, betas=betas, weight_decay=0.3, lazy=True)
    other = cls([dense], lr=lr, betas=betas, weight_decay=0.3)
    touched = torch.zeros(50, dtype=torch.bool)
    for step in range(40):
        # No row has a gradient other than zero twice: Adam's second moment fades in the dense one.
        rows = [step, (step * 7) % 50, step] if step < 39 else list(range(50))
        values = drawn(len(rows), 4)
        values[touched[rows]] = 0
        if step == 39:
            values[:] = 0
        touched[rows] = True
        table.grad = sparse(rows, values, (50, 4))
        dense.grad = table.grad.to_dense()
        opt.step()
        other.step()
    torch.testing.assert_close(table, dense, rtol=1e-12, atol=1e-12)
    assert (opt.state[table]["row_log_decay"] == opt.state[table]["log_decay"]).all()


def test_a_dense_gradient_catches_up_too() -> None:
    start = drawn(20, 300)
    tables = [start.clone().requires_grad_() for _ in range(2)]
    opts = [fastopt.torch.SGD([t], lr=0.1, weight_decay=0.5, decoupled_weight_decay=True, lazy=True) for t in tables]
    for step in range(5):
        tables[0].grad = sparse([step], torch.zeros(1, 300, dtype=torch.float64), (20, 300))
        tables[1].grad = torch.zeros(20, 300, dtype=torch.float64)
        for opt in opts:
            opt.step()
    tables[0].grad = torch.zeros(20, 300, dtype=torch.float64)
    for opt in opts:
        opt.step()
    torch.testing.assert_close(tables[0], tables[1], rtol=1e-13, atol=0)
    torch.testing.assert_close(tables[0].detach(), start * 0.95**6, rtol=1e-13, atol=0)


def test_what_has_dense_gradients_alone_keeps_nothing_of_its_rows() -> None:
    params = [drawn(6, 3).requires_grad_() for _ in range(2)]
    lazy = fastopt.torch.AdamW(params, lr=0.1, weight_decay=0.3, lazy=True)
    twins = [param.detach().clone().requires_grad_() for param in params]
    plain = fastopt.torch.AdamW(twins, lr=0.1, weight_decay=0.3)
    for step in range(6):
        for param, twin in zip(params, twins, strict=True):
            param.grad = drawn(6, 3)
            twin.grad = param.grad.clone()
        if step == 4:  # all rows
            params[1].grad = sparse(list(range(6)), params[1].grad, (6, 3))
        lazy.step()
        plain.step()
        assert ["row_log_decay" in lazy.state[param] for param in params] == [False, step >= 4]
    for param, twin in zip(params, twins, strict=True):
        torch.testing.assert_close(param, twin, rtol=1e-14, atol=1e-14)


def test_only_the_gradient_is_new() -> None:
    """What is remembered from step to step is not used where something was replaced, or is dense for a change."""
    torch.manual_seed(0)
    table, twin = (drawn(6, 3).requires_grad_() for _ in range(2))
    with torch.no_grad():
        twin.copy_(table)
    opts = [fastopt.torch.SGD([param], lr=0.1, momentum=0.5, lazy=True) for param in (table, twin)]
    saved = opts[1].state_dict()
    for step in range(12):
        rows = BATCHES[step % 5]
        grad = sparse(rows, drawn(len(rows), 3), (6, 3))
        table.grad, twin.grad = grad, grad.clone()
        if step % 4 == 3:
            table.grad, twin.grad = grad.to_dense(), grad.to_dense()
        if step == 5:
            table.data = table.detach().clone()
        if step == 7:
            opts[0].state[table]["momentum_buffer"] = opts[0].state[table]["momentum_buffer"].clone()
        if step == 9:
            table.data = table.detach().t().clone().t()
        opts[1] = type(opts[1])([twin], lr=0.1, momentum=0.5, lazy=True) if step else opts[1]
        if step:
            opts[1].load_state_dict(copy.deepcopy(saved))
        for opt in opts:
            opt.step()
        saved = opts[1].state_dict()
        torch.testing.assert_close(table, twin, rtol=0, atol=0)


def test_state_dicts_say_what_rows_have_missed() -> None:
    def train(opt: Any, table: Any, steps: range) -> None:
        for step in steps:
            rows = [step % 7, 3]
            table.grad = sparse(rows, torch.ones(2, 5, dtype=torch.float64) * step, (7, 5))
            opt.step()

    start = drawn(7, 5)
    one, two = start.clone().requires_grad_(), start.clone().requires_grad_()
    options: dict[str, Any] = {"lr": schedules.cosine(0.1, 20), "weight_decay": 0.3, "lazy": True}
    whole, first = fastopt.torch.AdamW([one], **options), fastopt.torch.AdamW([two], **options)
    train(whole, one, range(10))
    train(first, two, range(5))
    second = fastopt.torch.AdamW([two], **options)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    train(second, two, range(5, 10))
    torch.testing.assert_close(one, two, rtol=0, atol=0)


def test_tables_and_dense_parameters_are_clipped_together() -> None:
    torch.manual_seed(0)
    params = [drawn(9, 2).requires_grad_(), drawn(3).requires_grad_()]
    opt = fastopt.torch.AdamW(params, lr=0.1, lazy=True, clip_norm=0.5, nonfinite="skip")
    params[0].grad, params[1].grad = sparse([4, 4, 1], drawn(3, 2), (9, 2)), drawn(3)
    dense = torch.cat([params[0].grad.to_dense().flatten(), params[1].grad])
    opt.step()
    assert opt.last_step
    assert opt.last_step.clipped
    assert opt.last_step.grad_norm == pytest.approx(dense.norm().item(), rel=1e-14)
    before = [param.detach().clone() for param in params]
    params[0].grad = sparse([0, 3], torch.tensor([[1.0, 1.0], [1.0, torch.inf]], dtype=torch.float64), (9, 2))
    opt.step()
    assert opt.last_step
    assert opt.last_step.skipped
    for param, old in zip(params, before, strict=True):
        torch.testing.assert_close(param.detach(), old, rtol=0, atol=0)


@pytest.mark.parametrize("width", [3, 16, 700])
@pytest.mark.parametrize(
    ("dtype", "copied"),
    [
        (torch.float32, torch.bfloat16),
        (torch.float32, torch.float32),
        (torch.float64, torch.float32),
        (torch.float64, torch.float64),
        (torch.bfloat16, torch.float32),
    ],
    ids=str,
)
def test_copies_and_averages_of_the_rows_that_are_stepped(dtype: Any, copied: Any, width: int) -> None:
    torch.manual_seed(0)
    table = torch.randn(90, width).to(dtype).requires_grad_()
    start, copies = table.detach().clone(), torch.empty(90, width, dtype=copied)
    opt = fastopt.torch.SGD([table], lr=0.5, lazy=True, ema=0.75)
    opt.write_copies({table: copies})
    rows = [3, 89, 0, 3]
    table.grad = sparse(rows, torch.randn(4, width).to(dtype), (90, width))
    opt.step()
    torch.testing.assert_close(copies, table.detach().to(copied), rtol=0, atol=0)
    assert (table.detach() != start).any(dim=1).nonzero().flatten().tolist() == [0, 3, 89]
    average = opt.ema_state()[0]
    torch.testing.assert_close(average, start.to(average.dtype).lerp(table.detach().to(average.dtype), 0.25))


@pytest.mark.parametrize("numbers", [[6], [0, -1], [2**40]])
@pytest.mark.parametrize("name", ["SGD", "Adagrad", "SparseAdam", "AdamW"])
def test_rows_that_are_not_there(name: str, numbers: list[int]) -> None:
    table = drawn(6, 3).requires_grad_()
    before = table.detach().clone()
    opt = getattr(fastopt.torch, name)([table], lr=0.1, **({"lazy": True} if name == "AdamW" else {}))
    places = torch.tensor([numbers])
    table.grad = torch.sparse_coo_tensor(places, drawn(len(numbers), 3), (6, 3), check_invariants=False)
    with pytest.raises(
        IndexError, match=rf"gradient of .*: expected row numbers of at least 0 and below 6, got {numbers[-1]}"
    ):
        opt.step()
    assert opt.step_count == 0
    torch.testing.assert_close(table.detach(), before, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # in torch's own step
@pytest.mark.parametrize("shape", [(6, 3), (6, 2, 3), (6, 2, 1, 3)])
@pytest.mark.parametrize("name", ["SGD", "Adagrad"])
def test_the_numbers_of_torch(name: str, shape: tuple[int, ...]) -> None:
    """Whatever has as many dimensions, in any of those, at an odd address."""
    torch.manual_seed(0)
    start = drawn(*shape)
    table, twin = (place(start).requires_grad_() for place in (aligned_to_elements, torch.clone))
    opts = getattr(fastopt.torch, name)([table], lr=0.1), getattr(torch.optim, name)([twin], lr=0.1)
    for dims in range(1, len(shape) + 1):
        for rows in BATCHES:
            further = [[row % size for row in rows] for size in shape[1:dims]]
            places = torch.tensor([rows, *further], dtype=torch.int64)
            values = aligned_to_elements(drawn(len(rows), *shape[dims:]))
            grad = torch.sparse_coo_tensor(places, values, shape, check_invariants=True)
            table.grad, twin.grad = grad, grad.clone()
            for opt in opts:
                opt.step()
            torch.testing.assert_close(table, twin, rtol=1e-14, atol=1e-14)


def test_what_cannot_be_stepped_by_rows() -> None:
    table = drawn(6, 3, 2).requires_grad_()
    opt = fastopt.torch.AdamW([table], lazy=True)
    table.grad = torch.ones(6, 3, 2, dtype=torch.float64).to_sparse(2)
    with pytest.raises(RuntimeError, match=r"has 2 sparse dimensions, expected 1 \(lazy=True\)$"):
        opt.step()
    opt = fastopt.torch.AdamW([table], lr=2.0, weight_decay=0.5, lazy=True)
    table.grad = sparse([1], drawn(1, 3, 2), (6, 3, 2))
    with pytest.raises(ValueError, match=r"the scalar 'decay'"):
        opt.step()
    assert opt.state_dict()["state"] == {}
