"""States in 8 bits, parameters in two pieces or rounded at random: what a step does, and what is saved of it."""

import copy
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cases import FIRST_OF_EACH_RULE, Case

import fastopt

SIZES = [(3, 5), (70_001,), (0,), (1,), (31, 33)]


def arrays(rng: np.random.Generator) -> list[Any]:
    return [rng.normal(size=shape).astype(np.float32) for shape in SIZES]


# ---- states in 8 bits ----


@pytest.mark.parametrize("case", [case for case in FIRST_OF_EACH_RULE if not case.measures])
def test_a_step_is_the_float32_step_of_what_the_codes_stand_for(case: Case, rng: np.random.Generator) -> None:
    """The parameter sees the new states before they are rounded."""
    params = arrays(rng)
    coded = case.make(params, state_dtype="8bit")
    for _ in range(3):
        grads = arrays(rng)
        plain = case.make([param.copy() for param in params])
        state = coded.state_dict()
        for group in state["param_groups"]:
            del group["state_dtype"]
        plain.load_state_dict(state)
        plain.step(grads)
        coded.step(grads)
        after = coded.state_dict()["state"]
        for slot, (ours, theirs) in enumerate(zip(params, plain.param_groups[0]["params"], strict=True)):
            assert ours.tobytes() == theirs.tobytes()
            for name, whole in plain.state[slot].items():
                if name not in coded.method.states or not whole.size:
                    continue
                found, kind = after[slot][name], coded.method.states[name].kind
                unit = np.abs(whole).max()
                if kind == "exact":
                    assert found.tobytes() == whole.tobytes()
                elif kind == "moment":
                    assert np.abs(found - whole).max() <= unit / 126
                else:
                    assert np.abs(np.sqrt(found) - np.sqrt(whole)).max() <= np.sqrt(unit) / 254


def test_a_snapshot_has_float32_or_the_codes() -> None:
    p = np.ones((40, 3), np.float32, order="F")
    opt = fastopt.Adam(p, state_dtype="8bit")
    opt.step(np.asfortranarray(np.arange(120, dtype=np.float32).reshape(40, 3)))
    plain, codes = opt.state_dict()["state"][0], opt.state_dict(compressed=True)["state"][0]
    assert {name: value.dtype.name for name, value in plain.items() if name != "step"} == {
        "exp_avg": "float32",
        "exp_avg_sq": "float32",
    }
    assert plain["exp_avg"][39, 2] == pytest.approx(11.9)
    assert codes["exp_avg"].dtype == np.int8
    assert codes["exp_avg_sq"].dtype == np.uint8
    assert codes["exp_avg::scales"].shape == (4,)
    # Codes that were made in another memory order.
    other = fastopt.Adam(np.ascontiguousarray(p), state_dtype="8bit")
    other.load_state_dict(opt.state_dict(compressed=True))
    assert np.allclose(other.state_dict()["state"][0]["exp_avg"], plain["exp_avg"], atol=0.1)


def test_tiny_gradients_have_states() -> None:
    """In float16, a scale would be zero."""
    p = np.zeros(64, np.float32)
    opt = fastopt.Adam(p, lr=1.0, eps=1e-30, state_dtype="8bit")
    for _ in range(3):
        opt.step(np.full_like(p, 1e-12))
    assert p == pytest.approx(-3.0, rel=1e-3)


def test_a_moment_is_never_divided_by_a_lost_square() -> None:
    """Beside a much larger neighbour, the root of an average of squares is less than half a code."""
    p = np.zeros(32, np.float32)
    opt = fastopt.Adam(p, lr=1.0, state_dtype="8bit")
    grad = np.full_like(p, 1e-3)
    grad[0] = 10.0
    opt.step(grad)
    for _ in range(30):
        opt.step(np.zeros_like(p))
    assert np.abs(p).max() < 50  # divided by epsilon it would be thousands


def test_what_is_not_finite_stays_in_its_group() -> None:
    p = np.zeros(96, np.float32)
    opt = fastopt.Adam(p, state_dtype="8bit")
    grad = np.ones_like(p)
    grad[40] = np.nan
    for _ in range(2):
        opt.step(grad)
    assert np.isnan(p[32:64]).all()
    assert np.isfinite(p[:32]).all()
    assert np.isfinite(p[64:]).all()


