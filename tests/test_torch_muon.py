"""Muon beside torch's, which rounds to bfloat16 where this computes in float32; and gradients added up, in torch."""

import copy
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import fastopt.torch  # noqa: E402
from fastopt.torch import SGD, AdamW, Muon, MuonAdamW  # noqa: E402

if not hasattr(torch.optim, "Muon"):
    pytest.skip("this torch has no Muon", allow_module_level=True)

SHAPES = ((48, 32), (32, 48), (48, 32), (16, 16))

OPTIONS: list[dict[str, Any]] = [
    {},
    {"nesterov": False, "momentum": 0.8, "weight_decay": 0.5},
    {"adjust_lr_fn": "match_rms_adamw", "ns_steps": 3},
    {"adjust_lr_fn": "original", "ns_coefficients": (2.0, -1.5, 0.5), "ns_steps": 8},
]


def matrices(dtype: Any = torch.float32) -> list[Any]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in SHAPES]


def give(params: list[Any], twins: list[Any], seed: int) -> None:
    """Gradients of which some directions are much larger than others."""
    generator = torch.Generator().manual_seed(seed)
    for param, twin in zip(params, twins, strict=True):
        grad = torch.randn(param.shape, generator=generator) * torch.logspace(0, -1, param.shape[1])
        param.grad, twin.grad = grad.to(param.dtype), grad.to(twin.dtype)


def assert_near(params: list[Any], twins: list[Any], start: list[Any]) -> None:
    """Assert that the ways differ by what a rounding to 8 bits of every number makes of them."""
    for param, twin, first in zip(params, twins, start, strict=True):
        moved = (twin - first).float().norm()
        assert moved > 0
        assert (param - twin).float().norm() < 0.02 * moved


def test_it_is_torchs_muon() -> None:
    opt = Muon(matrices())
    assert isinstance(opt, torch.optim.Muon)
    with pytest.raises(ValueError, match="Muon only supports 2D parameters"):
        Muon([torch.ones(3, requires_grad=True)])
    with pytest.raises(ValueError, match="Learning rate should be >= 0 but is: -1"):
        Muon(matrices(), lr=-1)


@pytest.mark.parametrize("options", OPTIONS)
def test_steps_are_torchs(options: dict[str, Any]) -> None:
    params, twins, start = matrices(), matrices(), matrices()
    ours, theirs = Muon(params, lr=0.02, **options), torch.optim.Muon(twins, lr=0.02, **options)
    for step in range(10):
        give(params, twins, step)
        if step == 4:
            params[0].grad = twins[0].grad = None
        ours.step()
        theirs.step()
    assert_near(params, twins, start)
    for param, twin in zip(params, twins, strict=True):
        mine, other = ours.state[param], theirs.state[twin]
        assert mine.keys() == other.keys() == {"momentum_buffer"}
        torch.testing.assert_close(mine["momentum_buffer"], other["momentum_buffer"])


@pytest.mark.parametrize("lay_out", [lambda p: p.t().contiguous().t(), lambda p: p.repeat_interleave(2, 1)[:, ::2]])
def test_layouts_make_no_difference(lay_out: Any) -> None:
    params, twins = matrices(torch.float64), matrices(torch.float64)
    params = [lay_out(param.detach()).requires_grad_() for param in params]
    one, other = Muon(params, normuon=True, clip_norm=1.0), Muon(twins, normuon=True, clip_norm=1.0)
    for step in range(3):
        give(params, twins, step)
        one.step()
        other.step()
    torch.testing.assert_close(params, twins, rtol=1e-12, atol=1e-12)


def test_bfloat16_parameters_are_computed_with_in_float32() -> None:
    params, twins = matrices(torch.bfloat16), matrices()
    one, other = Muon(params, lr=0.1, weight_decay=0.0, master="split"), Muon(twins, lr=0.1, weight_decay=0.0)
    with torch.no_grad():
        for twin, param in zip(twins, params, strict=True):
            twin.copy_(param)
    for step in range(3):
        give(params, twins, step)
        one.step()
        other.step()
    torch.testing.assert_close([param.float() for param in params], twins, rtol=0.01, atol=0.01)


def test_checkpoints_go_both_ways() -> None:
    params, twins = matrices(), matrices()
    ours, theirs = Muon(params, lr=0.02), torch.optim.Muon(twins, lr=0.02)
    give(params, twins, 0)
    ours.step()
    theirs.step()
    there, here = torch.optim.Muon(twins), Muon(params)
    there.load_state_dict(ours.state_dict())
    here.load_state_dict(theirs.state_dict())
    assert here.param_groups[0]["lr"] == there.param_groups[0]["lr"] == 0.02
    start = [param.detach().clone() for param in twins]
    with torch.no_grad():
        for param, twin in zip(params, twins, strict=True):
            param.copy_(twin)
    give(params, twins, 1)
    here.step()
    there.step()
    assert_near(params, twins, start)


