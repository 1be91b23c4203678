"""Drop-in: everything around the step behaves as in torch.optim; the same script gives the same there and here."""

import copy
import inspect
import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch.optim import lr_scheduler, swa_utils  # noqa: E402
from torch.optim.optimizer import (  # noqa: E402
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch_cases import NAMES, assert_equal, every_optimizer, give_gradients, nonzero, ours, theirs  # noqa: E402

import fastopt.torch  # noqa: E402
from fastopt import schedules  # noqa: E402

BEYOND_TORCH = [*fastopt.torch.SGD.whole]
EXTRAS = {
    name: [
        option
        for option, described in ours(name).method.options.items()
        if option not in inspect.signature(theirs(name)).parameters and not described.fixed
    ]
    for name in NAMES
}


def entries_of_newer_torch(name: str) -> list[str]:
    """What newer versions of torch put into a group, and we with this one too: `decoupled_weight_decay` of AdamW."""
    options, defaults = ours(name).method.options, theirs(name)(make_params()).defaults
    return [option for option, described in options.items() if described.fixed and option not in defaults]


def generator() -> Any:
    return torch.Generator().manual_seed(0)


def make_params(dtype: Any = torch.float64) -> list[Any]:
    gen = generator()
    return [nonzero(shape, dtype, gen).requires_grad_() for shape in [(3, 2), (4,)]]


def outcome(act: Callable[[], Any]) -> tuple[type[BaseException], str] | None:
    """Return the error that something raises."""
    try:
        act()
    except Exception as error:
        return type(error), str(error)
    return None


# ---- construction ----


@every_optimizer
def test_is_a_torch_optimizer_of_the_same_name(name: str) -> None:
    assert issubclass(ours(name), theirs(name))
    assert ours(name).__name__ == name


@every_optimizer
def test_signature_is_torchs_and_what_is_beyond_is_keyword_only(name: str) -> None:
    mine = inspect.signature(ours(name)).parameters
    other = inspect.signature(theirs(name)).parameters
    assert [str(param) for param in mine.values()][: len(other)] == [str(param) for param in other.values()]
    beyond = list(mine)[len(other) :]
    assert set(beyond) == {*BEYOND_TORCH, *EXTRAS[name]}
    assert all(mine[key].kind is inspect.Parameter.KEYWORD_ONLY for key in beyond)


@every_optimizer
def test_defaults_and_groups_are_torchs(name: str) -> None:
    mine, other = ours(name)(make_params()), theirs(name)(make_params())
    beyond = {*EXTRAS[name], *entries_of_newer_torch(name)}
    assert {key: value for key, value in mine.defaults.items() if key not in beyond} == other.defaults
    group = {key: value for key, value in mine.param_groups[0].items() if key not in beyond}
    assert_equal(group, other.param_groups[0])


def test_positional_arguments_have_torchs_order() -> None:
    opt = fastopt.torch.AdamW(make_params(), 0.1, (0.8, 0.9), 1e-3, 0.2, True)
    assert {key: opt.defaults[key] for key in ("lr", "betas", "eps", "weight_decay", "amsgrad")} == {
        "lr": 0.1,
        "betas": (0.8, 0.9),
        "eps": 1e-3,
        "weight_decay": 0.2,
        "amsgrad": True,
    }
    assert fastopt.torch.RMSprop(make_params(), 0.1, 0.9, 1e-3, 0.2, 0.3, True, False, None, True).defaults["maximize"]
    assert fastopt.torch.SGD(params=make_params(), lr=0.5).defaults["lr"] == 0.5


@every_optimizer
def test_repr_is_torchs_with_our_options_among_the_others(name: str) -> None:
    mine, other = repr(ours(name)(make_params())).splitlines(), repr(theirs(name)(make_params())).splitlines()
    beyond = [*EXTRAS[name], *entries_of_newer_torch(name)]
    extras = [line for line in mine if line.split(":")[0].strip() in beyond]
    assert len(extras) == len(beyond)
    assert [line for line in mine if line not in extras] == other


def with_flag(*flags: str) -> pytest.MarkDecorator:
    """Parametrize a test with every optimizer and each of the flags that torch's has."""
    pairs = [(name, flag) for name in NAMES for flag in flags if flag in inspect.signature(theirs(name)).parameters]
    return pytest.mark.parametrize(("name", "flag"), pairs)


@pytest.mark.parametrize("value", [True, False])
@with_flag("foreach", "fused")
def test_foreach_and_fused_change_nothing(name: str, flag: str, value: bool) -> None:
    results = []
    for more in ({}, {flag: value}):
        params = make_params()
        opt = ours(name)(params, **more)
        give_gradients(params, generator())
        opt.step()
        results.append((params, opt.state_dict()["state"]))
    assert_equal(*results)


@with_flag("capturable", "differentiable")
def test_what_the_step_cannot_be_is_refused(name: str, flag: str) -> None:
    message = f"{flag}=True is not supported by fastopt: its step is neither captured nor recorded"
    with pytest.raises(ValueError, match=message):
        ours(name)(make_params(), **{flag: True})
    with pytest.raises(ValueError, match=message):
        ours(name)([{"params": make_params(), flag: True}])
    params = make_params()
    opt = ours(name)(params)
    opt.param_groups[0][flag] = True
    give_gradients(params, generator())
    with pytest.raises(ValueError, match=message):
        opt.step()


# ---- torch's messages ----

BAD_OPTIONS: list[tuple[str, dict[str, Any]]] = [
    *(("SGD", {option: -1.0}) for option in ("lr", "momentum", "weight_decay")),
    ("SGD", {"nesterov": True}),
    ("SGD", {"nesterov": True, "momentum": 0.9, "dampening": 0.1}),
    *(("Adagrad", {option: -1.0}) for option in ("lr", "lr_decay", "weight_decay", "initial_accumulator_value", "eps")),
    *(("RMSprop", {option: -1.0}) for option in ("lr", "alpha", "eps", "weight_decay", "momentum")),
    *((name, {option: -1.0}) for name in ("Adam", "AdamW") for option in ("lr", "eps", "weight_decay")),
    *((name, {"betas": betas}) for name in ("Adam", "AdamW") for betas in ((1.0, 0.9), (0.9, 1.0), (-0.1, 2.0))),
    ("Adam", {"betas": (0.9, torch.tensor(0.9))}),
    ("Adam", {"betas": (torch.tensor([0.9, 0.8]), torch.tensor(0.9))}),
    ("Adam", {"foreach": True, "lr": torch.tensor(0.1)}),
    *((name, {"lr": torch.tensor([0.1, 0.2])}) for name in ("SGD", "Adagrad", "RMSprop", "Adam", "AdamW")),
    *((name, {"lr": torch.tensor(-0.1)}) for name in ("SGD", "Adagrad", "RMSprop", "Adam", "AdamW")),
    *((name, {"fused": True, "foreach": True}) for name in ("SGD", "Adagrad", "Adam", "AdamW")),
]


@pytest.mark.parametrize(("name", "options"), BAD_OPTIONS)
def test_bad_options_get_torchs_message(name: str, options: dict[str, Any]) -> None:
    expected = outcome(lambda: theirs(name)(make_params(), **options))
    assert expected is not None
    assert outcome(lambda: ours(name)(make_params(), **options)) == expected


def not_a_leaf() -> Any:
    return make_params()[0] * 2


def shared_by_groups() -> Any:
    param = make_params()[0]
    return [{"params": [param]}, {"params": [param]}]


BAD_PARAMS: dict[str, Callable[[], Any]] = {
    "a tensor": lambda: make_params()[0],
    "nothing": list,
    "None": lambda: None,
    "a dict": lambda: {"w": make_params()[0]},
    "a list of lists": lambda: [make_params()],
    "a set": lambda: [{"params": set(make_params())}],
    "no tensors": lambda: [1.0, 2.0],
    "an array": lambda: [torch.ones(3).numpy()],
    "not a leaf": lambda: [not_a_leaf()],
    "the same in two groups": shared_by_groups,
    "some without names": lambda: [("w", make_params()[0]), make_params()[1]],
    "groups with and without names": lambda: [
        {"params": [("w", make_params()[0])]},
        {"params": [make_params()[1]]},
    ],
    "a group without parameters": lambda: [{"lr": 0.1}],
}


@pytest.mark.parametrize("make", BAD_PARAMS.values(), ids=BAD_PARAMS)
@every_optimizer
def test_bad_parameters_get_torchs_message(name: str, make: Callable[[], Any]) -> None:
    expected = outcome(lambda: theirs(name)(make()))
    assert expected is not None
    assert outcome(lambda: ours(name)(make())) == expected


def test_a_group_that_is_no_dict_gets_torchs_message() -> None:
    expected = outcome(lambda: theirs("SGD")(make_params()).add_param_group([1]))
    assert outcome(lambda: ours("SGD")(make_params()).add_param_group([1])) == expected


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters:UserWarning")
@pytest.mark.parametrize("name", [name for name in NAMES if name != "Adafactor"])  # (which measures before it steps)
def test_a_parameter_twice_in_a_group_is_stepped_twice_as_in_torch(name: str) -> None:
    def script(cls: Any) -> Any:
        param = torch.ones(2000, dtype=torch.float64, requires_grad=True)
        opt = cls([{"params": [param, param]}])
        for grad in (1.0, -3.0, 0.5):
            param.grad = torch.full_like(param, grad)
            opt.step()
        return param, opt.state[param]

    torch.testing.assert_close(script(ours(name)), script(theirs(name)), rtol=1e-13, atol=1e-13)


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters:UserWarning")
@pytest.mark.parametrize(
    ("name", "options", "why"),
    [
        ("Adafactor", {}, "Adafactor measures all"),
        ("Lion", {"cautious": True}, "Lion measures all"),
        ("MuonAdamW", {}, "MuonAdamW measures all"),
        ("AdamW", {"accumulate": 2}, "accumulate adds"),
    ],
)
def test_a_parameter_twice_in_a_group_is_refused_where_it_would_not_be_stepped_twice(
    name: str, options: dict[str, Any], why: str
) -> None:
    param = torch.ones(4, 4, requires_grad=True)
    opt = getattr(fastopt.torch, name)([param, param], **options)
    param.grad = torch.ones_like(param)
    with pytest.raises(RuntimeError, match=rf"^param_groups\[0\]\['params'\]\[0\] is in its group twice.*: {why}"):
        opt.step()
    assert param.eq(1).all()
    assert not opt.state.get(param)


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters:UserWarning")
def test_options_that_exclude_a_parameter_twice_may_come_later() -> None:
    param = torch.ones(4, requires_grad=True)
    opt = fastopt.torch.SGD([param, param], lr=1.0)
    param.grad = torch.ones_like(param)
    opt.step()
    opt.accumulate = 2
    with pytest.raises(RuntimeError, match="is in its group twice"):
        opt.step()
    opt.accumulate = 1
    opt.step()
    assert param.eq(-3).all()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("SGD", {"velocity": "fast"}, "Invalid velocity: expected one of"),
        ("SGD", {"velocity": "mean", "dampening": 0.1, "momentum": 0.9}, "Invalid dampening value"),
        ("Adam", {"eps_root": -1.0}, "Invalid eps_root value: -1.0"),
        ("Adam", {"clip_norm": -1.0}, "Invalid clip_norm value: -1.0"),
        ("Adam", {"clip_value": math.nan}, "Invalid clip_value value: nan"),
        ("Adam", {"nonfinite": "ignore"}, "Invalid nonfinite: expected one of"),
        ("Adam", {"lr": math.inf}, "Invalid learning rate: inf"),
        ("SGD", {"lr": math.nan}, "Invalid learning rate: nan"),
    ],
)
def test_what_is_beyond_torch_is_checked_too(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ours(name)(make_params(), **options)


@every_optimizer
def test_an_unknown_option_is_refused(name: str) -> None:
    expected = outcome(lambda: theirs(name)(make_params(), learning_rate=0.1))
    assert expected is not None
    assert outcome(lambda: ours(name)(make_params(), learning_rate=0.1)) == expected


@pytest.mark.parametrize("bad", [math.nan, math.inf, "0.1", None])
def test_options_of_groups_are_finite_numbers(bad: Any) -> None:
    """(torch looks at those of the constructor only, and takes any number in a group.)"""
    opt = fastopt.torch.Adam(make_params())
    with pytest.raises(ValueError, match=f"Invalid learning rate: {bad}"):
        opt.add_param_group({"params": [torch.ones(1, requires_grad=True)], "lr": bad})
    assert len(opt.param_groups) == 1


@pytest.mark.parametrize(
    ("betas", "message"),
    [
        ((0.9, math.nan), "Invalid beta parameter at index 1: nan"),
        ((0.9, 1.0), "formed from its options, is out of the range of its dtype"),
    ],
)
def test_edited_options_are_checked_before_anything_is_written(betas: Any, message: str) -> None:
    params = make_params()
    opt = fastopt.torch.Adam(params)
    give_gradients(params, generator())
    before = [param.detach().clone() for param in params]
    opt.param_groups[0]["betas"] = betas
    with pytest.raises(ValueError, match=message):
        opt.step()
    assert_equal(params, before)
    assert opt.state_dict()["state"] == {}
    opt.param_groups[0]["betas"] = (0.9, 0.99)
    opt.step()
    assert [int(state["step"]) for state in opt.state.values()] == [1] * len(params)


# ---- groups, names, closures, zero_grad ----


@every_optimizer
def test_groups_have_their_own_options_and_can_be_added(name: str) -> None:
    def script(cls: Any) -> Any:
        params = make_params()
        opt = cls([{"params": params[:1], "lr": 0.5}, {"params": iter(params[1:]), "weight_decay": 0.1}])
        extra = torch.ones(3, dtype=torch.float64, requires_grad=True)
        gen = generator()
        for step in range(4):
            if step == 2:
                opt.add_param_group({"params": extra, "lr": 0.25, "note": "the user's own"})
            give_gradients([*params, extra], gen)
            opt.step()
        return [*params, extra], [group["lr"] for group in opt.param_groups]

    mine, rates = script(ours(name))
    try:
        other, expected = script(theirs(name))
    except KeyError:
        pytest.skip("this torch's own cannot step a group that was added (Adagrad, until torch 2.10)")
    torch.testing.assert_close(mine, other, rtol=1e-13, atol=1e-13)
    assert rates == expected


def test_entries_of_the_user_in_groups_are_left_alone() -> None:
    params = make_params()
    entries: dict[str, Any] = {"mask": torch.ones(5), "callback": print, "name": "head", "numbers": [1, 2]}
    opt = fastopt.torch.AdamW([{"params": params, **entries}])
    for _ in range(3):
        give_gradients(params, generator())
        opt.param_groups[0]["mask"] = torch.zeros(5)
        opt.step()
    assert opt.param_groups[0]["callback"] is print
    assert "step_count" not in opt.state_dict()


@every_optimizer
def test_named_parameters(name: str) -> None:
    model = torch.nn.Linear(2, 3)
    mine, other = ours(name)(model.named_parameters()), theirs(name)(model.named_parameters())
    assert mine.param_groups[0]["param_names"] == ["weight", "bias"]
    assert mine.state_dict()["param_groups"][0]["param_names"] == other.state_dict()["param_groups"][0]["param_names"]


@pytest.mark.parametrize("named", [(True, True), (True, False), (False, True)], ids=str)
@every_optimizer
def test_names_in_checkpoints(name: str, named: tuple[bool, bool]) -> None:
    """As in torch, those of the checkpoint are taken over, unless it has none."""

    def script(cls: Any) -> Any:
        torch.manual_seed(0)
        model = torch.nn.Linear(2, 3)
        saved, loaded = [
            cls([(f"{i} {n}", p) if has else p for n, p in model.named_parameters()]) for i, has in enumerate(named)
        ]
        give_gradients(model.parameters(), generator())
        saved.step()
        loaded.load_state_dict(saved.state_dict())
        loaded.step()
        return loaded.param_groups[0].get("param_names"), loaded.state_dict()["param_groups"][0].get("param_names")

    assert script(ours(name)) == script(theirs(name))


def test_errors_name_the_parameter() -> None:
    model = torch.nn.Linear(2, 3)
    opt = fastopt.torch.Adam(model.named_parameters(), nonfinite="raise")
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    model.bias.grad[1] = math.nan
    with pytest.raises(FloatingPointError, match=r"^not finite: gradient of parameter 'bias'$"):
        opt.step()
    opt = fastopt.torch.Adam([{"params": [model.weight]}, {"params": [model.bias]}], nonfinite="raise")
    with pytest.raises(FloatingPointError, match=r"^not finite: gradient of param_groups\[1\]\['params'\]\[0\]$"):
        opt.step()


@every_optimizer
def test_closures(name: str) -> None:
    def script(cls: Any) -> Any:
        (param, _), losses = make_params(), []
        opt = cls([param], lr=0.1)

        def closure() -> Any:
            assert torch.is_grad_enabled()
            opt.zero_grad()
            loss = (param**2).sum()
            loss.backward()
            return loss

        with torch.no_grad():
            losses = [opt.step(closure).item() for _ in range(3)]
        return [param], losses

    torch.testing.assert_close(script(ours(name)), script(theirs(name)), rtol=1e-13, atol=1e-13)
    assert ours(name)(make_params()).step() is None


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad(set_to_none: bool) -> None:
    params = make_params()
    give_gradients(params, generator())
    grads = [param.grad for param in params]
    fastopt.torch.AdamW(params).zero_grad(set_to_none=set_to_none)
    if set_to_none:
        assert [param.grad for param in params] == [None, None]
    else:
        assert all(param.grad is grad and not grad.any() for param, grad in zip(params, grads, strict=True))


def test_no_gradients_at_all() -> None:
    params = make_params()
    opt = fastopt.torch.Adam(params, lr=0.25)
    before = [param.detach().clone() for param in params]
    opt.step()
    assert_equal(params, before)
    assert opt.state_dict()["state"] == {}
    assert opt.last_step == (0.25, None, False, False)


def test_an_empty_group_among_others() -> None:
    params = make_params()
    groups: list[dict[str, Any]] = [{"params": [], "lr": 0.5}, {"params": params}]
    opt = fastopt.torch.AdamW(groups)
    give_gradients(params, generator())
    before = params[0].detach().clone()
    opt.step()
    assert not torch.equal(params[0], before)
    assert fastopt.torch.AdamW([{"params": []}]).step() is None


# ---- hooks ----


def hooked(cls: Any) -> list[str]:
    log: list[str] = []
    params = make_params()
    give_gradients(params, generator())
    opt = cls(params)

    def note(event: str) -> Callable[..., None]:
        return lambda *args, **kwargs: log.append(f"{event} {len(args)} {sorted(kwargs)}")

    handles = [
        opt.register_step_pre_hook(note("pre")),
        opt.register_step_post_hook(note("post")),
        register_optimizer_step_pre_hook(note("global pre")),
        register_optimizer_step_post_hook(note("global post")),
        opt.register_state_dict_pre_hook(note("state_dict pre")),
        opt.register_state_dict_post_hook(note("state_dict post")),
        opt.register_load_state_dict_pre_hook(note("load pre")),
        opt.register_load_state_dict_pre_hook(note("load pre, first"), prepend=True),
        opt.register_load_state_dict_post_hook(note("load post")),
    ]
    opt.step()
    opt.step(closure=lambda: None)
    opt.load_state_dict(opt.state_dict())
    for handle in handles:
        handle.remove()
    opt.step()
    opt.load_state_dict(opt.state_dict())
    return log


@every_optimizer
def test_hooks_are_called_as_in_torch(name: str) -> None:
    log = hooked(ours(name))
    assert log == hooked(theirs(name))
    assert len(log) == 13


def test_a_step_hook_can_replace_the_arguments() -> None:
    params = make_params()
    opt = fastopt.torch.SGD(params)
    opt.register_step_pre_hook(lambda self, args, kwargs: ((self, lambda: "from the hook"), {}))
    assert opt.step() == "from the hook"


def test_state_dict_hooks_can_replace_the_state_dict() -> None:
    opt = fastopt.torch.SGD(make_params(), lr=0.5)

    def doubled(optimizer: Any, state_dict: Any) -> Any:
        group = {**state_dict["param_groups"][0], "lr": 2 * state_dict["param_groups"][0]["lr"]}
        return {**state_dict, "param_groups": [group]}

    opt.register_load_state_dict_pre_hook(doubled)
    opt.load_state_dict(opt.state_dict())
    assert opt.param_groups[0]["lr"] == 1.0
    opt.register_state_dict_post_hook(doubled)
    assert opt.state_dict()["param_groups"][0]["lr"] == 2.0


def test_the_profiler_sees_the_step() -> None:
    params = make_params()
    give_gradients(params, generator())
    opt = fastopt.torch.AdamW(params)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        opt.step()
        opt.zero_grad()
    scopes = {event.key for event in profile.key_averages()}
    assert {"Optimizer.step#AdamW.step", "Optimizer.zero_grad#AdamW.zero_grad"} <= scopes


def test_a_subclass_may_extend_the_step_and_the_constructor() -> None:
    class Mine(fastopt.torch.SGD):
        def __init__(self, params: Any, rate: float) -> None:
            super().__init__(params, lr=rate)
            self.count = 0

        def step(self, closure: Any = None) -> Any:
            self.count += 1
            return super().step(closure)

    params = make_params()
    give_gradients(params, generator())
    opt = Mine(params, 0.5)
    opt.step()
    assert opt.count == 1
    assert list(inspect.signature(Mine).parameters) == ["params", "rate"]


def test_the_class_of_an_optimizer_may_be_extended_afterwards() -> None:
    """As wrappers for distributed training do it: a class made of the optimizer's, constructed from its groups."""
    params = make_params()
    groups: list[dict[str, Any]] = [{"params": params[:1], "lr": 0.5}, {"params": params[1:]}]
    opt = fastopt.torch.SGD(groups, momentum=0.9)

    def count(self: Any, closure: Any = None) -> Any:
        self.count = getattr(self, "count", 0) + 1
        return type(opt).step(self, closure)

    wrapped = type("Wrapper", (type(opt),), {"step": count})(opt.param_groups)
    assert_equal(wrapped.param_groups, opt.param_groups)
    give_gradients(params, generator())
    wrapped.step()
    assert wrapped.count == 1
    assert torch.equal(wrapped.state[params[0]]["momentum_buffer"], params[0].grad)


# ---- copies ----


def public_attributes(opt: Any) -> set[str]:
    return {name for name in vars(opt) if not name.startswith("_")}


def copy_by_torch_save(opt: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(opt, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def copy_by_pickle(opt: Any) -> Any:
    return pickle.loads(pickle.dumps(opt))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, copy_by_pickle, copy_by_torch_save])
@every_optimizer
def test_copies_share_no_memory_and_go_on_alike(name: str, duplicate: Callable[[Any], Any]) -> None:
    params = make_params()
    options = {"momentum": 0.9} if name in ("SGD", "RMSprop") else {}
    opt = ours(name)(
        [{"params": params[:1], "lr": 0.5}, {"params": params[1:]}], clip_norm=1.0, clip_value=0.5, **options
    )
    give_gradients(params, generator())
    opt.step()
    other = duplicate(opt)
    assert public_attributes(other) == public_attributes(opt)
    assert other.last_step == opt.last_step
    twins = [param for group in other.param_groups for param in group["params"]]
    gen, same = generator(), generator()
    for _ in range(3):
        give_gradients(params, gen)
        opt.step()
    for _ in range(3):
        give_gradients(twins, same)
        other.step()
    assert_equal(twins, params)
    assert_equal(other.state_dict()["state"], opt.state_dict()["state"])
    assert other.step_count == opt.step_count == 4


def test_copies_keep_schedules_and_hooks_of_groups_added_later() -> None:
    params = make_params()
    opt = copy.deepcopy(fastopt.torch.SGD(params, lr=schedules.linear(start=1.0, end=0.0, total=4), velocity="mean"))
    opt.add_param_group({"params": [torch.ones(1, requires_grad=True)]})
    assert opt.param_groups[1]["velocity"] == "mean"
    assert callable(opt.param_groups[1]["lr"])


@every_optimizer
def test_state_dicts_pass_through_torch_save(name: str) -> None:
    params = make_params()
    opt = ours(name)(params, lr=schedules.warmup_cosine(0.1, warmup=2, total=10))
    give_gradients(params, generator())
    opt.step()
    buffer = io.BytesIO()
    torch.save(opt.state_dict(), buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=True)
    assert_equal(loaded["state"], opt.state_dict()["state"])
    assert loaded["param_groups"] == opt.state_dict()["param_groups"]
    assert loaded["step_count"] == 1


SOME_SCHEDULES: list[Any] = [
    schedules.constant(0.1),
    schedules.one_cycle(max_lr=0.1, total=10),
    schedules.join([schedules.constant(0.1), schedules.cosine(0.1, total=5)], [3]),
    schedules.linear_warmup(3, schedules.piecewise([4], [0.1, 0.01])),
    schedules.ReduceOnPlateau(0.1),
]


@pytest.mark.parametrize("schedule", SOME_SCHEDULES, ids=lambda schedule: type(schedule).__name__)
def test_every_kind_of_schedule_passes_through_torch_save(schedule: Any) -> None:
    buffer = io.BytesIO()
    torch.save(fastopt.torch.SGD(make_params(), lr=schedule).state_dict(), buffer)
    buffer.seek(0)
    opt = fastopt.torch.SGD(make_params())
    opt.load_state_dict(torch.load(buffer, weights_only=True))
    assert repr(opt.param_groups[0]["lr"]) == repr(schedule)


# ---- hyper-parameters as tensors ----


@every_optimizer
def test_the_learning_rate_as_a_tensor(name: str) -> None:
    for lr in (torch.tensor(0.1, dtype=torch.float64), torch.tensor([0.1], dtype=torch.float64)):
        params, twins = make_params(), make_params()
        opt, other = ours(name)(params, lr=lr), ours(name)(twins, lr=0.1)
        for _ in range(2):
            give_gradients(params, generator())
            give_gradients(twins, generator())
            opt.step()
            other.step()
        assert_equal(params, twins)
        assert opt.param_groups[0]["lr"] is lr
        lr.fill_(0.2)  # in place, as schedulers do it
        other.param_groups[0]["lr"] = 0.2
        opt.step()
        other.step()
        assert_equal(params, twins)


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_betas_as_tensors(name: str) -> None:
    params, twins = make_params(), make_params()
    betas = (torch.tensor(0.8, dtype=torch.float64), torch.tensor([0.9], dtype=torch.float64))
    opt, other = ours(name)(params, betas=betas), ours(name)(twins, betas=(0.8, 0.9))
    for _ in range(2):
        give_gradients(params, generator())
        give_gradients(twins, generator())
        opt.step()
        other.step()
    assert_equal(params, twins)
    assert opt.defaults["betas"] == theirs(name)(make_params(), betas=betas).defaults["betas"]


def test_weight_decay_as_a_tensor() -> None:
    params, twins = make_params(), make_params()
    opt = fastopt.torch.SGD(params, weight_decay=torch.tensor(0.1, dtype=torch.float64))
    other = fastopt.torch.SGD(twins, weight_decay=0.1)
    give_gradients(params, generator())
    give_gradients(twins, generator())
    opt.step()
    other.step()
    assert_equal(params, twins)


# ---- schedulers ----

SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "LambdaLR": lambda opt: lr_scheduler.LambdaLR(opt, lambda epoch: 0.9**epoch),
    "MultiplicativeLR": lambda opt: lr_scheduler.MultiplicativeLR(opt, lambda epoch: 0.9),
    "StepLR": lambda opt: lr_scheduler.StepLR(opt, 3, 0.5),
    "MultiStepLR": lambda opt: lr_scheduler.MultiStepLR(opt, [2, 5], 0.5),
    "ConstantLR": lambda opt: lr_scheduler.ConstantLR(opt, 0.5, 3),
    "LinearLR": lambda opt: lr_scheduler.LinearLR(opt, 0.25, 1.0, 6),
    "ExponentialLR": lambda opt: lr_scheduler.ExponentialLR(opt, 0.9),
    "PolynomialLR": lambda opt: lr_scheduler.PolynomialLR(opt, 8, 2.0),
    "CosineAnnealingLR": lambda opt: lr_scheduler.CosineAnnealingLR(opt, 5, 0.01),
    "CosineAnnealingWarmRestarts": lambda opt: lr_scheduler.CosineAnnealingWarmRestarts(opt, 3, 2),
    "CyclicLR": lambda opt: lr_scheduler.CyclicLR(opt, 0.01, 0.1, 3, cycle_momentum=has_momentum(opt)),
    "OneCycleLR": lambda opt: lr_scheduler.OneCycleLR(opt, 0.1, 20, cycle_momentum=has_momentum(opt)),
    "ReduceLROnPlateau": lambda opt: lr_scheduler.ReduceLROnPlateau(opt, patience=1, factor=0.5),
    "SequentialLR": lambda opt: lr_scheduler.SequentialLR(
        opt, [lr_scheduler.LinearLR(opt, 0.1, 1.0, 4), lr_scheduler.CosineAnnealingLR(opt, 6)], [4]
    ),
    "ChainedScheduler": lambda opt: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(opt, 0.1, 2), lr_scheduler.ExponentialLR(opt, 0.9)], opt
    ),
    "SWALR": lambda opt: swa_utils.SWALR(opt, 0.05, 4),
}


