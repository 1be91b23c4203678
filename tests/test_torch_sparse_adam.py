"""SparseAdam: the numbers, messages, signature and checkpoints of torch's."""

import copy
import inspect
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch_cases import ULPS, assert_close  # noqa: E402

import fastopt.torch  # noqa: E402

OURS, THEIRS = fastopt.torch.SparseAdam, torch.optim.SparseAdam

LISTED: list[list[int]] = [[1, 4, 1], [0], [], [5, 5, 5, 2], [0, 1, 2, 3, 4, 5], [5]]
"""Row numbers of one gradient after the other: repeated, one, none, all, the last."""


def gradient(rows: list[int], shape: tuple[int, ...], dtype: Any, sparse_dims: int = 1) -> Any:
    """A random gradient that is not coalesced."""
    values = torch.randn(len(rows), *shape[sparse_dims:], dtype=dtype)
    further = [[row % size for row in rows] for size in shape[1:sparse_dims]]
    indices = torch.tensor([rows, *further], dtype=torch.int64)
    return torch.sparse_coo_tensor(indices, values, shape, check_invariants=True)


class Pair:
    """The same table with torch's optimizer and with ours."""

    def __init__(self, shape: tuple[int, ...] = (6, 3), dtype: Any = torch.float64, **options: Any) -> None:
        torch.manual_seed(0)
        start = torch.randn(shape, dtype=dtype)
        self.table, self.twin = start.clone().requires_grad_(), start.clone().requires_grad_()
        options = {"lr": 0.1, **options}
        self.ours, self.theirs = OURS([self.table], **options), THEIRS([self.twin], **copy.deepcopy(options))

    def step(self, rows: list[int], sparse_dims: int = 1) -> None:
        grad = gradient(rows, tuple(self.table.shape), self.table.dtype, sparse_dims)
        self.table.grad, self.twin.grad = grad, grad.clone()
        self.ours.step()
        self.theirs.step()

    def assert_close(self) -> None:
        one = torch.ones((), dtype=self.table.dtype)
        assert_close(self.table.detach(), self.twin.detach(), one, "the table", ULPS)
        mine, other = self.ours.state[self.table], self.theirs.state[self.twin]
        assert mine.keys() == other.keys()
        assert float(mine["step"]) == other["step"]
        for name in ("exp_avg", "exp_avg_sq"):
            assert_close(mine[name], other[name], one, name, ULPS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("shape", "sparse_dims"), [((6, 3), 1), ((6, 2, 5), 1), ((6, 2, 5), 2), ((6,), 1)])
@pytest.mark.parametrize("options", [{}, {"betas": (0.5, 0.8), "eps": 0.1}, {"maximize": True}], ids=str)
def test_same_numbers(options: dict[str, Any], shape: tuple[int, ...], sparse_dims: int, dtype: Any) -> None:
    pair = Pair(shape, dtype, **options)
    for rows in LISTED * 3:
        pair.step(rows, sparse_dims)
        pair.assert_close()


def test_epsilon_is_scaled_by_the_correction_of_the_second_moment() -> None:
    """By hand, where epsilon is large: in Adam's place it would make a step 11 times as long."""
    table = torch.zeros(2, 1, dtype=torch.float64, requires_grad=True)
    opt = OURS([table], lr=1.0, eps=1.0)
    table.grad = torch.sparse_coo_tensor([[1]], [[2.0]], (2, 1), dtype=torch.float64, check_invariants=True)
    opt.step()
    m, v = 0.1 * 2.0, 0.001 * 4.0
    expected = -(0.001**0.5) / 0.1 * m / (v**0.5 + 1.0)
    assert table.tolist() == [[0.0], [pytest.approx(expected, rel=1e-12)]]


