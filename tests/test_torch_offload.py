"""Offload: the numbers of the plain optimizer on float32 masters, whatever arrives when."""

import copy
import gc
import io
import math
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import pytest
from cases import CASES, Case

torch = pytest.importorskip("torch")

from torch_cases import assert_equal, nonzero, ours  # noqa: E402

import fastopt.torch  # noqa: E402
from fastopt import optimizers, schedules  # noqa: E402
from fastopt.backends.torch import joined  # noqa: E402
from fastopt.torch import hosted, link, masters, offload  # noqa: E402
from fastopt.torch.offload import Offload  # noqa: E402

STEPS = 4
SHAPES = [(7, 5), (), (0,), (131,), (3, 4, 2, 5), (70_000,), (9, 9)]


class LateLink(link.Link):
    """A device whose copies happen later, each way in order: what does not wait reads old numbers."""

    def __init__(self) -> None:
        self.ways = [ThreadPoolExecutor(1), ThreadPoolExecutor(1)]
        self.last: Any = None

    def later(self, way: int, source: Any, target: Any) -> Any:
        def copy() -> None:
            time.sleep(0.001)
            with torch.no_grad():
                target.copy_(source)

        return self.ways[way].submit(copy)

    def down(self, source: Any, target: Any) -> Callable[[], object]:
        target.fill_(float("nan"))
        result: Callable[[], object] = self.later(0, source.clone(), target).result
        return result

    def up(self, source: Any, target: Any) -> Callable[[], object]:
        torch.autograd.graph.increment_version(target)  # as a copy does when it is asked for
        self.last = self.later(1, source, target.data)
        result: Callable[[], object] = self.last.result
        return result

    def join(self) -> None:
        if self.last is not None:
            self.last.result()


@pytest.fixture(params=["at once", "late"])
def device(request: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "late":
        monkeypatch.setattr(offload, "link_to", lambda device: LateLink())


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosted, "CHUNK", 1000)


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


NAMES = [
    name
    for name, cls in optimizers.registry().items()
    if not (cls.method.advances or cls.method.between or cls.method.refusal_of_dense)
]


@pytest.mark.parametrize("name", sorted(optimizers.registry().keys() - NAMES))
def test_what_cannot_be_stepped_in_parts_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"optimizer: {name} (keeps numbers of all|needs products|is for sparse)"):
        Offload(make_params(torch.float32), ours(name))


def rounded(masters: list[Any], params: list[Any]) -> list[Any]:
    return [master.detach().to(param.dtype) for master, param in zip(masters, params, strict=True)]


def in_groups(params: list[Any], **first: Any) -> list[dict[str, Any]]:
    return [{"params": params[:3], **first}, {"params": params[3:]}]