def has_momentum(opt: Any) -> bool:
    return bool("betas" in opt.defaults or opt.defaults.get("momentum"))


def test_no_scheduler_of_torch_is_missing() -> None:
    known = {
        name
        for name, value in vars(lr_scheduler).items()
        if inspect.isclass(value) and issubclass(value, lr_scheduler.LRScheduler)
    }
    assert known - {"LRScheduler", "_LRScheduler"} <= SCHEDULERS.keys()


@pytest.mark.filterwarnings("ignore:The epoch parameter in:UserWarning")  # which SequentialLR gave until torch 2.6
@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@every_optimizer
def test_schedulers(name: str, scheduler: str, as_tensor: bool) -> None:
    def script(cls: Any) -> Any:
        params, rates, gen = make_params(), [], generator()
        lr = torch.tensor(0.1, dtype=torch.float64) if as_tensor else 0.1
        options = {"momentum": 0.9} if name in ("SGD", "RMSprop") else {}
        opt = cls(params, lr=lr, **options)
        schedule = SCHEDULERS[scheduler](opt)
        for step in range(12):
            give_gradients(params, gen)
            opt.step()
            (group,) = opt.param_groups
            rates.append([float(group["lr"]), group.get("momentum"), group.get("betas")])
            schedule.step(*([1.0 if step < 3 else 2.0] if scheduler == "ReduceLROnPlateau" else []))
        return params, rates

    (mine, rates), (other, expected) = script(ours(name)), script(theirs(name))
    assert rates == expected
    torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


