"""Checkpoints move between torch.optim, fastopt.torch and fastopt, and what is replaced between steps is noticed."""

import copy
import inspect
import io
import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cases import MAKERS, Case

torch = pytest.importorskip("torch")

from torch_cases import (  # noqa: E402
    FIRST_OF_EACH_RULE,
    SHARED,
    Twins,
    assert_equal,
    copied,
    give_gradients,
    nonzero,
    ours,
    theirs,
    torch_options,
)

import fastopt.torch  # noqa: E402
from fastopt import schedules  # noqa: E402

LAYOUTS = ["contiguous", "scalar", "transposed"]

each_rule = pytest.mark.parametrize("case", FIRST_OF_EACH_RULE)


def generator() -> Any:
    return torch.Generator().manual_seed(0)


def make_params(dtype: Any = torch.float64) -> list[Any]:
    gen = generator()
    return [nonzero(shape, dtype, gen).requires_grad_() for shape in [(3, 2), (4,)]]


def through_a_file(state_dict: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(state_dict, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def step_alone(opt: Any, steps: int = 3, seed: int = 1) -> None:
    gen = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        give_gradients([param for group in opt.param_groups for param in group["params"]], gen)
        opt.step()


def step_both(one: Any, other: Any, steps: int = 3, seed: int = 1) -> None:
    """Step two optimizers with the same gradients."""
    for opt in (one, other):
        step_alone(opt, steps, seed)


# ---- to torch and back ----


@pytest.mark.parametrize("case", SHARED)
def test_state_dicts_are_torchs(case: Case) -> None:
    twins = Twins(case, LAYOUTS, torch.float64)
    for step in range(3):
        twins.step(missing=[1] if step < 2 else [])
    mine, other = twins.ours.state_dict(), twins.theirs.state_dict()
    assert mine["state"].keys() == other["state"].keys()
    for index, state in other["state"].items():
        assert list(mine["state"][index]) == list(state)
        for name, value in state.items():
            assert mine["state"][index][name].dtype == value.dtype
            assert mine["state"][index][name].shape == value.shape
            if name == "step":
                assert_equal(mine["state"][index][name], value)
    group = mine["param_groups"][0]
    assert [name for name in group if name in other["param_groups"][0]] == list(other["param_groups"][0])
    assert group["params"] == [0, 1, 2]


@pytest.mark.parametrize("file", [through_a_file, copy.deepcopy])
@pytest.mark.parametrize("case", SHARED)
def test_torchs_checkpoint_goes_on_here(case: Case, file: Callable[[Any], Any]) -> None:
    twins = Twins(case, LAYOUTS, torch.float64)
    for step in range(4):
        twins.step(missing=[1] if step == 2 else [])
    for param, twin in zip(twins.params, twins.twins, strict=True):
        param.data.copy_(twin)
    numbers = {name: value for name, value in case.options.items() if not callable(value)}
    twins.ours = ours(case.optimizer)(twins.params, **numbers)
    twins.ours.load_state_dict(file(twins.theirs.state_dict()))
    for step in range(4):
        twins.ours.param_groups[0].update(torch_options(case, twins.steps))
        twins.step(missing=[0] if step == 1 else [])
    twins.assert_close()


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("case", SHARED)
def test_a_checkpoint_from_here_goes_on_in_torch(case: Case, fused: bool, request: pytest.FixtureRequest) -> None:
    if fused and "fused" not in inspect.signature(theirs(case.optimizer)).parameters:
        return  # torch has no such kernel
    if case.cls.method.numbers:  # which torch casts to the parameter's dtype
        request.getfixturevalue("numbers_in_double_precision")
    # (torch's fused kernels read a transposed state in the wrong order.)
    twins = Twins(case, LAYOUTS[:2] if fused else LAYOUTS, torch.float64)
    for step in range(4):
        twins.step(missing=[1] if step == 2 else [])
    twins.twins = copied(twins.params)
    twins.theirs = theirs(case.optimizer)(twins.twins, **torch_options(case))
    checkpoint = copy.deepcopy(twins.ours.state_dict())
    checkpoint["param_groups"][0].update(torch_options(case, 4))
    if fused:
        checkpoint["param_groups"][0]["fused"] = True
    twins.theirs.load_state_dict(checkpoint)
    for step in range(4):
        twins.step(missing=[0] if step == 1 else [])
    twins.assert_close()


@each_rule
def test_to_torch_and_back_changes_nothing(case: Case) -> None:
    twins = Twins(case, LAYOUTS, torch.float32)
    for _ in range(3):
        twins.step()
    there = theirs(case.optimizer)(copied(twins.params))
    there.load_state_dict(twins.ours.state_dict())
    back = ours(case.optimizer)([param.detach().clone().requires_grad_() for param in twins.params])
    back.load_state_dict(there.state_dict())
    step_both(twins.ours, back)
    assert_equal([param for group in back.param_groups for param in group["params"]], twins.params)
    found, expected = back.state_dict(), twins.ours.state_dict()
    for group, other in zip(found["param_groups"], expected["param_groups"], strict=True):
        assert not group.pop("differentiable", False)  # (torch.optim.Optimizer adds it to what classes do without)
        other.pop("differentiable", False)
    assert_equal(found, expected)


# ---- older layouts ----


@pytest.mark.parametrize("kind", [float, int, np.float32, lambda step: torch.tensor([float(step)])])
@pytest.mark.parametrize("case", [case for case in FIRST_OF_EACH_RULE if case.optimizer != "SGD"])
def test_steps_that_were_numbers_and_groups_without_flags(case: Case, kind: Callable[[Any], Any]) -> None:
    twins = Twins(case, LAYOUTS, torch.float64)
    for _ in range(3):
        twins.step()
    old = copy.deepcopy(twins.theirs.state_dict())
    for state in old["state"].values():
        state["step"] = kind(state["step"].item())
    for name in ("maximize", "foreach", "fused", "capturable", "differentiable", "decoupled_weight_decay", "amsgrad"):
        if not case.options.get(name):
            old["param_groups"][0].pop(name, None)
    for param, twin in zip(twins.params, twins.twins, strict=True):
        param.data.copy_(twin)
    decoupled = {"decoupled_weight_decay": True} if case.optimizer == "AdamW" else {}
    twins.ours = ours(case.optimizer)(twins.params)
    twins.ours.load_state_dict(old)
    twins.ours.param_groups[0].update(decoupled)
    for _ in range(3):
        twins.step()
    twins.assert_close()
    assert twins.ours.state[twins.params[0]]["step"].shape == ()


def test_flags_of_another_machine_are_forgotten() -> None:
    """A checkpoint of a captured step on a GPU: how it ran says nothing about how it goes on here."""
    params = make_params()
    there = torch.optim.AdamW(params)
    give_gradients(params, generator())
    there.step()
    checkpoint = there.state_dict()
    checkpoint["param_groups"][0].update(capturable=True, differentiable=True, fused=True)
    here = fastopt.torch.AdamW(params)
    here.load_state_dict(checkpoint)
    here.step()
    assert not here.param_groups[0]["capturable"]


def test_an_sgd_without_momentum_has_no_state_but_may_get_one() -> None:
    params, twins = make_params(), make_params()
    here, there = ours("SGD")(params, lr=0.1), theirs("SGD")(twins, lr=0.1)
    step_both(here, there)
    assert here.state_dict()["state"] == {}
    for opt in (here, there):
        opt.param_groups[0].update(momentum=0.9, dampening=0.5)
    step_both(here, there)
    torch.testing.assert_close(params, twins, rtol=1e-12, atol=1e-12)
    for opt in (here, there):
        opt.param_groups[0].update(momentum=0)
    step_both(here, there)
    torch.testing.assert_close(params, twins, rtol=1e-12, atol=1e-12)


def test_momentum_buffers_of_none_and_sparse_ones() -> None:
    params, twins = make_params(), make_params()
    there = theirs("SGD")(twins, lr=0.1, momentum=0.9, dampening=0.5)
    step_alone(there, steps=1)
    checkpoint = there.state_dict()
    checkpoint["state"][0]["momentum_buffer"] = None
    checkpoint["state"][1]["momentum_buffer"] = checkpoint["state"][1]["momentum_buffer"].to_sparse()
    here = ours("SGD")(params, lr=0.1, momentum=0.9, dampening=0.5)
    here.load_state_dict(checkpoint)
    again = theirs("SGD")(twins, lr=0.1, momentum=0.9, dampening=0.5)
    checkpoint["state"][1]["momentum_buffer"] = checkpoint["state"][1]["momentum_buffer"].to_dense()
    again.load_state_dict(checkpoint)
    for param, twin in zip(params, twins, strict=True):
        param.data.copy_(twin)
    step_both(here, again)
    torch.testing.assert_close(params, twins, rtol=1e-12, atol=1e-12)


# ---- to NumPy and back ----


@pytest.mark.usefixtures("numbers_in_double_precision")
@each_rule
def test_checkpoints_move_to_numpy_and_back(case: Case) -> None:
    params = make_params()
    opt = ours(case.optimizer)(params, **case.options)
    step_alone(opt, steps=2)
    arrays = [param.detach().numpy().copy() for param in params]
    on_arrays = MAKERS[case.optimizer](arrays)
    on_arrays.load_state_dict(opt.state_dict())
    gen = generator()
    for _ in range(3):
        give_gradients(params, gen)
        opt.step()
        on_arrays.step([param.grad.numpy() for param in params])
    assert_equal(params, list(map(torch.from_numpy, arrays)))
    twins = [torch.from_numpy(array.copy()).requires_grad_() for array in arrays]
    back = ours(case.optimizer)(twins)
    back.load_state_dict(on_arrays.state_dict())
    step_both(opt, back)
    assert_equal(twins, params)
    assert_equal(back.state_dict()["state"], opt.state_dict()["state"])


def test_states_of_numpy_are_copied_and_in_the_parameters_order() -> None:
    array = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    on_arrays = fastopt.Adam(array)
    on_arrays.step(np.asfortranarray(np.ones((2, 3))))
    param = torch.from_numpy(array.copy(order="C")).requires_grad_()
    opt = fastopt.torch.Adam([param])
    checkpoint = on_arrays.state_dict()
    opt.load_state_dict(checkpoint)
    checkpoint["state"][0]["exp_avg"][:] = math.nan
    param.grad = torch.arange(6.0, dtype=torch.float64).view(2, 3)
    opt.step()
    on_arrays.step(np.asfortranarray(param.grad.numpy()))
    assert_equal(param, torch.from_numpy(array))
    assert opt.state[param]["exp_avg"].stride() == param.stride()


# ---- what loading does and does not ----


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("state", [torch.float32, torch.float64])
def test_loading_casts_nothing(dtype: Any, state: Any) -> None:
    """Only a step does, where there are no kernels for the pair."""
    wide = make_params(state)
    source = fastopt.torch.AdamW(wide)
    step_alone(source)
    params = [param.detach().to(dtype).requires_grad_() for param in wide]
    opt = fastopt.torch.AdamW(params)
    opt.load_state_dict(source.state_dict())
    assert_equal(opt.state_dict()["state"], source.state_dict()["state"])
    give_gradients(params, generator())
    opt.step()
    assert {value.dtype for name, value in opt.state[params[0]].items() if name != "step"} == {torch.float32}


def test_narrower_states_are_widened_by_the_step() -> None:
    source = fastopt.torch.AdamW(make_params(torch.float32))
    step_alone(source)
    params = make_params(torch.float64)
    opt = fastopt.torch.AdamW(params)
    opt.load_state_dict(source.state_dict())
    expected = opt.state[params[0]]["exp_avg"].double() * 0.9 + 0.1
    for param in params:
        param.grad = torch.ones_like(param)
    opt.step()
    assert opt.state[params[0]]["exp_avg"].dtype == torch.float64
    torch.testing.assert_close(opt.state[params[0]]["exp_avg"], expected)


def test_loading_copies_and_may_be_repeated() -> None:
    params = make_params()
    opt, other = fastopt.torch.AdamW(params), fastopt.torch.AdamW(make_params())
    step_both(opt, other)
    checkpoint = opt.state_dict()
    frozen = copy.deepcopy(checkpoint)
    for _ in range(2):
        other.load_state_dict(checkpoint)
        step_alone(other)
        assert_equal(checkpoint, frozen)
    again = fastopt.torch.AdamW(make_params())
    again.load_state_dict(frozen)
    for param, value in zip(again.param_groups[0]["params"], other.param_groups[0]["params"], strict=True):
        param.data.copy_(value)
    other.load_state_dict(checkpoint)
    step_both(again, other)
    assert_equal(again.state_dict(), other.state_dict())


def test_the_state_dict_refers_to_the_state() -> None:
    """As in torch: it is no snapshot."""
    opt = fastopt.torch.AdamW(make_params())
    step_alone(opt, steps=1)
    state_dict = opt.state_dict()
    step_alone(opt, steps=1)
    assert state_dict["state"][0]["step"] == 2
    assert state_dict["state"][0]["exp_avg"] is opt.state[opt.param_groups[0]["params"][0]]["exp_avg"]


@pytest.mark.parametrize("groups", [[], [{"params": [0]}], [{"params": [0, 1]}, {"params": []}]])
def test_a_state_dict_that_does_not_fit_gets_torchs_message(groups: list[Any]) -> None:
    messages = []
    for cls in (fastopt.torch.AdamW, torch.optim.AdamW):
        opt = cls(make_params())
        with pytest.raises(ValueError, match="loaded state dict") as caught:
            opt.load_state_dict({"state": {}, "param_groups": groups})
        messages.append(str(caught.value))
        assert len(opt.param_groups[0]["params"]) == 2
    assert messages[0] == messages[1]


def test_a_state_of_another_shape_is_refused_by_the_step() -> None:
    params = make_params()
    opt = fastopt.torch.AdamW(params)
    step_alone(opt)
    checkpoint = copy.deepcopy(opt.state_dict())
    checkpoint["state"][1]["exp_avg_sq"] = torch.zeros(3, dtype=torch.float64)
    opt.load_state_dict(checkpoint)
    before = [param.detach().clone() for param in params]
    message = r"^exp_avg_sq of param_groups\[0\]\['params'\]\[1\] has shape \(3,\), expected \(4,\)$"
    with pytest.raises(RuntimeError, match=message):
        opt.step()
    assert_equal(params, before)


def test_states_of_other_optimizers_are_kept() -> None:
    params = make_params()
    opt = fastopt.torch.AdamW(params)
    step_alone(opt)
    checkpoint = copy.deepcopy(opt.state_dict())
    checkpoint["state"][0]["ema"] = torch.ones(2)
    checkpoint["state"][0]["note"] = "the user's own"
    opt.load_state_dict(checkpoint)
    step_alone(opt)
    assert opt.state_dict()["state"][0]["note"] == "the user's own"
    assert_equal(opt.state_dict()["state"][0]["ema"], torch.ones(2))


def test_entries_of_others_beside_those_of_the_parameters_are_kept() -> None:
    opt = fastopt.torch.AdamW(make_params())
    entries: Any = {"epoch": 3, "note": "every step"}
    opt.register_state_dict_pre_hook(lambda optimizer: optimizer.state.update(entries))
    step_alone(opt)
    opt.load_state_dict(copy.deepcopy(opt.state_dict()))
    step_alone(opt)
    assert opt.step_count == 6
    assert opt.state_dict()["state"]["epoch"] == 3
    assert opt.state_dict()["state"]["note"] == "every step"


def test_a_state_in_memory_that_cannot_be_written_is_copied() -> None:
    on_arrays = fastopt.Adam(np.ones(3))
    on_arrays.step(np.ones(3))
    checkpoint = on_arrays.state_dict()
    for name in ("exp_avg", "exp_avg_sq"):
        checkpoint["state"][0][name].setflags(write=False)
    opt = fastopt.torch.Adam([torch.ones(3, dtype=torch.float64, requires_grad=True)])
    opt.load_state_dict(checkpoint)
    step_alone(opt)
    assert opt.step_count == 4


# ---- schedules ----


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_schedules_resume(name: str) -> None:
    schedule = schedules.linear(start=0.1, end=0.0, total=10)
    params = make_params()
    opt = ours(name)(params, lr=schedule)
    step_alone(opt, steps=2)
    copies = [param.detach().clone().requires_grad_() for param in params]
    resumed = ours(name)(copies, lr=schedule)
    resumed.load_state_dict(through_a_file(opt.state_dict()))
    step_both(opt, resumed)
    assert_equal(copies, params)
    assert resumed.last_step.lr == schedule(4)


def test_a_schedule_goes_on_where_torchs_checkpoint_ends() -> None:
    twins = make_params()
    there = torch.optim.AdamW(twins)
    step_alone(there, steps=2)
    opt = fastopt.torch.AdamW(make_params())
    opt.load_state_dict(there.state_dict())
    opt.param_groups[0]["lr"] = schedules.linear(start=0.1, end=0.0, total=10)
    step_alone(opt, steps=1)
    assert opt.last_step is not None
    assert opt.last_step.lr == pytest.approx(0.08)


# ---- what is replaced between steps ----


def replace_the_states(opt: Any, param: Any) -> None:
    opt.state[param]["exp_avg"] = opt.state[param]["exp_avg"] * 2


def change_the_states(opt: Any, param: Any) -> None:
    opt.state[param]["exp_avg"].mul_(2)


def give_the_states_other_memory(opt: Any, param: Any) -> None:
    opt.state[param]["exp_avg"].data = opt.state[param]["exp_avg"] * 2


def share_the_states(opt: Any, param: Any) -> None:
    opt.state[param]["exp_avg"].share_memory_().mul_(2)


def replace_the_entry(opt: Any, param: Any) -> None:
    opt.state[param] = {name: value.clone() for name, value in opt.state[param].items()}


def forget_the_state(opt: Any, param: Any) -> None:
    del opt.state[param]


def forget_everything(opt: Any, param: Any) -> None:
    opt.state.clear()


def replace_the_step(opt: Any, param: Any) -> None:
    opt.state[param]["step"] = torch.tensor(10.0)


def change_the_step(opt: Any, param: Any) -> None:
    opt.state[param]["step"].fill_(7)


def reset_the_step(opt: Any, param: Any) -> None:
    opt.state[param]["step"].zero_()


def replace_the_data(opt: Any, param: Any) -> None:
    param.data = param.data * 2


def change_the_data(opt: Any, param: Any) -> None:
    param.data.mul_(2)


def transpose_the_memory(opt: Any, param: Any) -> None:
    param.data = param.data.t().contiguous().t()


def transpose_in_place(opt: Any, param: Any) -> None:
    """The same memory, read the other way: the states stay as they are, as in torch."""
    if param.dim() == 2:
        param.data = param.data.reshape(-1).view(param.shape[::-1]).t()


def share_the_step(opt: Any, param: Any) -> None:
    opt.state[param]["step"].share_memory_()


def give_the_step_other_memory(opt: Any, param: Any) -> None:
    opt.state[param]["step"].data = torch.tensor(10.0)


def point_the_step_elsewhere(opt: Any, param: Any) -> None:
    opt.state[param]["step"].set_(torch.tensor(10.0))


def share_the_parameter(opt: Any, param: Any) -> None:
    param.data.share_memory_()


def switch_amsgrad_on(opt: Any, param: Any) -> None:
    for state in opt.state.values():
        state["max_exp_avg_sq"] = torch.zeros_like(state["exp_avg"])
    opt.param_groups[0]["amsgrad"] = True


def reload(opt: Any, param: Any) -> None:
    opt.load_state_dict(copy.deepcopy(opt.state_dict()))


def replace_the_groups(opt: Any, param: Any) -> None:
    opt.param_groups = [{**group, "lr": 0.5} for group in opt.param_groups]


def drop_a_parameter(opt: Any, param: Any) -> None:
    opt.param_groups[0]["params"] = [p for p in opt.param_groups[0]["params"] if p is param]


def regroup(opt: Any, param: Any) -> None:
    (group,) = opt.param_groups
    first, second = group["params"]
    opt.param_groups = [{**group, "params": [first], "lr": 0.5}, {**group, "params": [second]}]


def move_between_groups(opt: Any, param: Any) -> None:
    (group,) = opt.param_groups
    first, second = group["params"]
    opt.param_groups = [{**group, "params": [], "lr": 0.5}, {**group, "params": [first, second]}]
    opt.step()
    opt.param_groups[0]["params"], opt.param_groups[1]["params"] = [first], [second]


REPLACEMENTS = [
    replace_the_states,
    change_the_states,
    give_the_states_other_memory,
    share_the_states,
    replace_the_entry,
    forget_the_state,
    forget_everything,
    replace_the_step,
    change_the_step,
    reset_the_step,
    replace_the_data,
    change_the_data,
    transpose_the_memory,
    transpose_in_place,
    share_the_step,
    give_the_step_other_memory,
    point_the_step_elsewhere,
    share_the_parameter,
    switch_amsgrad_on,
    reload,
    replace_the_groups,
    drop_a_parameter,
    regroup,
    move_between_groups,
]


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("replace", REPLACEMENTS)
def test_what_is_replaced_between_steps_counts(replace: Callable[[Any, Any], None], which: int) -> None:
    def script(cls: Any) -> Any:
        params = make_params()
        opt = cls(params)
        step_alone(opt, steps=1)
        replace(opt, params[which])
        for param in params:  # in the memory order that the parameter has now
            param.grad = torch.empty_like(param).copy_(nonzero(param.shape, param.dtype, generator()))
        for _ in range(3):
            opt.step()
        states = [opt.state[param] for param in params if param in opt.state]
        return params, [{name: state[name] for name in ("step", "exp_avg", "exp_avg_sq")} for state in states]

    torch.testing.assert_close(script(fastopt.torch.Adam), script(torch.optim.Adam), rtol=1e-12, atol=1e-12)


def test_a_model_converted_after_the_optimizer_was_made() -> None:
    """(torch cannot step then: its states keep their dtype.)"""
    model = torch.nn.Linear(4, 3)
    opt = fastopt.torch.AdamW(model.parameters(), lr=0.1)
    for dtype in (torch.float32, torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float32):
        model.to(dtype)
        give_gradients(model.parameters(), generator())
        before = model.weight.detach().clone()
        opt.step()
        change = before - model.weight.detach()
        torch.testing.assert_close(change.sign(), model.weight.grad.sign())
    assert opt.state[model.weight]["step"] == 6


def test_a_model_brought_to_channels_last_after_the_optimizer_was_made() -> None:
    def script(cls: Any) -> Any:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(4, 2, 1)).double()
        opt = cls(model.parameters(), lr=0.1)
        images = torch.rand(2, 3, 6, 6, dtype=torch.float64, generator=generator())
        for memory_format in (torch.contiguous_format, torch.channels_last, torch.contiguous_format):
            model.to(memory_format=memory_format)
            for _ in range(2):
                opt.zero_grad()
                model(images.to(memory_format=memory_format)).square().mean().backward()
                opt.step()
        return list(model.parameters())

    torch.testing.assert_close(script(fastopt.torch.AdamW), script(torch.optim.AdamW), rtol=1e-10, atol=1e-10)


def test_a_parameter_that_shrinks_in_its_own_memory_is_refused_not_overrun() -> None:
    param = torch.ones(100, requires_grad=True)
    opt = fastopt.torch.AdamW([param])
    param.grad = torch.ones(100)
    opt.step()
    param.grad = None
    hidden = param.data[50:].clone()
    whole = param.data
    param.data = param.data[:50]
    param.grad = torch.ones(50)
    with pytest.raises(RuntimeError, match=r"exp_avg of .* has shape \(100,\), expected \(50,\)"):
        opt.step()
    assert_equal(whole[50:], hidden)
    opt.state.clear()
    opt.step()
    assert_equal(whole[50:], hidden)


@pytest.mark.parametrize("how", ["forgotten", "not yet asked for"])
def test_states_are_made_with_the_first_gradient_not_before(how: str) -> None:
    """SGD's first velocity is the gradient itself, whatever the dampening, also of a parameter that waited for it."""

    def script(cls: Any) -> Any:
        params, gen = make_params(), generator()
        opt = cls(params, lr=0.1, momentum=0.9 if how == "forgotten" else 0.0, dampening=0.5)
        for step in range(5):
            if step == 1 and how == "forgotten":
                opt.state.pop(params[1])
            if step == 1 and how == "not yet asked for":
                opt.param_groups[0]["momentum"] = 0.9
            give_gradients(params, gen)
            if step in (1, 2):
                params[1].grad = None
            if step == 2:
                opt.load_state_dict(copy.deepcopy(opt.state_dict()))
            opt.step()
        return params, [opt.state[param]["momentum_buffer"] for param in params]

    torch.testing.assert_close(script(fastopt.torch.SGD), script(torch.optim.SGD), rtol=1e-13, atol=1e-13)


# ---- counting ----


def test_steps_are_counted_beyond_what_float32_can(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adagrad's rate depends on the count for ever. (torch's stands still at 2**24.)"""
    start = 2**24 - 2
    param = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    opt = fastopt.torch.Adagrad([param], lr=1.0, lr_decay=1.0)
    opt.state[param]["step"].fill_(start)
    for step in range(start + 1, start + 6):
        with torch.no_grad():
            param.zero_()
        opt.state[param]["sum"].zero_()
        param.grad = torch.ones_like(param)
        opt.step()
        assert param.item() == pytest.approx(-1 / step, rel=1e-9)
        assert opt.state[param]["step"].item() == step
    resumed = fastopt.torch.Adagrad([param], lr=1.0, lr_decay=1.0)
    resumed.load_state_dict(through_a_file(opt.state_dict()))
    resumed.step()
    assert resumed.state[param]["step"].item() == start + 6


def test_parameters_count_apart() -> None:
    params = [torch.ones(2, requires_grad=True) for _ in range(4)]
    opt = fastopt.torch.Adam(params)
    patterns = [[0], [0, 1], [1, 2], [0, 1, 2], [2], [0], [0, 1, 2]]
    for pattern in patterns:
        for index, param in enumerate(params):
            param.grad = torch.ones(2) if index in pattern else None
        opt.step()
    expected = [sum(index in pattern for pattern in patterns) for index in range(3)]
    assert [int(opt.state[param]["step"]) for param in params[:3]] == expected
    assert params[3] not in opt.state


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_the_dtype_of_steps_follows_the_default_dtype(dtype: Any) -> None:
    """But is never narrower than float32."""
    torch.set_default_dtype(dtype)
    try:
        states = []
        for cls in (fastopt.torch.Adam, torch.optim.Adam):
            opt = cls(make_params())
            step_alone(opt)
            states.append(opt.state_dict()["state"][0]["step"])
    finally:
        torch.set_default_dtype(torch.float32)
    assert_equal(*states)


def test_snapshots_sent_to_another_process_between_steps() -> None:
    """Which moves tensors into shared memory, also the number of steps."""
    from torch.multiprocessing.reductions import reduce_storage

    params = [torch.ones(5, requires_grad=True) for _ in range(3)]
    opt = fastopt.torch.Adam(params, lr=0.1)
    for step in range(1, 5):
        for param in params:
            param.grad = torch.ones(5)
        opt.step()
        assert [opt.state[param]["step"].item() for param in params] == [step] * 3
        for entry in opt.state.values():
            for state in entry.values():
                reduce_storage(state.untyped_storage())  # type: ignore[no-untyped-call]


# ---- what the user puts into the state is used, and updated in place ----


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("shape", [(), (1,)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_states_in_shared_memory_are_those_of_all_forked_workers(dtype: Any, shape: tuple[int, ...]) -> None:
    param = torch.zeros(3, requires_grad=True)
    param.share_memory_()
    opt = fastopt.torch.Adam([param], lr=0.1)
    mine = {
        "step": torch.zeros(shape, dtype=dtype).share_memory_(),
        "exp_avg": torch.zeros(3).share_memory_(),
        "exp_avg_sq": torch.zeros(3).share_memory_(),
    }
    opt.state[param].update(mine)
    twin = torch.zeros(3, requires_grad=True)
    expected = torch.optim.Adam([twin], lr=0.1)

    def work(sign: float) -> None:
        for _ in range(5):
            param.grad = torch.full((3,), sign)
            opt.step()

    for sign in (1.0, -1.0):  # one after the other, so that what comes out is certain
        child = os.fork()
        if not child:
            status = 1
            try:
                work(sign)
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        for _ in range(5):
            twin.grad = torch.full((3,), sign)
            expected.step()
    assert all(opt.state[param][name] is value for name, value in mine.items())
    assert mine["step"].sum().item() == 10
    torch.testing.assert_close(param, twin)
    torch.testing.assert_close(mine["exp_avg"], expected.state[twin]["exp_avg"])
    work(1.0)  # and this process goes on from there
    assert mine["step"].sum().item() == 15


# ---- all or nothing ----


DAMAGE: dict[str, Callable[[Any], Any]] = {
    "no state": lambda d: d.pop("state"),
    "no groups": lambda d: d.pop("param_groups"),
    "a group too few": lambda d: d["param_groups"].pop(),
    "a parameter too few": lambda d: d["param_groups"][0]["params"].clear(),
    "a group that is none": lambda d: d["param_groups"].__setitem__(1, None),
    "a rate that is no number": lambda d: d["param_groups"][1].update(lr="x"),
    "a rate of NaN": lambda d: d["param_groups"][1].update(lr=math.nan),
    "betas of None": lambda d: d["param_groups"][1].update(betas=None),
    "a negative limit": lambda d: [group.update(clip_norm=-1.0) for group in d["param_groups"]],
    "limits that differ": lambda d: d["param_groups"][1].update(clip_norm=7.0),
    "another word": lambda d: [group.update(nonfinite="x") for group in d["param_groups"]],
    "a schedule that is wrong there": lambda d: d["param_groups"][1].update(lr=lambda step: 0.1 if step < 2 else None),
    "step of NaN": lambda d: d["state"][1].update(step=math.nan),
    "step of infinity": lambda d: d["state"][1].update(step=torch.tensor(math.inf)),
    "step of None": lambda d: d["state"][1].update(step=None),
    "step of x": lambda d: d["state"][1].update(step="x"),
    "half a step": lambda d: d["state"][1].update(step=torch.tensor(1.5)),
    "several steps": lambda d: d["state"][1].update(step=torch.ones(2)),
    "a step of no device": lambda d: d["state"][1].update(step=torch.ones((), device="meta")),
    "step_count of abc": lambda d: d.update(step_count="abc"),
    "step_count of None": lambda d: d.update(step_count=None),
    "step_count of NaN": lambda d: d.update(step_count=math.nan),
    "no array": lambda d: d["state"][1].update(exp_avg=np.array([None] * 3)),
    "a state of no device": lambda d: d["state"][1].update(exp_avg=torch.ones(3, device="meta")),
    "a state that is none": lambda d: d["state"].update({1: 7}),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_state_dict_that_is_damaged_changes_nothing(damage: str) -> None:
    def trained(steps: int) -> tuple[Any, list[Any]]:
        params = make_params()
        groups: list[dict[str, Any]] = [{"params": params[:1]}, {"params": params[1:], "lr": 0.5}]
        opt = fastopt.torch.Adam(groups, lr=0.1, clip_norm=3.0)
        for _ in range(steps):
            step(opt, params)
        return opt, params

    def step(opt: Any, params: list[Any]) -> None:
        for param in params:
            param.grad = torch.ones_like(param)
        opt.step()

    (opt, params), (untouched, others) = trained(1), trained(1)
    source, _ = trained(2)
    state_dict = copy.deepcopy(source.state_dict())
    DAMAGE[damage](state_dict)
    kept = [opt.state, opt.param_groups, *opt.param_groups]
    with pytest.raises((KeyError, TypeError, ValueError, AttributeError, RuntimeError)):
        opt.load_state_dict(state_dict)
    assert all(a is b for a, b in zip(kept, [opt.state, opt.param_groups, *opt.param_groups], strict=True))
    assert repr(opt) == repr(untouched)
    assert opt.step_count == 1
    for each, its in ((opt, params), (untouched, others)):
        step(each, its)
    assert_equal(params, others)
    assert_equal(opt.state_dict()["state"], untouched.state_dict()["state"])


@pytest.mark.parametrize("state", ["x", 3.0])
def test_a_state_that_is_no_tensor_is_refused_by_name(state: Any) -> None:
    param = torch.ones(3, requires_grad=True)
    opt = fastopt.torch.Adam([param])
    param.grad = torch.ones(3)
    opt.step()
    before = param.tolist()
    opt.state[param]["exp_avg"] = state
    with pytest.raises(RuntimeError, match=r"^exp_avg of param_groups\[0\]\['params'\]\[0\] is of type "):
        opt.step()
    assert param.tolist() == before
    assert opt.step_count == 1


# ---- what a checkpoint of torch says, and what it does not ----


def test_where_a_checkpoint_does_not_say_how_many_steps_were_taken_the_count_stays() -> None:
    """That of torch's SGD."""
    there = torch.optim.SGD([torch.zeros(2, dtype=torch.float64, requires_grad=True)], momentum=0.9)
    param, w = torch.zeros(2, dtype=torch.float64, requires_grad=True), np.zeros(2)
    ours_, arrays = fastopt.torch.SGD([param], momentum=0.9), fastopt.SGD([w], momentum=0.9)
    for _ in range(10):
        there.param_groups[0]["params"][0].grad = torch.ones(2, dtype=torch.float64)
        param.grad = torch.ones(2, dtype=torch.float64)
        there.step()
        ours_.step()
        arrays.step([np.ones(2)])
    for opt in (ours_, arrays):
        opt.load_state_dict(there.state_dict())
        assert opt.step_count == 10


@pytest.mark.parametrize("name", ["SGD", "RMSprop", "Adam", "AdamW"])
@pytest.mark.parametrize("scheduler", ["OneCycleLR", "CyclicLR"])
def test_entries_of_schedulers_in_a_checkpoint_for_arrays(name: str, scheduler: str) -> None:
    param, w = torch.ones(2, dtype=torch.float64, requires_grad=True), np.ones(2)
    options = {"momentum": 0.9} if name in ("SGD", "RMSprop") else {}
    there, here = theirs(name)([param], **options), getattr(fastopt, name)([w], **options)
    if scheduler == "OneCycleLR":
        schedule = torch.optim.lr_scheduler.OneCycleLR(there, 0.1, total_steps=10)
    else:
        schedule = torch.optim.lr_scheduler.CyclicLR(there, 0.1, 0.2)
    param.grad = torch.ones(2, dtype=torch.float64)
    there.step()
    schedule.step()
    w[:] = param.detach().numpy()
    here.load_state_dict(there.state_dict())
    assert here.param_groups[0]["lr"] == there.param_groups[0]["lr"]
    there.step()
    here.step([np.ones(2)])
    torch.testing.assert_close(torch.from_numpy(w), param.detach(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_the_trial_step_of_distributed_checkpoints_is_none_for_schedules(name: str) -> None:
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    schedule = schedules.linear(start=0.1, end=0.0, total=10)
    model = torch.nn.Linear(2, 1)
    before = [param.tolist() for param in model.parameters()]
    opt = ours(name)(model.parameters(), lr=schedule)
    get_optimizer_state_dict(model, opt)
    assert opt.step_count == 0
    assert opt.param_groups[0]["lr"] is schedule
    assert [param.tolist() for param in model.parameters()] == before
    model(torch.ones(2)).sum().backward()
    opt.step()
    assert opt.step_count == 1
    assert opt.last_step.lr == 0.1