@pytest.mark.parametrize(("dtype", "most"), [("8bit", 2.3), ("bfloat16", 4), ("float32", 8)])
def test_bytes_of_states(dtype: str, most: float) -> None:
    p = np.ones(64_000, np.float32)
    opt = fastopt.AdamW(p, state_dtype=dtype)
    assert opt.state_bytes() / p.size <= most
    assert opt.state_bytes() == sum(state.nbytes for state in opt.state[0].values())


def test_an_edit_converts_the_states(rng: np.random.Generator) -> None:
    p = rng.normal(size=100).astype(np.float32)
    opt = fastopt.Adam(p, state_dtype="8bit")
    opt.step(p.copy())
    known = opt.state_dict()["state"][0]["exp_avg"]
    for dtype in ("float32", "8bit", "bfloat16", "8bit", None):
        opt.state_dtype = dtype
        opt.param_groups[0]["lr"] = 0.0
        opt.param_groups[0]["betas"] = (0.999999999, 0.999)
        opt.step(np.zeros_like(p))
        assert ("exp_avg::scales" in opt.state[0]) == (dtype == "8bit")
    assert np.abs(decoded(opt.state[0]["exp_avg"]) - known).max() <= 0.02 * np.abs(known).max()


def decoded(state: Any) -> Any:
    return state if state.dtype == np.float32 else (state.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def change(state: dict[str, Any], name: str, value: Any) -> None:
    state["state"][0][name] = value


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s: change(s, "exp_avg::scales", np.ones(3, np.float32)), "expected 2 scales in float32, got shape"),
        (lambda s: change(s, "exp_avg::scales", np.ones(2)), "expected 2 scales in float32, got shape"),
        (lambda s: change(s, "exp_avg", np.ones(50, np.int16)), "expected codes of dtype int8 or uint8"),
        (lambda s: change(s, "exp_avg", np.ones(51, np.int8)), "expected the parameter's shape"),
        (lambda s: s["state"][0].pop("exp_avg::scales"), "expected dtype float32, float64, float16 or bfloat16"),
    ],
)
def test_what_cannot_be_codes_is_refused(edit: Callable[[Any], Any], message: str) -> None:
    opt = fastopt.Adam(np.ones(50, np.float32), state_dtype="8bit")
    opt.step(np.ones(50, np.float32))
    state = copy.deepcopy(opt.state_dict(compressed=True))
    before = opt.state_dict(compressed=True)["state"][0]
    edit(state)
    with pytest.raises((TypeError, ValueError), match=message):
        opt.load_state_dict(state)
    after = opt.state_dict(compressed=True)["state"][0]
    assert all(np.array_equal(after[name], before[name]) for name in before)


# ---- torch ----