def test_a_scheduler_and_its_optimizer_resume_together() -> None:
    def run(steps: range, state: Any = None) -> Any:
        params, gen = make_params(), generator()
        opt = fastopt.torch.AdamW(params, lr=0.1)
        schedule = lr_scheduler.OneCycleLR(opt, 0.1, 20)
        if state is not None:
            saved, saved_opt, saved_schedule = state
            for param, value in zip(params, saved, strict=True):
                param.data.copy_(value)
            schedule.load_state_dict(saved_schedule)
            opt.load_state_dict(saved_opt)
        for step in range(steps.stop):
            give_gradients(params, gen)
            if step in steps:
                opt.step()
                schedule.step()
        return [param.detach().clone() for param in params], copy.deepcopy(opt.state_dict()), schedule.state_dict()

    through, _, _ = run(range(10))
    resumed, _, _ = run(range(4, 10), run(range(4)))
    assert_equal(resumed, through)


EMA: Any = swa_utils.get_ema_multi_avg_fn(0.9)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("averaging", [None, EMA], ids=["equal", "exponential"])
def test_averaged_models(averaging: Any) -> None:
    def script(cls: Any) -> Any:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4)).double()
        ema = swa_utils.AveragedModel(model, multi_avg_fn=averaging)
        opt = cls(model.parameters(), lr=0.1)
        inputs = torch.rand(5, 8, 4, dtype=torch.float64, generator=generator())
        for x in inputs:
            opt.zero_grad()
            model(x).square().mean().backward()
            opt.step()
            ema.update_parameters(model)
        swa_utils.update_bn(inputs, ema)
        return list(ema.parameters()), list(ema.buffers())

    torch.testing.assert_close(script(fastopt.torch.SGD), script(torch.optim.SGD), rtol=1e-12, atol=1e-12)