@pytest.mark.parametrize("in_backward", [True, False])
@pytest.mark.parametrize("clip_norm", [None, 1.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("name", NAMES)
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
@pytest.mark.parametrize("case", [case for case in CASES if case.optimizer in NAMES])
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


# ---- in pieces ----


@pytest.fixture
def stepped(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """Note which pieces are stepped: (number of the parameter, start, stop)."""
    found: list[tuple[int, int, int]] = []
    inner = masters.Masters.step_pieces

    def noted(self: Any, pieces: list[Any], unscale: float) -> None:
        found.extend((piece.hosted.number, piece.start, piece.stop) for piece in pieces)
        assert len({piece.hosted.number for piece in pieces}) == len(pieces)
        inner(self, pieces, unscale)

    monkeypatch.setattr(masters.Masters, "step_pieces", noted)
    return found


LARGE = 70_000
CUT = [(5, start, min(start + 8192, LARGE)) for start in range(0, LARGE, 8192)]


@pytest.mark.parametrize("state_dtype", [None, "8bit"])
@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_large_parameters_are_stepped_in_pieces(stepped: Any, clip_norm: Any, state_dtype: Any) -> None:
    params = make_params(torch.bfloat16)
    masters = masters_of(params)
    plain = ours("NAdam")(masters, clip_norm=clip_norm, state_dtype=state_dtype)
    opt = Offload(params, ours("NAdam"), clip_norm=clip_norm, state_dtype=state_dtype)
    for step in range(STEPS):
        stepped.clear()
        backward(params, step, masters)
        opt.step()
        plain.step()
        plain.zero_grad()
        assert_equal(params, rounded(masters, params))
        assert [piece for piece in stepped if piece[0] == 5] == CUT
    for param, master in zip(params, masters, strict=True):
        assert_equal({key: opt.state[param][key] for key in plain.state[master]}, dict(plain.state[master]))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("LAMB", {}),
        ("LARS", {"momentum": 0.9}),
        ("StableAdamW", {}),
        ("Adafactor", {}),
        ("AdamW", {"cautious": True}),
        ("AdamW", {"state_dtype": "bfloat16"}),
    ],
)
def test_what_has_sums_or_rounds_at_random_is_not_cut(stepped: Any, name: str, options: dict[str, Any]) -> None:
    params = make_params(torch.bfloat16)
    opt = Offload(params, ours(name), **options)
    backward(params, 0)
    opt.step()
    assert [piece for piece in stepped if piece[0] == 5] == [(5, 0, LARGE)]


@pytest.mark.parametrize("options", [{}, {"clip_norm": 0.1}, {"in_backward": False}, {"master": "split"}])
@pytest.mark.parametrize("order", ["rows", "columns", "gaps", "other gradient"])
def test_pieces_of_any_memory_order(stepped: Any, order: str, options: dict[str, Any]) -> None:
    """Also of sums over several backward passes, and beside other parameters."""
    torch.manual_seed(0)
    values = torch.randn(300, 200, dtype=torch.bfloat16)
    if order == "columns":
        values = values.t()
    if order == "gaps":
        values = torch.randn(300, 400, dtype=torch.bfloat16)[:, ::2]
    params = [param.requires_grad_() for param in (torch.randn(5).bfloat16(), values, torch.randn(7).bfloat16())]
    masters = masters_of(params)
    given = {name: value for name, value in options.items() if name == "clip_norm"}
    opt = Offload(params, ours("AdamW"), lr=0.1, state_dtype="float32", **options)
    plain = ours("AdamW")(masters, lr=0.1, **given)
    for step in range(STEPS):
        for master in masters:
            master.grad = torch.zeros_like(master)
        for last in (False, True):
            generator = torch.Generator().manual_seed(2 * step + last)
            with nullcontext() if last else opt.accumulate():
                for param, master in zip(params, masters, strict=True):
                    grad = torch.randn(param.shape, generator=generator).bfloat16()
                    if order == "other gradient" and grad.ndim == 2:
                        grad = grad.t().contiguous().t()
                    param.backward(grad)
                    master.grad += grad.float()
        if not opt._in_backward:
            for param, master in zip(params, masters, strict=True):
                master.grad = param.grad.float()
        opt.step()
        opt.zero_grad()
        plain.step()
        for param, master in zip(params, masters, strict=True):
            state = opt.state[param]
            kept = joined(param.detach(), state["remainder"]) if "remainder" in state else state["master"]
            assert_equal(kept, master.detach())
    assert any(number == 1 and start > 0 for number, start, _ in stepped) == (order != "gaps")


# ---- masters in two pieces ----


@pytest.mark.parametrize(("master", "clip_norm"), [("split", None), ("split", 1.0), ("split8", None)])
@pytest.mark.parametrize(
    "name", [name for name in NAMES if name != "Adafactor"]
)  # (some matrices have no groups of 32)
def test_the_bits_of_the_plain_optimizer_in_two_pieces(name: str, master: str, clip_norm: Any) -> None:
    params, twins = make_params(torch.bfloat16), make_params(torch.bfloat16)
    plain = ours(name)(twins, lr=0.01, master=master, clip_norm=clip_norm)
    opt = Offload(params, ours(name), lr=0.01, master=master, clip_norm=clip_norm)
    for step in range(STEPS):
        backward(params, step, leave_out=1 if step == 2 else None)
        backward(twins, step, leave_out=1 if step == 2 else None)
        opt.step()
        plain.step()
        plain.zero_grad()
        assert opt.last_step == plain.last_step
        assert_equal(params, twins)
    for param, twin in zip(params, twins, strict=True):
        assert_equal(opt.state[param], plain.state.get(twin, {}))


def test_with_a_remainder_the_numbers_are_those_of_a_float32_master() -> None:
    params = make_params(torch.bfloat16)
    masters = masters_of(params)
    options: dict[str, Any] = {"lr": 0.01, "clip_norm": 1.0, "state_dtype": "float32"}
    opt, plain = Offload(params, ours("AdamW"), master="split", **options), ours("AdamW")(masters, **options)
    for step in range(STEPS):
        backward(params, step, masters)
        opt.step()
        plain.step()
        plain.zero_grad()
        for param, master in zip(params, masters, strict=True):
            assert_equal(joined(param.detach(), opt.state[param]["remainder"]), master.detach())


def test_the_host_keeps_no_values_of_parameters_in_two_pieces() -> None:
    model = make_model()
    opt = Offload(model.parameters(), fastopt.torch.AdamW, master="split", state_dtype="8bit")
    continued(model, opt, range(2))
    assert all("master" not in entry for entry in opt.state.values())
    assert opt.host._copies == {}
    assert all(len(one.sizes) == 1 for one in opt._hosted)
    assert sum(len(slab.memory) for slab in opt._slabs) > 0
    here = {slab.memory.untyped_storage().data_ptr() for slab in opt._slabs}
    assert {one.master.untyped_storage().data_ptr() for one in opt._hosted} <= here


def test_parameters_in_float32_have_no_second_piece() -> None:
    model = make_model(torch.float32)
    twin = Twin(model, lr=0.1)
    opt = Offload(model.parameters(), fastopt.torch.AdamW, lr=0.1, master="split")
    for step in range(STEPS):
        loss_of(model, step).backward()
        opt.step()
        twin.step()
        twin.check()


@pytest.mark.parametrize("before", [None, "split", "split8"])
@pytest.mark.parametrize("after", [None, "split", "split8"])
def test_masters_in_one_piece_and_in_two_become_each_other(before: Any, after: Any) -> None:
    """As in the plain optimizer, to which any of them can go."""
    model, opt = trained(master=before, state_dtype="float32")
    saved = copy.deepcopy({"model": model.state_dict(), "optimizer": opt.state_dict()})
    other, plain_model = make_model(), make_model()
    other.load_state_dict(saved["model"])
    plain_model.load_state_dict(saved["model"])
    resumed = Offload(other.parameters(), fastopt.torch.AdamW, master=after)
    resumed.load_state_dict(saved["optimizer"])
    plain = fastopt.torch.AdamW(plain_model.parameters())
    plain.load_state_dict(saved["optimizer"])
    plain.master = after or "float32"
    assert resumed.param_groups[0].get("master") == after
    if after is None and before is not None:
        for param, entry in zip(other.parameters(), saved["optimizer"]["state"].values(), strict=True):
            assert_equal(resumed.state[param]["master"], joined(param.detach(), entry["remainder"]))
    if {before, after} == {None, "split8"}:
        return  # (24 bits are in the middle of two numbers of bfloat16 too often: the plain optimizer decides later)
    continued(other, resumed, range(2, 5))
    continued(plain_model, plain, range(2, 5))
    assert_equal(list(other.parameters()), list(plain_model.parameters()))


# ---- as torch's optimizers are used ----


def make_model(dtype: Any = torch.bfloat16) -> Any:
    torch.manual_seed(0)
    layers = [
        torch.nn.Linear(16, 16),
        torch.nn.Tanh(),
        torch.nn.Linear(16, 16),
        torch.nn.Tanh(),
        torch.nn.Linear(16, 4),
    ]
    return torch.nn.Sequential(*layers).to(dtype)


class Twin:
    """A model whose every step is repeated by the plain optimizer, with the gradients that it had."""

    def __init__(self, model: Any, name: str = "AdamW", **options: Any) -> None:
        self.model = model
        self.params = [param for param in model.parameters() if param.requires_grad]
        self.masters = masters_of(self.params)
        self.plain = ours(name)(self.masters, **options)
        for param, master in zip(self.params, self.masters, strict=True):
            param.register_post_accumulate_grad_hook(self.note(master))

    def note(self, master: Any) -> Callable[[Any], None]:
        def hook(param: Any) -> None:
            grad = param.grad.float()
            master.grad = grad.clone() if master.grad is None else master.grad + grad

        return hook

    def step(self) -> None:
        self.plain.step()
        self.plain.zero_grad()

    def check(self) -> None:
        assert_equal(self.params, rounded(self.masters, self.params))


def batch(seed: int, dtype: Any = torch.bfloat16) -> Any:
    return torch.randn(8, 16, generator=torch.Generator().manual_seed(seed)).to(dtype)


def loss_of(model: Any, seed: int) -> Any:
    return model(batch(seed, next(model.parameters()).dtype)).float().square().mean()


def test_schedulers_and_schedules() -> None:
    twin = Twin(make_model(), lr=schedules.cosine(0.1, STEPS), weight_decay=0.1)
    opt = Offload(twin.model.parameters(), fastopt.torch.AdamW, lr=schedules.cosine(0.1, STEPS), weight_decay=0.1)
    for step in range(STEPS):
        loss_of(twin.model, step).backward()
        opt.step()
        twin.step()
        twin.check()
    assert opt.state_dict()["step_count"] == STEPS
    twin = Twin(make_model(), lr=0.1)
    opt = Offload(twin.model.parameters(), fastopt.torch.AdamW, lr=0.1)
    both = [torch.optim.lr_scheduler.ExponentialLR(one, 0.5) for one in (opt, twin.plain)]
    for step in range(STEPS):
        loss_of(twin.model, step).backward()
        opt.step()
        twin.step()
        for scheduler in both:
            scheduler.step()
        twin.check()
    assert opt.param_groups[0]["lr"] == 0.1 * 0.5**STEPS


@pytest.mark.parametrize("options", [{}, {"clip_norm": 0.1}, {"in_backward": False}])
def test_backward_passes_that_belong_to_one_step(options: dict[str, Any]) -> None:
    model = make_model()
    plain_options = {name: value for name, value in options.items() if name != "in_backward"}
    twin = Twin(model, lr=0.1, **plain_options)
    opt = Offload(model.parameters(), fastopt.torch.AdamW, lr=0.1, **options)
    for step in range(STEPS):
        with opt.accumulate():
            loss_of(model, 3 * step).backward()
            loss_of(model, 3 * step + 1).backward()
        loss_of(model, 3 * step + 2).backward()
        if not opt._in_backward:  # torch has added, in bfloat16
            for param, master in zip(twin.params, twin.masters, strict=True):
                master.grad = param.grad.float()
        opt.step()
        opt.zero_grad()
        twin.step()
        twin.check()


def test_with_clip_norm_every_so_many_steps_is_enough() -> None:
    twin = Twin(make_model(), lr=0.1, clip_norm=0.1)
    opt = Offload(twin.model.parameters(), fastopt.torch.AdamW, lr=0.1, clip_norm=0.1)
    for step in range(3 * STEPS):
        loss_of(twin.model, step).backward()
        if step % 3 == 2:
            opt.step()
            twin.step()
            twin.check()


def test_a_second_backward_pass_that_was_not_announced_is_an_error() -> None:
    model = make_model()
    opt = Offload(model.named_parameters(), fastopt.torch.AdamW, lr=0.1)
    loss_of(model, 0).backward()
    with pytest.raises(RuntimeError, match=r"parameter '4..*': a second gradient.*accumulate"):
        loss_of(model, 1).backward()
    opt.zero_grad()
    loss_of(model, 1).backward()
    opt.step()


def test_zero_grad_forgets_what_is_on_the_host() -> None:
    twin = Twin(make_model(), lr=0.1, clip_norm=0.1)
    opt = Offload(twin.model.parameters(), fastopt.torch.AdamW, lr=0.1, clip_norm=0.1)
    loss_of(twin.model, 7).backward()
    opt.zero_grad()
    twin.plain.zero_grad()
    loss_of(twin.model, 0).backward()
    opt.step()
    twin.step()
    twin.check()


def test_grad_scaler() -> None:
    """Scaled gradients, one step that is skipped, and the scale that follows from it."""
    model = make_model(torch.float16)
    opt = Offload(model.parameters(), fastopt.torch.AdamW, lr=0.1, clip_norm=0.1)
    masters = masters_of(list(model.parameters()))
    plain = fastopt.torch.AdamW(masters, lr=0.1, clip_norm=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=1)
    for step in range(STEPS):
        scale = scaler.get_scale()
        scaler.scale(loss_of(model, step)).backward()
        if step == 2:
            model[0].weight.grad[0, 0] = math.inf
        for param, master in zip(model.parameters(), masters, strict=True):
            master.grad = param.grad.float()
        plain.grad_scale = torch.tensor(scale)  # type: ignore[attr-defined]
        scaler.step(opt)
        scaler.update()
        if step == 2:
            assert opt.last_step
            assert opt.last_step.skipped
            assert scaler.get_scale() == scale / 2
        else:
            plain.step()
        opt.zero_grad()
        assert_equal(list(model.parameters()), rounded(masters, list(model.parameters())))
    assert opt.step_count == STEPS - 1


def test_grad_scaler_comes_too_late_for_gradients_that_have_left() -> None:
    model = make_model()
    opt = Offload(model.parameters(), fastopt.torch.AdamW)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(loss_of(model, 0)).backward()
    with pytest.raises(RuntimeError, match="in_backward=False"):
        scaler.step(opt)


@pytest.mark.parametrize("nonfinite", ["skip", "raise"])
def test_gradients_that_are_not_finite(nonfinite: str) -> None:
    model = make_model()
    opt = Offload(model.named_parameters(), fastopt.torch.AdamW, nonfinite=nonfinite)
    before = copy.deepcopy(model.state_dict())
    (loss_of(model, 0) + model[2].bias.float().sum() * math.inf).backward()
    if nonfinite == "raise":
        with pytest.raises(FloatingPointError, match=r"not finite: gradient of parameter '2\.bias'$"):
            opt.step()
    else:
        opt.step()
        assert opt.last_step
        assert opt.last_step.skipped
    assert_equal(dict(model.state_dict()), dict(before))
    assert opt.step_count == 0
    loss_of(model, 1).backward()
    opt.step()
    assert opt.step_count == 1


def test_tied_frozen_and_unused_parameters_and_checkpoints() -> None:
    model = make_model()
    model[2].weight = model[0].weight
    model[4].bias.requires_grad_(False)
    model.register_parameter("unused", torch.nn.Parameter(torch.ones(5, dtype=torch.bfloat16)))
    frozen = model[4].bias.clone()
    twin = Twin(model, lr=0.1)
    opt = Offload(model.parameters(), fastopt.torch.AdamW, lr=0.1)
    for step in range(STEPS):
        hidden = torch.utils.checkpoint.checkpoint(model[:3], batch(step), use_reentrant=False)
        model[3:](hidden).float().square().mean().backward()
        opt.step()
        twin.step()
        twin.check()
    assert_equal(model[4].bias, frozen)
    assert_equal(model.unused, torch.ones(5, dtype=torch.bfloat16))
    model[4].bias.requires_grad_()
    loss_of(model, 0).backward()
    opt.step()
    assert not torch.equal(model[4].bias, frozen)


def test_two_dtypes_and_a_new_group() -> None:
    generator = torch.Generator().manual_seed(0)
    narrow, wide, late = (
        nonzero((40,), dtype, generator).requires_grad_() for dtype in (torch.bfloat16, torch.float32, torch.float16)
    )
    params = [narrow, wide, late]
    masters = masters_of(params)
    opt = Offload([narrow, wide], fastopt.torch.AdamW, lr=0.1, in_backward=True)
    plain = fastopt.torch.AdamW(masters[:2], lr=0.1)
    for step in range(STEPS):
        if step == 2:
            opt.add_param_group({"params": [late], "lr": 0.5})
            plain.add_param_group({"params": [masters[2]], "lr": 0.5})
        backward(params, step, masters, leave_out=None if step >= 2 else 2)
        opt.step()
        plain.step()
        plain.zero_grad()
        assert_equal(params, rounded(masters, params))


def test_gradients_in_a_dtype_of_their_own() -> None:
    param = torch.ones(50, dtype=torch.bfloat16, requires_grad=True)
    param.grad_dtype = torch.float32
    master = torch.ones(50, requires_grad=True)
    opt, plain = Offload([param], fastopt.torch.SGD, lr=0.1), fastopt.torch.SGD([master], lr=0.1)
    param.grad = torch.linspace(0.001, 1.001, 50)
    master.grad = torch.linspace(0.001, 1.001, 50)
    opt.step()
    plain.step()
    assert_equal(opt.state[param]["master"], master.detach())


def test_who_else_writes_a_parameter_is_noticed() -> None:
    twin = Twin(make_model(), lr=0.1)
    opt = Offload(twin.model.parameters(), fastopt.torch.AdamW, lr=0.1)
    for step in range(STEPS):
        if step == 2:
            with torch.no_grad():
                twin.params[0].mul_(2)
                twin.masters[0].copy_(twin.params[0])
        loss_of(twin.model, step).backward()
        opt.step()
        twin.step()
        twin.check()


def test_a_closure_and_hooks() -> None:
    model = make_model()
    opt = Offload(model.parameters(), fastopt.torch.AdamW, lr=0.1)
    seen: list[str] = []
    opt.register_step_pre_hook(lambda *_: seen.append("before"))
    opt.register_step_post_hook(lambda *_: seen.append("after"))

    def closure() -> float:
        opt.zero_grad()
        loss = loss_of(model, 0)
        loss.backward()
        return float(loss.detach())

    losses = [opt.step(closure) for _ in range(20)]
    assert losses[-1] < losses[0]
    assert seen == ["before", "after"] * 20


# ---- checkpoints ----


def trained(steps: int = 2, **options: Any) -> tuple[Any, Offload]:
    model = make_model()
    opt = Offload(model.parameters(), fastopt.torch.AdamW, lr=0.1, **options)
    continued(model, opt, range(steps))
    return model, opt


def continued(model: Any, opt: Any, steps: range) -> None:
    for step in steps:
        loss_of(model, step).backward()
        opt.step()
        opt.zero_grad()


def test_a_checkpoint_goes_on_with_the_same_bits() -> None:
    model, opt = trained()
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": opt.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other = make_model()
    resumed = Offload(other.parameters(), fastopt.torch.AdamW, lr=0.7)
    resumed.load_state_dict(saved["optimizer"])
    other.load_state_dict(saved["model"])
    for one, two in ((model, opt), (other, resumed)):
        continued(one, two, range(2, 5))
    assert resumed.param_groups[0]["lr"] == 0.1
    assert resumed.step_count == opt.step_count == 5
    assert_equal(list(other.parameters()), list(model.parameters()))
    assert_equal(resumed.state_dict()["state"], opt.state_dict()["state"])


@pytest.mark.parametrize("library", [fastopt.torch, torch.optim])
def test_checkpoints_of_the_plain_optimizer_and_for_it(library: Any) -> None:
    _, opt = trained()
    wide = make_model().float()
    plain = library.AdamW(wide.parameters(), lr=0.7)
    saved = opt.state_dict()
    assert set(saved["state"][0]) == {"step", "exp_avg", "exp_avg_sq", "master"}
    plain.load_state_dict(saved)
    for param, entry in zip(wide.parameters(), saved["state"].values(), strict=True):
        param.data.copy_(entry["master"])
        assert_equal(plain.state[param]["exp_avg"], entry["exp_avg"])
    continued(wide, plain, range(2, 4))
    back = make_model().float()
    back.load_state_dict(wide.state_dict())
    twin = Twin(back, lr=0.1)
    resumed = Offload(back.parameters(), fastopt.torch.AdamW, lr=0.7)
    without = plain.state_dict()
    for entry in without["state"].values():
        entry.pop("master", None)
    resumed.load_state_dict(without)
    twin.plain.load_state_dict(without)
    loss_of(back, 5).backward()
    resumed.step()
    twin.step()
    twin.check()


def test_copies_and_pickles_go_on_alike() -> None:
    model, opt = trained(clip_norm=1.0)
    both = copy.deepcopy((model, opt))
    file = io.BytesIO()
    torch.save((model, opt), file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    for one, two in ((model, opt), both, loaded):
        assert two.last_step == opt.last_step or two is not opt
        continued(one, two, range(2, 4))
    for one, two in (both, loaded):
        assert two.host is not opt.host
        assert_equal(list(one.parameters()), list(model.parameters()))
        assert_equal(two.state_dict()["state"], opt.state_dict()["state"])


def test_saving_waits_for_steps_that_are_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    model, opt = trained()
    inner = opt._step_some

    def slow(*args: Any) -> None:
        time.sleep(0.05)
        inner(*args)

    monkeypatch.setattr(opt, "_step_some", slow)
    monkeypatch.setattr(hosted, "CHUNK", 1)
    loss_of(model, 2).backward()
    file = io.BytesIO()
    torch.save(opt.state_dict(), file)
    file.seek(0)
    saved = torch.load(file)
    assert {float(entry["step"]) for entry in saved["state"].values()} == {3.0}
    opt.step()


# ---- errors ----


def test_errors_have_names() -> None:
    model = make_model()
    with pytest.raises(TypeError, match=r"optimizer: expected a class of fastopt.torch, got <class 'torch.optim"):
        Offload(model.parameters(), torch.optim.AdamW)
    with pytest.raises(ValueError, match=r"parameter 'a': expected a dense tensor of float32.*got torch.float64"):
        Offload([("a", torch.ones(2, dtype=torch.float64, requires_grad=True))], fastopt.torch.AdamW)
    elsewhere = torch.ones(2, device="meta", requires_grad=True)
    with pytest.raises(ValueError, match=r"\['params'\]\[1\]: expected a tensor on cpu, as the first, got meta"):
        Offload([torch.ones(2, requires_grad=True), elsewhere], fastopt.torch.AdamW)
    with pytest.raises(ValueError, match="zero_grad_in_step"):
        Offload(model.parameters(), fastopt.torch.AdamW, zero_grad_in_step=True)
    with pytest.raises(ValueError, match="master: expected None"):
        Offload(model.parameters(), fastopt.torch.AdamW, master="half")
    with pytest.raises(ValueError, match=r"parameter '0.weight': expected a dense tensor of float32, bfloat16, got"):
        Offload(make_model(torch.float16).named_parameters(), fastopt.torch.AdamW, master="split")
    with pytest.raises(ValueError, match="ema: is of whole parameters"):
        Offload(model.parameters(), fastopt.torch.AdamW, master="split", ema=0.9)
    with pytest.raises(ValueError, match="master: Offload was made with None, got 'split'"):
        Offload([{"params": [*model.parameters()], "master": "split"}], fastopt.torch.AdamW)
    with pytest.raises(ValueError, match="rounding: Offload has masters"):
        Offload(model.parameters(), fastopt.torch.AdamW, rounding="stochastic")
    with pytest.raises(ValueError, match="Invalid learning rate"):
        Offload(model.parameters(), fastopt.torch.AdamW, lr=-1.0)
    opt = Offload(model.parameters(), fastopt.torch.AdamW)
    with pytest.raises(TypeError, match=r"expected one of fastopt.torch, got Offload"):
        fastopt.torch.step_in_backward(opt)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"got torch.float64"):
        opt.add_param_group({"params": [torch.ones(2, dtype=torch.float64, requires_grad=True)]})
    assert len(opt.param_groups) == 1
    opt.param_groups[0]["lr"] = math.nan
    with pytest.raises(ValueError, match="learning rate"):
        loss_of(model, 0).backward()


def test_sparse_gradients_are_refused() -> None:
    embedding = torch.nn.Embedding(5, 3, sparse=True)
    opt = Offload(embedding.parameters(), fastopt.torch.AdamW)
    with pytest.raises(RuntimeError, match="expected a dense tensor"):
        embedding(torch.tensor([1])).sum().backward()
    del opt


def test_nothing_is_kept_alive() -> None:
    model = make_model()
    opt = Offload(model.parameters(), fastopt.torch.AdamW)
    continued(model, opt, range(1))
    known = weakref.ref(opt), weakref.ref(model[0].weight)
    del opt
    gc.collect()
    assert known[0]() is None
    loss_of(model, 0).backward()
    assert model[0].weight.grad is not None
    del model
    gc.collect()
    assert known[1]() is None


# ---- memory and processors ----


def test_buffers_are_cut_from_few_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "SLAB", 1024)
    sizes = [10, 0, 900, 64, 5000, 1, 1]
    cut = link.buffers(sizes, pin=False)
    assert [part.numel() for part in cut] == sizes
    assert len({part.untyped_storage().data_ptr() for part in cut}) == 4
    for value, part in enumerate(cut):
        part.fill_(value)
    assert all((part == value).all() for value, part in enumerate(cut))


def test_memory_that_cannot_be_pinned_is_told_and_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = torch.empty

    def refuse(*args: Any, pin_memory: bool = False, **options: Any) -> Any:
        if pin_memory:
            raise RuntimeError("out of memory")
        return empty(*args, **options)

    monkeypatch.setattr(torch, "empty", refuse)
    with pytest.warns(RuntimeWarning, match=r"no more memory can be pinned.*out of memory"):
        assert link.memory(10, pin=True).numel() == 10


def test_processes_share_the_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "processors", lambda: set(range(16)))
    assert link.share_of_processors() == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert link.share_of_processors() == 4
    assert link.in_list("0-2,8") == {0, 1, 2, 8}
    assert link.processors_near(torch.device("cpu")) == set()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda() -> None:
    from fastopt.benchmark.offload import check_bits

    check_bits()