def test_torch_has_the_same_codes_and_torch_optim_takes_over(rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    import fastopt.torch

    p = rng.normal(size=9001).astype(np.float32)
    ours = torch.nn.Parameter(torch.tensor(p))
    opt, other = fastopt.AdamW(p, state_dtype="8bit"), fastopt.torch.AdamW([ours], state_dtype="8bit")
    for _ in range(3):
        grad = rng.normal(size=p.shape).astype(np.float32)
        ours.grad = torch.tensor(grad)
        opt.step(grad)
        other.step()
    assert ours.detach().numpy().tobytes() == p.tobytes()
    for name in opt.state[0]:
        assert other.state[ours][name].numpy().tobytes() == opt.state[0][name].tobytes()
    assert other.state_bytes() == opt.state_bytes() + 4  # and the number of steps
    theirs = torch.optim.AdamW([ours])
    theirs.load_state_dict(other.state_dict())
    assert theirs.state[ours]["exp_avg"].dtype == torch.float32
    theirs.step()
    again = fastopt.AdamW(p, state_dtype="8bit")
    again.load_state_dict(other.state_dict(compressed=True))
    assert all(again.state[0][name].tobytes() == opt.state[0][name].tobytes() for name in opt.state[0])


def test_torch_resumes_codes_from_a_file(rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    import fastopt.torch

    def stepped(opt: Any, param: Any, grads: list[Any]) -> None:
        for grad in grads:
            param.grad = grad.to(param.dtype)
            opt.step()

    grads = [torch.tensor(rng.normal(size=(7, 33)).astype(np.float32)) for _ in range(4)]
    whole, parted = (torch.nn.Parameter(torch.ones(7, 33, dtype=torch.bfloat16)) for _ in range(2))
    options: dict[str, Any] = {"lr": 0.01, "state_dtype": "8bit", "master": "split8"}
    opt = fastopt.torch.Lion([whole], **options)
    stepped(opt, whole, grads)
    first = fastopt.torch.Lion([parted], **options)
    stepped(first, parted, grads[:2])
    file = io.BytesIO()
    torch.save(first.state_dict(compressed=True), file)
    file.seek(0)
    second = fastopt.torch.Lion([parted])
    second.load_state_dict(torch.load(file, weights_only=True))
    stepped(second, parted, grads[2:])
    assert torch.equal(parted, whole)
    for name in opt.state[whole]:
        assert torch.equal(torch.as_tensor(second.state[parted][name]), torch.as_tensor(opt.state[whole][name]))


LAYOUTS: dict[str, Callable[[Any], Any]] = {
    "transposed": lambda x: x.t(),
    "with gaps": lambda x: x.repeat(1, 2)[:, ::2],
    "with gaps, transposed": lambda x: x.repeat(1, 2)[:, ::2].t(),
    "channels last": lambda x: x.reshape(4, 2, 5, 5).to(memory_format=__import__("torch").channels_last),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_torch_steps_any_layout(layout: str, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    import fastopt.torch

    start = torch.linspace(-2, 2, 200).reshape(20, 10).to(getattr(torch, dtype))
    odd = torch.nn.Parameter(LAYOUTS[layout](start))
    values = odd.detach().clone(memory_format=torch.contiguous_format)
    like = fastopt.torch.Adam([plain := torch.nn.Parameter(values)], lr=0.1)
    opt = fastopt.torch.Adam([odd], lr=0.1, state_dtype="8bit")
    for k in range(3):
        odd.grad = (odd.detach() * (k + 1)).clone()
        plain.grad = (plain.detach() * (k + 1)).clone()
        opt.step()
        like.step()
        resumed = fastopt.torch.Adam([odd], lr=0.1)
        resumed.load_state_dict(opt.state_dict(compressed=True))
        opt = resumed
    assert torch.allclose(odd.detach().float(), plain.detach().float(), atol=0.03)


def test_torch_keeps_float32_states_of_complex_parameters_and_makes_sparse_gradients_dense() -> None:
    torch = pytest.importorskip("torch")
    import fastopt.torch

    waves, table = torch.nn.Parameter(torch.ones(40, dtype=torch.complex64)), torch.nn.Embedding(10, 5, sparse=True)
    opt = fastopt.torch.Adam([waves], state_dtype="8bit")
    waves.grad = torch.ones_like(waves)
    opt.step()
    assert opt.state[waves]["exp_avg"].dtype == torch.complex64
    rows = fastopt.torch.SGD(table.parameters(), lr=0.1, momentum=0.9, state_dtype="8bit")
    before = table.weight.detach().clone()
    table(torch.tensor([3, 3])).sum().backward()
    rows.step()
    assert (table.weight[3] != before[3]).all()
    assert torch.equal(table.weight[4], before[4])


@pytest.mark.parametrize("width", [32, 96, 320])
def test_rows_of_whole_groups_are_stepped_alone(width: int, rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    import fastopt.torch

    start = torch.tensor(rng.normal(size=(50, width)).astype(np.float32))
    table = torch.nn.Parameter(start.clone())
    rows = torch.tensor([3, 7, 8, 41])
    picked = torch.nn.Parameter(start[rows].clone())
    opt = fastopt.torch.Adam([table], lr=0.1, state_dtype="8bit", lazy=True)
    other = fastopt.torch.Adam([picked], lr=0.1, state_dtype="8bit")
    for _ in range(3):
        values = torch.tensor(rng.normal(size=(4, width)).astype(np.float32))
        table.grad = torch.sparse_coo_tensor(rows[None], values, table.shape, check_invariants=True)
        picked.grad = values
        opt.step()
        other.step()
    expected = start.clone()
    expected[rows] = picked.detach()
    assert torch.equal(table.detach(), expected)


def test_rows_that_cut_groups_are_refused_where_only_they_may_change() -> None:
    torch = pytest.importorskip("torch")
    import fastopt.torch

    table = torch.nn.Parameter(torch.ones(6, 33))
    opt = fastopt.torch.Adam([table], state_dtype="8bit", lazy=True)
    table.grad = torch.sparse_coo_tensor([[1]], torch.ones(1, 33), table.shape, check_invariants=True)
    with pytest.raises(RuntimeError, match="has rows of 33 elements, expected a multiple of 32"):
        opt.step()
    p = np.ones((6, 33), np.float32)
    with pytest.raises(ValueError, match="has rows of 33 elements, expected a multiple of 32"):
        fastopt.Adam(p, state_dtype="8bit", lazy=True).step(fastopt.Rows(np.array([1]), np.ones((1, 33), np.float32)))


def test_torch_refuses_codes_without_scales_and_wrong_scales() -> None:
    torch = pytest.importorskip("torch")
    import fastopt.torch

    param = torch.nn.Parameter(torch.ones(40))
    opt = fastopt.torch.Adam([param], state_dtype="8bit")
    param.grad = torch.ones_like(param)
    opt.step()
    scales = opt.state[param].pop("exp_avg::scales")
    with pytest.raises(RuntimeError, match=r"exp_avg of .* is of dtype torch.int8 and has no scales beside it"):
        opt.step()
    opt.state[param]["exp_avg::scales"] = scales.double()
    with pytest.raises(RuntimeError, match=r"the scales of exp_avg of .* expected 2 in float32"):
        opt.step()
    opt.state[param]["exp_avg::scales"] = scales
    opt.step()


# ---- parameters in two pieces ----


def trained(torch: Any, dtype: str, **options: Any) -> tuple[Any, Any]:
    """A parameter after some small steps, and its optimizer."""
    import fastopt.torch

    param = torch.nn.Parameter(torch.linspace(0.5, 2, 999).to(torch.bfloat16).to(getattr(torch, dtype)))
    opt = fastopt.torch.AdamW([param], lr=1e-4, state_dtype="float32", **options)
    for k in range(50):
        param.grad = torch.sin(torch.arange(999.0) + k / 30).bfloat16().to(param.dtype)
        opt.step()
    return param.detach(), opt


def test_split_is_float32_and_split8_nearly() -> None:
    torch = pytest.importorskip("torch")
    whole, _ = trained(torch, "float32")
    halves, opt = trained(torch, "bfloat16", master="split")
    (entry,) = opt.state.values()
    upper = halves.view(torch.int16).to(torch.int32) << 16
    assert torch.equal((upper + entry["remainder"].to(torch.int32)).view(torch.float32), whole)
    assert torch.equal(halves, whole.bfloat16())
    halves, opt = trained(torch, "bfloat16", master="split8")
    (entry,) = opt.state.values()
    assert entry["remainder"].dtype == torch.int8
    upper = halves.view(torch.int16).to(torch.int32) << 16
    value = (upper + (entry["remainder"].to(torch.int32) << 8)).view(torch.float32)
    assert torch.allclose(value, whole, rtol=50 * 2.0**-16, atol=0)  # half a place of 16 bits, each step


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_master_is_float32_training_and_the_parameter_its_copy(dtype: str, layout: str) -> None:
    torch = pytest.importorskip("torch")
    import fastopt.torch

    start = LAYOUTS[layout](torch.linspace(0.5, 2, 200).reshape(20, 10).to(getattr(torch, dtype)))
    narrow, whole = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.float())
    options: dict[str, Any] = {"lr": 1e-4, "state_dtype": "float32"}
    opt = fastopt.torch.AdamW([narrow], master="float32", **options)
    other = fastopt.torch.AdamW([whole], **options)
    for k in range(20):
        narrow.grad = torch.sin(narrow.detach() * k)
        whole.grad = narrow.grad.float()
        opt.step()
        other.step()
        again = fastopt.torch.AdamW([narrow])
        again.load_state_dict(copy.deepcopy(opt.state_dict(compressed=k % 2 == 0)))
        opt = again
        assert torch.equal(opt.state[narrow]["master"], whole.detach())
        assert torch.equal(narrow.detach(), whole.detach().to(narrow.dtype))
    assert opt.state_bytes() == 4 * 3 * 200 + 4
    plain = torch.optim.AdamW([narrow])
    plain.load_state_dict(opt.state_dict())
    plain.step()


ROW_BY_ROW: dict[str, dict[str, Any]] = {"Adafactor": {}, "Adam": {"rowwise": True}, "Adagrad": {"rowwise": True}}
"""Optimizers that step parameters row after row, however these lie in memory."""


@pytest.mark.parametrize("beside", [{"master": "float32"}, {"master": "split"}, {"state_dtype": "8bit"}])
@pytest.mark.parametrize("name", ROW_BY_ROW)
def test_what_lies_beside_a_transposed_parameter_is_in_the_order_of_the_step(
    name: str, beside: dict[str, Any], rng: np.random.Generator
) -> None:
    torch = pytest.importorskip("torch")
    import fastopt.torch

    grads = [torch.tensor(rng.normal(size=(64, 32)).astype(np.float32)).bfloat16() for _ in range(4)]
    start = torch.tensor(rng.normal(size=(64, 32)).astype(np.float32)).bfloat16()
    found = []
    for transposed in (False, True):
        for load in (False, True):
            param = torch.nn.Parameter(start.t().contiguous().t() if transposed else start.clone())
            opt = getattr(fastopt.torch, name)([param], lr=0.1, **ROW_BY_ROW[name], **beside)
            for grad in grads:
                param.grad = grad.clone()
                opt.step()
                if load:  # into one that lies the other way
                    saved, values = opt.state_dict(compressed=transposed), param.detach()
                    other = values.t().contiguous().t() if values.is_contiguous() else values.contiguous()
                    param = torch.nn.Parameter(other)
                    opt = getattr(fastopt.torch, name)([param], lr=0.1, **ROW_BY_ROW[name])
                    opt.load_state_dict(saved)
            found.append(param.detach())
    for other in found[1:]:
        assert torch.equal(other, found[0])


@pytest.mark.parametrize("name", ["SGD", "Adagrad", "AdamW", "SparseAdam"])
def test_rows_of_a_transposed_table_and_its_master(name: str, rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    import fastopt.torch

    start = torch.tensor(rng.normal(size=(50, 7)).astype(np.float32)).bfloat16()
    table, like = torch.nn.Parameter(start.t().contiguous().t()), torch.nn.Parameter(start.clone())
    options: dict[str, Any] = {"lr": 0.1, "master": "float32", **({"lazy": True} if name == "AdamW" else {})}
    opt, other = (getattr(fastopt.torch, name)([param], **options) for param in (table, like))
    rows = torch.tensor([3, 7, 8, 41])
    for _ in range(3):
        values = torch.tensor(rng.normal(size=(4, 7)).astype(np.float32)).bfloat16()
        table.grad = torch.sparse_coo_tensor(rows[None], values, table.shape, check_invariants=True)
        like.grad = table.grad.clone()
        if name in ("AdamW", "SparseAdam"):  # which change these rows alone
            with pytest.raises(RuntimeError, match="in row order"):
                opt.step()
            return
        opt.step()
        other.step()
    assert torch.equal(table, like)


def test_a_master_follows_what_others_write_into_its_parameter() -> None:
    torch = pytest.importorskip("torch")
    param, opt = trained(torch, "bfloat16", master="float32")
    (owner,) = opt.state
    exact = opt.state[owner]["master"].clone()
    with torch.no_grad():
        owner[:10] = 7.0
    opt.param_groups[0]["lr"] = 0.0
    opt.step()
    assert (opt.state[owner]["master"][:10] == 7).all()
    assert torch.equal(opt.state[owner]["master"][10:], exact[10:])
    assert torch.equal(param[10:], exact[10:].bfloat16())
    opt.write_copies({owner: torch.empty(999)})
    with pytest.raises(RuntimeError, match="has a copy already, the master's"):
        opt.step()


def test_a_master_and_two_pieces_are_the_same_numbers() -> None:
    torch = pytest.importorskip("torch")
    param, opt = trained(torch, "bfloat16", master="split")
    whole = trained(torch, "float32")[0]
    (owner,) = opt.state
    opt.param_groups[0]["lr"] = 0.0
    remainder = opt.state[owner]["remainder"].clone()
    opt.master = "float32"
    opt.step()
    assert torch.equal(opt.state[owner]["master"], whole)
    assert "remainder" not in opt.state[owner]
    opt.master = "split"
    opt.step()
    assert torch.equal(opt.state[owner]["remainder"], remainder)
    assert "master" not in opt.state[owner]
    assert torch.equal(param, whole.bfloat16())
    opt.master = None
    opt.step()
    assert opt.state[owner].keys() == {"step", "exp_avg", "exp_avg_sq"}


def test_rows_of_a_master_are_stepped_alone(rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    import fastopt.torch

    start = torch.tensor(rng.normal(size=(50, 7)).astype(np.float32)).bfloat16()
    table, whole = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.float())
    rows = torch.tensor([3, 7, 8, 41])
    opt = fastopt.torch.Adagrad([table], lr=1e-3, master="float32", state_dtype="float32")
    other = fastopt.torch.Adagrad([whole], lr=1e-3)
    for _ in range(3):
        values = torch.tensor(rng.normal(size=(4, 7)).astype(np.float32)).bfloat16()
        table.grad = torch.sparse_coo_tensor(rows[None], values, table.shape, check_invariants=True)
        whole.grad = table.grad.float()
        opt.step()
        other.step()
    assert torch.equal(opt.state[table]["master"], whole.detach())
    assert torch.equal(table.detach(), whole.detach().bfloat16())


def test_updates_below_half_a_place_are_lost_to_nearest_and_kept_by_others() -> None:
    torch = pytest.importorskip("torch")
    start, whole = torch.linspace(0.5, 2, 999).bfloat16(), trained(torch, "float32")[0]
    far = (whole - start.float()).abs().mean()
    assert torch.equal(trained(torch, "bfloat16")[0], start)
    for options in ({"master": "split"}, {"master": "split8"}, {"master": "float32"}, {"rounding": "stochastic"}):
        moved = trained(torch, "bfloat16", **options)[0]
        bias = (moved.float() - whole).mean().abs()
        assert bias < far / 3, options


def test_a_remainder_follows_an_edit_of_the_option() -> None:
    torch = pytest.importorskip("torch")
    param, opt = trained(torch, "bfloat16", master="split")
    (owner,) = opt.state
    exact = opt.state[owner]["remainder"].clone()
    for master in ("split8", "split", None):
        opt.master = master
        opt.param_groups[0]["lr"] = 0.0
        opt.step()
        rest = opt.state[owner].get("remainder")
        if master is None:
            assert rest is None
        else:
            assert rest.dtype == (torch.int8 if master == "split8" else torch.int16)
            whole = rest.to(torch.int32) * (256 if master == "split8" else 1)
            assert (whole - exact).abs().max() <= 256
    assert torch.equal(owner.detach(), param)


def test_master_and_rounding_exclude_each_other_and_float32_has_no_use_for_them() -> None:
    torch = pytest.importorskip("torch")
    import fastopt.torch

    with pytest.raises(ValueError, match=r"Invalid master: expected one of \(None, 'split', .* got 'half'"):
        fastopt.torch.SGD([torch.nn.Parameter(torch.ones(3))], master="half")  # type: ignore[arg-type]
    param = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    opt = fastopt.torch.SGD([param], master="split", rounding="stochastic")
    param.grad = torch.ones_like(param)
    with pytest.raises(ValueError, match="rounding: 'stochastic' is for parameters without a master"):
        opt.step()
    assert not opt.state.get(param)
    plain = torch.nn.Parameter(torch.ones(3))
    opt = fastopt.torch.SGD([plain], master="split")
    plain.grad = torch.ones_like(plain)
    opt.step()
    assert not opt.state.get(plain)