# ---- schedules of fastopt ----


@every_optimizer
def test_schedules_are_the_numbers_they_stand_for(name: str) -> None:
    schedule = schedules.warmup_cosine(peak=0.1, warmup=3, total=10)
    decay = schedules.linear(start=0.0, end=0.1, total=10)
    options = {"lr": schedule, **({"weight_decay": decay} if "weight_decay" in ours(name).method.options else {})}
    params, twins = make_params(), make_params()
    opt, other = ours(name)(params, **options), ours(name)(twins)
    for step in range(8):
        give_gradients(params, generator())
        give_gradients(twins, generator())
        other.param_groups[0].update({name: value(step) for name, value in options.items()})
        opt.step()
        other.step()
        assert opt.last_step.lr == schedule(step)
    assert_equal(params, twins)


def test_schedules_within_betas_in_groups_and_for_clipping() -> None:
    beta1 = schedules.linear(start=0.5, end=0.9, total=4)
    clip = schedules.linear(start=0.1, end=1.0, total=4)
    lr = schedules.constant(0.25)
    params, twins = make_params(), make_params()
    opt = fastopt.torch.Adam([{"params": params, "lr": lr}], betas=(beta1, 0.99), clip_norm=clip, clip_value=clip)
    other = fastopt.torch.Adam(twins, lr=0.25)
    for step in range(6):
        give_gradients(params, generator())
        give_gradients(twins, generator())
        other.param_groups[0]["betas"] = (beta1(step), 0.99)
        other.clip_norm = other.clip_value = clip(step)
        opt.step()
        other.step()
    assert_equal(params, twins)