def test_normuon_goes_on_from_a_checkpoint() -> None:
    params = matrices()
    opt = Muon(params, normuon=True)
    give(params, params, 0)
    opt.step()
    others = [param.detach().clone().requires_grad_() for param in params]
    resumed = Muon(others, normuon=True)
    resumed.load_state_dict(copy.deepcopy(opt.state_dict()))
    give(params, others, 1)
    opt.step()
    resumed.step()
    torch.testing.assert_close(params, others, rtol=1e-6, atol=1e-6)
    assert resumed.state[others[0]]["second_momentum_buffer"].shape == (48,)
    resumed.state[others[0]]["second_momentum_buffer"] = torch.zeros(3)
    other = Muon(others, normuon=True)
    other.load_state_dict(resumed.state_dict())
    with pytest.raises(RuntimeError, match=r"^second_momentum_buffer of .* expected a|is no contiguous tensor"):
        other.step()


@pytest.mark.parametrize(
    ("param", "grad", "message"),
    [
        (torch.ones(2, 2, dtype=torch.complex64), torch.ones(2, 2, dtype=torch.complex64), "is complex"),
        (torch.ones(2, 2), torch.ones(2, 2).to_sparse(), "of layout torch.sparse_coo"),
    ],
)
def test_what_torch_refuses_is_refused(param: Any, grad: Any, message: str) -> None:
    param.requires_grad_()
    param.grad = grad
    opt = Muon([param])
    with pytest.raises(RuntimeError, match=message):
        opt.step()
    assert (param == 1).all()


def test_steps_in_the_backward_pass() -> None:
    params, twins = matrices(torch.float64), matrices(torch.float64)
    one, other = Muon(params), Muon(twins)
    fastopt.torch.step_in_backward(one)
    for _ in range(2):
        sum((param**3).sum() for param in params).backward()
        one.step()
        other.zero_grad()
        sum((twin**3).sum() for twin in twins).backward()
        other.step()
    torch.testing.assert_close(params, twins, rtol=1e-12, atol=1e-12)


# ---- beside AdamW ----


class Net(torch.nn.Module):  # type: ignore[misc, name-defined]
    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(7, 8)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(2))
        self.multihead = torch.nn.Linear(8, 8)
        self.lm_head = torch.nn.Linear(8, 7)

    def forward(self, x: Any) -> Any:
        x = self.embedding(x)
        for layer in [*self.layers, self.multihead]:
            x = x + layer(x).relu()
        return self.lm_head(x)


def test_names_say_what_is_within() -> None:
    net = Net()
    opt = MuonAdamW(net.named_parameters(), lr=0.01)
    losses = []
    for _ in range(30):
        opt.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(torch.arange(7)), torch.arange(7))
        loss.backward()
        opt.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    within = {name for name, param in net.named_parameters() if "momentum_buffer" in opt.state[param]}
    assert within == {"layers.0.weight", "layers.1.weight", "multihead.weight"}
    others = copy.deepcopy(net)
    resumed = MuonAdamW(others.named_parameters(), lr=0.01)
    resumed.load_state_dict(opt.state_dict())
    for model, one in ((net, opt), (others, resumed)):
        one.zero_grad()
        torch.nn.functional.cross_entropy(model(torch.arange(7)), torch.arange(7)).backward()
        one.step()
    torch.testing.assert_close(list(net.parameters()), list(others.parameters()), rtol=1e-5, atol=1e-6)


def test_schedulers_of_torch_and_groups() -> None:
    hidden, head = torch.ones(4, 4, requires_grad=True), torch.ones(3, 4, requires_grad=True)
    opt = MuonAdamW([{"params": [hidden], "use_muon": True, "lr": 0.02}, {"params": [head], "use_muon": False}])
    scheduler = torch.optim.lr_scheduler.LinearLR(opt, start_factor=0.5, total_iters=2)
    for _ in range(3):
        hidden.grad, head.grad = torch.eye(4), torch.ones(3, 4)
        opt.step()
        scheduler.step()
    assert [group["lr"] for group in opt.param_groups] == pytest.approx([0.02, 1e-3])
    assert [*opt.state[hidden]] == ["step", "momentum_buffer"]
    assert [*opt.state[head]] == ["step", "exp_avg", "exp_avg_sq"]