def test_learning_rates_that_change() -> None:
    pair = Pair(lr=torch.tensor(0.5, dtype=torch.float64))
    for opt in (pair.ours, pair.theirs):
        torch.optim.lr_scheduler.LinearLR(opt, end_factor=0.0, total_iters=3)
    for rows in LISTED:
        pair.step(rows)
        for opt in (pair.ours, pair.theirs):
            opt.param_groups[0]["lr"] *= 0.5
    pair.assert_close()


def test_checkpoints_go_on_in_either_direction() -> None:
    pair = Pair()
    for rows in LISTED:
        pair.step(rows)
    mine, other = copy.deepcopy(pair.ours.state_dict()), copy.deepcopy(pair.theirs.state_dict())
    pair.ours, pair.theirs = OURS([pair.table], lr=3.0), THEIRS([pair.twin], lr=3.0)
    pair.ours.load_state_dict(other)
    pair.theirs.load_state_dict(mine)
    assert pair.ours.step_count == len(LISTED)
    for rows in LISTED:
        pair.step(rows)
    assert pair.ours.param_groups[0]["lr"] == 0.1
    # (By our number of steps, which is a tensor of float32, torch corrects the bias in that precision.)
    torch.testing.assert_close(pair.table, pair.twin, rtol=1e-4, atol=1e-5)


def test_the_signature_is_torchs() -> None:
    ours, theirs = (list(inspect.signature(cls).parameters.values()) for cls in (OURS, THEIRS))
    assert ours[: len(theirs)] == theirs
    assert {parameter.kind for parameter in ours[len(theirs) :]} == {inspect.Parameter.KEYWORD_ONLY}
    assert issubclass(OURS, THEIRS)


@pytest.mark.parametrize(
    "options",
    [{"lr": 0.0}, {"lr": -1.0}, {"eps": 0.0}, {"betas": (1.0, 0.9)}, {"betas": (0.9, -0.1)}, {"lr": torch.ones(2)}],
    ids=str,
)
def test_same_messages_in_the_constructor(options: dict[str, Any]) -> None:
    messages = []
    for cls in (OURS, THEIRS):
        with pytest.raises(ValueError, match=r".") as caught:
            cls([torch.zeros(2, 2, requires_grad=True)], **options)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize("table", [torch.zeros(2, 2).to_sparse(), torch.zeros(2, 2, dtype=torch.complex64)], ids=str)
def test_same_messages_about_parameters(table: Any) -> None:
    messages = []
    for cls in (OURS, THEIRS):
        with pytest.raises(ValueError, match=r"^(Sparse|Complex) params at indices") as caught:
            cls([torch.zeros(2, 2, requires_grad=True), table.requires_grad_()])
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_dense_gradients_are_refused_in_torchs_words() -> None:
    pair = Pair()
    for rows in ([1], [2, 3]):  # on a table that was never stepped, and on one that was
        before, count = pair.table.detach().clone(), pair.ours.step_count
        pair.table.grad, pair.twin.grad = torch.ones_like(pair.table), torch.ones_like(pair.twin)
        for opt in (pair.ours, pair.theirs):
            with pytest.raises(
                RuntimeError, match=r"^SparseAdam does not support dense gradients, please consider Adam"
            ):
                opt.step()
        assert pair.ours.step_count == count
        torch.testing.assert_close(pair.table.detach(), before, rtol=0, atol=0)
        pair.step(rows)
        pair.assert_close()


def test_it_is_made_for_an_embedding() -> None:
    torch.manual_seed(0)
    module = torch.nn.EmbeddingBag(50, 4, mode="mean", sparse=True)
    twin = copy.deepcopy(module)
    opts = OURS(module.parameters(), lr=0.1), THEIRS(twin.parameters(), lr=0.1)
    numbers = torch.randint(50, (8, 5))
    losses = []
    for _ in range(20):
        for net, opt in zip((module, twin), opts, strict=True):
            opt.zero_grad()
            loss = (net(numbers) - 1).square().mean()
            loss.backward()
            opt.step()
            losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
    torch.testing.assert_close(module.weight, twin.weight, rtol=1e-5, atol=1e-6)