def test_the_values_of_schedules_are_checked() -> None:
    params = make_params()
    opt = fastopt.torch.SGD(params, lr=lambda step: 0.1 if step == 0 else math.nan)
    give_gradients(params, generator())
    opt.step()
    before = [param.detach().clone() for param in params]
    with pytest.raises(ValueError, match=r"Invalid learning rate: nan"):
        opt.step()
    assert_equal(params, before)
    with pytest.raises(ValueError, match=r"Invalid learning rate: -1\.0"):
        fastopt.torch.SGD(params, lr=lambda step: -1.0)


# ---- what torch tolerates ----


@pytest.mark.parametrize("length", [4, 6, 7, 10, 100])
def test_a_rate_that_falls_to_a_hair_below_zero(length: int) -> None:
    """Which is where torch's rounding of the last factors may leave it."""
    rates = []
    for module in (torch.optim, fastopt.torch):
        param = torch.ones(1, requires_grad=True)
        opt = module.SGD([param], lr=0.1)
        schedule = lr_scheduler.LinearLR(opt, end_factor=0.0, total_iters=length)
        for _ in range(length + 2):
            param.grad = torch.ones(1)
            opt.step()
            schedule.step()
        rates.append((opt.param_groups[0]["lr"], param.item()))
    assert rates[0] == rates[1]