# ---- gradients added up ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
def test_a_step_is_by_the_mean(dtype: Any) -> None:
    params = [torch.ones(shape, dtype=dtype, requires_grad=True) for shape in ((4, 3), (5,), (2,))]
    params[0].data = params[0].data.t().clone().t()
    twins = [param.detach().clone().requires_grad_() for param in params]
    opt = SGD(params, lr=0.1, momentum=0.9, accumulate=3, zero_grad_in_step=True)
    other = SGD(twins, lr=0.1, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        sums: list[Any] = [0, 0]
        for k in range(3):
            for place in range(2):
                if (place, k) != (1, 1):
                    grad = torch.randn(params[place].shape, generator=generator).to(dtype)
                    params[place].grad = grad.clone()
                    sums[place] = sums[place] + grad.to(torch.complex64 if dtype.is_complex else torch.float32) / 3
                else:
                    params[place].grad = None
            opt.step()
            assert not any(param.grad.any() for param in params if param.grad is not None)
        for twin, total in zip(twins, sums, strict=False):
            if hasattr(twin, "grad_dtype"):
                twin.grad_dtype = None
            twin.grad = total
        other.step()
        torch.testing.assert_close(params, twins)
        for param, twin in zip(params, twins, strict=True):
            param.data.copy_(twin)
    assert opt.step_count == 3
    assert params[2] not in opt.state


def test_a_state_dict_between_goes_on_and_loads_into_torchs() -> None:
    params = matrices()
    opt = AdamW(params, lr=0.1, accumulate=2)
    for seed in range(3):
        give(params, params, seed)
        opt.step()
    others = [param.detach().clone().requires_grad_() for param in params]
    resumed = AdamW(others, lr=0.1, accumulate=2)
    resumed.load_state_dict(copy.deepcopy(opt.state_dict()))
    torch.optim.AdamW(others).load_state_dict(opt.state_dict())
    give(params, others, 3)
    opt.step()
    resumed.step()
    torch.testing.assert_close(params, others, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["AdamW", "RMSprop", "NAdam", "SGD"])  # (torch looks for a "step" in all, but in SGD)
def test_before_the_first_step_a_state_dict_goes_on_too(name: str) -> None:
    make: Any = getattr(fastopt.torch, name)
    params = matrices()
    opt = make(params, lr=0.1, accumulate=3)
    give(params, params, 0)
    opt.step()
    others = [param.detach().clone().requires_grad_() for param in params]
    resumed = make(others, lr=0.1, accumulate=3)
    resumed.load_state_dict(copy.deepcopy(opt.state_dict()))
    copied, third = copy.deepcopy((params, opt))
    arrays = [param.detach().numpy().copy() for param in params]
    in_numpy = getattr(fastopt, name)(arrays, lr=0.1, accumulate=3)
    in_numpy.load_state_dict(opt.state_dict())
    fourth = [param.detach().clone().requires_grad_() for param in params]
    from_numpy = make(fourth, lr=0.1, accumulate=3)
    from_numpy.load_state_dict(in_numpy.state_dict())
    for seed in (1, 2):
        for others_params, other in ((others, resumed), (copied, third), (fourth, from_numpy), (params, opt)):
            give(params, others_params, seed)
            other.step()
        in_numpy.step([None if param.grad is None else param.grad.numpy() for param in params])
    for others_params in (others, copied, fourth, list(map(torch.from_numpy, arrays))):
        torch.testing.assert_close(others_params, params, rtol=0, atol=0)


def test_a_gradient_scaler_that_unscales_in_the_step() -> None:
    params, twins = matrices(), matrices()
    opt: Any = AdamW(params, lr=0.1, accumulate=2, fused=True)
    other = AdamW(twins, lr=0.1)
    for seed, scale in enumerate((4.0, 8.0)):
        give(params, twins, seed)
        for param in params:
            param.grad *= scale
        opt.grad_scale, opt.found_inf = torch.tensor(scale), torch.tensor(0.0)  # as `torch.amp.GradScaler` says it
        opt.step()
    means = [matrices(), matrices()]
    for seed in range(2):
        give(means[seed], means[seed], seed)
    for twin, one, two in zip(twins, *means, strict=True):
        twin.grad = (one.grad + two.grad) / 2
    other.step()
    torch.testing.assert_close(params, twins)


def test_steps_in_the_backward_pass_are_refused_with_it() -> None:
    opt = AdamW(matrices(), accumulate=2)
    with pytest.raises(ValueError, match="several backward passes"):
        fastopt.torch.step_in_backward(opt)