@every_optimizer
def test_negative_rates_in_an_edited_group(name: str) -> None:
    found = []
    for make in (theirs(name), ours(name)):
        param = torch.ones(3, dtype=torch.float64, requires_grad=True)
        opt = make([param], lr=0.1)
        opt.param_groups[0]["lr"] = -1e-3
        param.grad = torch.ones(3, dtype=torch.float64)
        opt.step()
        found.append(param.detach())
    assert (found[1] != 1).all()
    torch.testing.assert_close(found[1], found[0], rtol=1e-14, atol=0)


def test_momentum_that_warms_up_from_zero_under_nesterov() -> None:
    found = []
    for module in (torch.optim, fastopt.torch):
        param = torch.ones(3, dtype=torch.float64, requires_grad=True)
        opt = module.SGD([param], lr=0.5, momentum=0.5, nesterov=True)
        for momentum in (0.0, 0.25, 0.5):
            opt.param_groups[0]["momentum"] = momentum
            param.grad = torch.ones(3, dtype=torch.float64)
            opt.step()
        found.append(param.tolist())
    assert found[0] == found[1]
    assert found[1][0] < 1


@pytest.mark.parametrize("fused", [None, False, True])
@every_optimizer
def test_only_a_fused_step_says_that_it_unscales(name: str, fused: bool | None) -> None:
    """Lightning refuses to clip the gradients of one that says so."""
    param = torch.ones(1, requires_grad=True)
    try:
        there = theirs(name)([param], fused=fused)
    except (TypeError, RuntimeError):
        pytest.skip("torch has no fused step of it")
    says = [getattr(opt, "_step_supports_amp_scaling", False) for opt in (there, ours(name)([param], fused=fused))]
    assert says[0] == says[1]


@every_optimizer
def test_a_default_device_that_is_not_the_processor(name: str) -> None:
    results = []
    for device in ("cpu", "meta"):
        param = torch.ones(4, dtype=torch.float64)[::2].requires_grad_()
        opt = ours(name)([param], clip_norm=0.5)
        with torch.device(device):
            for _ in range(2):
                param.grad = torch.ones(2, dtype=torch.float64, device="cpu")
                norm = fastopt.torch.clip_grad_norm_([param], 1.0)
                opt.step()
        assert norm.device.type == "cpu"
        results.append((param, opt.state[param], norm))
    assert_equal(results[1], results[0])


@pytest.mark.parametrize("edited", [False, True])
def test_betas_in_any_sequence(edited: bool) -> None:
    class Entries(list[float]):
        pass

    results = []
    for betas in ((0.5, 0.75), [0.5, 0.75], Entries([0.5, 0.75]), torch.tensor([0.5, 0.75])):
        param = torch.ones(2, dtype=torch.float64, requires_grad=True)
        given: dict[str, Any] = {} if edited else {"betas": betas}
        opt = fastopt.torch.Adam([param], **given)
        opt.param_groups[0]["betas"] = betas
        param.grad = torch.ones(2, dtype=torch.float64)
        opt.step()
        results.append(param.tolist())
    assert results == [results[0]] * 4


@pytest.mark.parametrize("option", ["lr", "betas"])
def test_options_that_are_edited_in_place(option: str) -> None:
    results = []
    for in_place in (False, True):
        param = torch.ones(2, dtype=torch.float64, requires_grad=True)
        opt = fastopt.torch.Adam([param])
        group = opt.param_groups[0]
        if option == "lr":
            group["lr"] = torch.tensor(0.1, dtype=torch.float64)
        else:
            group["betas"] = [0.9, 0.99]
        for sign in (1, -1):
            param.grad = sign * torch.ones(2, dtype=torch.float64)
            opt.step()
            if not in_place:
                group[option] = 0.5 if option == "lr" else (0.5, 0.99)
            elif option == "lr":
                group["lr"].fill_(0.5)
            else:
                group["betas"][0] = 0.5
        results.append(param.tolist())
    assert results[0] == results[1]


def test_no_groups_at_all() -> None:
    opt: Any = fastopt.torch.SGD([torch.ones(1, requires_grad=True)])
    opt.param_groups.clear()
    opt.step()
    opt.found_inf = torch.ones(1)  # as of a GradScaler
    opt.step()
    assert opt.last_step is not None
    assert opt.last_step.skipped


@every_optimizer
def test_a_module_in_the_place_of_its_parameters(name: str) -> None:
    model = torch.nn.Linear(2, 1)
    assert outcome(lambda: ours(name)(model)) == outcome(lambda: theirs(name)(model))
    assert outcome(lambda: ours(name)(params=model)) == outcome(lambda: theirs(name)(params=model))


def test_tensors_given_to_the_optimizers_of_arrays() -> None:
    model = torch.nn.Linear(2, 1)
    for params in (model.parameters(), list(model.parameters()), model.weight, model):
        with pytest.raises(TypeError, match=r"expected a NumPy array, got (Parameter|Linear); .*fastopt\.torch$"):
            fastopt.AdamW(params)


@pytest.mark.parametrize(
    "scheduler",
    [
        lambda opt: lr_scheduler.LinearLR(opt),
        lambda opt: lr_scheduler.StepLR(opt, 1),
        lambda opt: lr_scheduler.LambdaLR(opt, lambda step: 1.0),
        lambda opt: lr_scheduler.MultiplicativeLR(opt, lambda step: 1.0),
        lambda opt: lr_scheduler.CosineAnnealingLR(opt, 10),
        lambda opt: lr_scheduler.ReduceLROnPlateau(opt, patience=0),
    ],
)
def test_a_scheduler_of_torch_on_a_schedule(scheduler: Callable[[Any], Any]) -> None:
    param = torch.ones(1, requires_grad=True)
    opt = fastopt.torch.AdamW([param], lr=schedules.warmup_cosine(0.1, warmup=2, total=10))

    def train() -> None:
        schedule = scheduler(opt)
        for loss in (1.0, 2.0, 3.0):
            param.grad = torch.ones(1)
            opt.step()
            schedule.step(*([loss] if isinstance(schedule, lr_scheduler.ReduceLROnPlateau) else []))

    with pytest.raises(TypeError, match=r"^warmup_cosine is a schedule, .*: drop one of the two$"):
        train()


def test_repr_shows_what_is_beyond_torch_and_not_the_default() -> None:
    given: dict[str, Any] = {"clip_norm": 1.0, "clip_value": 2.0, "nonfinite": "skip", "zero_grad_in_step": True}
    shown = repr(fastopt.torch.SGD([torch.ones(1)], state_dtype=torch.float32, **given))
    for name, value in {**given, "state_dtype": torch.float32}.items():
        assert f"    {name}: {value}\n" in shown
    assert not any(name in repr(fastopt.torch.SGD([torch.ones(1)])) for name in BEYOND_TORCH)


def test_an_optimizer_made_again_from_its_class_and_its_groups() -> None:
    """As wrappers do, whose constructor passes the groups only: what is beyond torch is in them."""
    param = torch.zeros(1, requires_grad=True)
    opt = fastopt.torch.SGD([param], lr=1.0, clip_norm=1.0, nonfinite="skip", zero_grad_in_step=True)

    def init(self: Any, params: Any) -> None:
        super(cls, self).__init__(params)

    cls: Any = type("SGD", (fastopt.torch.SGD,), {"__init__": init})
    again = cls(opt.param_groups)
    param.grad = torch.full((1,), 100.0)
    again.step()
    assert param.item() == pytest.approx(-1.0, abs=1e-6)
    assert param.grad.item() == 0
    assert (again.clip_norm, again.nonfinite, again.zero_grad_in_step) == (1.0, "skip", True)
    assert copy.deepcopy(again).clip_norm == 1.0


def test_groups_that_disagree_about_the_whole_optimizer() -> None:
    params = [torch.zeros(1, requires_grad=True) for _ in range(2)]
    opt = fastopt.torch.SGD([{"params": [param]} for param in params], clip_norm=1.0)
    opt.param_groups[1]["clip_norm"] = 2.0
    for param in params:
        param.grad = torch.ones(1)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"^clip_norm: is of the whole optimizer, expected the same"):
            opt.step()
    assert [param.item() for param in params] == [0.0, 0.0]


def test_a_scalar_beyond_the_parameters_dtype_is_an_error_and_nothing_is_written() -> None:
    param = torch.ones(2, requires_grad=True)
    opt = fastopt.torch.AdamW([param], lr=1e39)
    param.grad = torch.tensor([0.0, 1e-39])
    for _ in range(2):
        with pytest.raises(ValueError, match=r"^param_groups\[0\]: the scalar '\w+'"):
            opt.step()
    assert (param.tolist(), opt.step_count, dict(opt.state)) == ([1.0, 1.0], 0, {})


def test_a_schedule_may_look_at_its_optimizer_but_not_step_it() -> None:
    param = torch.zeros(1, requires_grad=True)
    opt = fastopt.torch.SGD([param])

    def looking(step: int) -> float:
        assert opt.state_dict()["step_count"] == step
        return 1.0

    def stepping(step: int) -> float:
        opt.step()
        return 1.0

    for rate in (looking, stepping, 1.0):
        opt.param_groups[0]["lr"] = rate
        param.grad = torch.ones(1)
        if rate is stepping:
            with pytest.raises(RuntimeError, match=r"^a step within a step of the same optimizer"):
                opt.step()
        else:
            opt.step()
    assert (param.item(), opt.step_count) == (-2.0, 2)
