"""step_in_backward: the same steps, each as soon as its gradient is there, which is freed at once."""

import copy
import gc
import math
import pickle
import subprocess
import sys
import weakref
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
from cases import Case

torch = pytest.importorskip("torch")

from interrupts import at_every_point  # noqa: E402
from torch_cases import FIRST_OF_EACH_RULE, assert_equal, nonzero, ours  # noqa: E402

import fastopt.torch  # noqa: E402
from fastopt import schedules  # noqa: E402

STEPS = 4


def make_model(dtype: Any = torch.float64) -> Any:
    torch.manual_seed(0)
    layers = [torch.nn.Linear(6, 6), torch.nn.Tanh(), torch.nn.Linear(6, 6), torch.nn.Tanh(), torch.nn.Linear(6, 2)]
    return torch.nn.Sequential(*layers).to(dtype)


def train(model: Any, opt: Any, steps: int = STEPS, scheduler: Any = None) -> None:
    inputs = nonzero((steps, 5, 6), torch.float64, torch.Generator().manual_seed(0))
    for x in inputs:
        opt.zero_grad()
        model(x).square().mean().backward()
        opt.step()
        if scheduler is not None:
            scheduler.step()


@pytest.mark.parametrize("case", [case for case in FIRST_OF_EACH_RULE if not (case.clips_by_norm or case.measures)])
def test_the_same_bits_as_after_the_backward_pass(case: Case) -> None:
    results = []
    for in_backward in (False, True):
        model = make_model()
        opt = ours(case.optimizer)(
            [
                {"params": model[0].parameters()},
                {"params": [*model[2].parameters(), *model[4].parameters()], "lr": 0.05},
            ],
            **{"lr": 0.01, **{name: value for name, value in case.options.items() if name != "lr"}},
        )
        if in_backward:
            fastopt.torch.step_in_backward(opt)
        train(model, opt)
        results.append((list(model.parameters()), opt.state_dict()["state"], opt.step_count))
    assert_equal(results[1], results[0])


def test_each_gradient_is_freed_before_the_next_one_comes() -> None:
    model = make_model()
    opt = fastopt.torch.AdamW(model.parameters())
    gradients: list[weakref.ref[Any]] = []
    alive: list[int] = []

    def watch(param: Any) -> None:
        alive.append(sum(gradient() is not None for gradient in gradients))
        gradients.append(weakref.ref(param.grad))

    for param in model.parameters():
        param.register_post_accumulate_grad_hook(watch)
    fastopt.torch.step_in_backward(opt)
    train(model, opt)
    assert alive == [0] * (6 * STEPS)
    assert [param.grad for param in model.parameters()] == [None] * 6


def test_schedulers_and_schedules() -> None:
    results = []
    for in_backward in (False, True):
        model = make_model()
        opt = fastopt.torch.SGD(model.parameters(), lr=0.1, momentum=schedules.linear(start=0.9, end=0.1, total=STEPS))
        if in_backward:
            fastopt.torch.step_in_backward(opt)
        scheduler = torch.optim.lr_scheduler.StepLR(opt, 2, 0.1)
        train(model, opt, scheduler=scheduler)
        assert opt.step_count == STEPS
        assert scheduler.get_last_lr() == [pytest.approx(0.001)]
        results.append(list(model.parameters()))
    assert_equal(results[1], results[0])


def test_it_can_be_undone_and_resumed_from_a_checkpoint() -> None:
    through, model = make_model(), make_model()
    train(through, fastopt.torch.AdamW(through.parameters(), lr=0.1), steps=4)
    opt = fastopt.torch.AdamW(model.parameters(), lr=0.1)
    handle = fastopt.torch.step_in_backward(opt)
    inputs = nonzero((4, 5, 6), torch.float64, torch.Generator().manual_seed(0))
    for step, x in enumerate(inputs):
        if step == 1:
            handle.remove()
        if step == 2:
            checkpoint = opt.state_dict()
            opt = fastopt.torch.AdamW(model.parameters())
            fastopt.torch.step_in_backward(opt)
            opt.load_state_dict(checkpoint)  # replaces the states under the hooks
        opt.zero_grad()
        model(x).square().mean().backward()
        assert (model[0].weight.grad is None) == (step != 1)
        opt.step()
    assert_equal(list(model.parameters()), list(through.parameters()))


@pytest.mark.parametrize("between", ["nothing", "removed", "loaded", "moved"])
def test_the_first_step_is_the_first_though_its_states_are_made_before(between: str) -> None:
    """SGD's first velocity is the gradient itself, whatever the dampening."""
    params = [torch.ones(3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    opts = [fastopt.torch.SGD([param], lr=0.1, momentum=0.9, dampening=0.5) for param in params]
    handle = fastopt.torch.step_in_backward(opts[0])
    for step in range(3):
        if step == 0 and between == "removed":
            handle.remove()
            assert not opts[0].state
        if step == 0 and between == "loaded":
            for opt in opts:
                opt.load_state_dict({**opt.state_dict(), "state": {0: {"momentum_buffer": torch.ones(3)}}})
        if step == 0 and between == "moved":
            params[0].data = params[0].data.clone()
        for param, opt in zip(params, opts, strict=True):
            opt.zero_grad()
            param.square().sum().backward()
            opt.step()
    assert_equal(params[0], params[1])
    assert_equal(opts[0].state[params[0]], opts[1].state[params[1]])


def test_what_cannot_be_stepped_is_refused_before_the_backward_pass() -> None:
    params = [torch.ones(3, requires_grad=True), torch.ones(3, device="meta", requires_grad=True)]
    opt = fastopt.torch.AdamW(params)
    with pytest.raises(RuntimeError, match=r"^param_groups\[0\]\['params'\]\[1\] is on device meta"):
        fastopt.torch.step_in_backward(opt)
    params[0].sum().backward()
    assert params[0].tolist() == [1.0] * 3
    assert not opt.state


def test_frozen_parameters_and_those_without_a_gradient() -> None:
    model = make_model()
    model[0].requires_grad_(False)
    unused = torch.ones(1, requires_grad=True)
    opt = fastopt.torch.AdamW([*model.parameters(), unused], lr=0.1)
    before = model[0].weight.detach().clone()
    fastopt.torch.step_in_backward(opt)
    train(model, opt)
    assert_equal(model[0].weight, before)
    assert [opt.state[param]["step"] for param in opt.state] == [STEPS] * 4 + [0]


def test_a_parameter_that_is_used_twice_is_stepped_once() -> None:
    results = []
    for in_backward in (False, True):
        param = torch.ones(3, requires_grad=True)
        opt = fastopt.torch.SGD([param], lr=0.1)
        if in_backward:
            fastopt.torch.step_in_backward(opt)
        ((param**2).sum() + (param**3).sum()).backward()
        opt.step()
        results.append(param)
    assert_equal(results[1], results[0])


def test_clipping_by_value_is_possible() -> None:
    param = torch.zeros(3, requires_grad=True)
    opt = fastopt.torch.SGD([param], lr=1.0, clip_value=0.5)
    fastopt.torch.step_in_backward(opt)
    (param * torch.tensor([1.0, -2.0, 0.25])).sum().backward()
    assert param.tolist() == [-0.5, 0.5, -0.25]


@pytest.mark.parametrize("options", [{"clip_norm": 1.0}, {"nonfinite": "skip"}, {"nonfinite": "raise"}])
def test_what_needs_all_gradients_is_refused(options: dict[str, Any]) -> None:
    message = r"^step_in_backward: clip_norm and nonfinite need all gradients at once, .* use clip_value, or step after"
    param = torch.ones(3, requires_grad=True)
    with pytest.raises(ValueError, match=message):
        fastopt.torch.step_in_backward(ours("SGD")([param], **options))
    opt = fastopt.torch.SGD([param])
    fastopt.torch.step_in_backward(opt)
    for name, value in options.items():
        setattr(opt, name, value)
    with pytest.raises(ValueError, match=message):
        param.sum().backward()
    assert param.tolist() == [1.0] * 3


@pytest.mark.parametrize("begun", [False, True])
def test_what_is_dropped_is_freed(begun: bool) -> None:
    """At once: nothing holds itself."""
    gc.collect()
    gc.disable()
    try:
        model = make_model()
        opt = fastopt.torch.AdamW(model.parameters())
        handle = fastopt.torch.step_in_backward(opt)
        if begun:
            train(model, opt)
        params, optimizer = [weakref.ref(param) for param in model.parameters()], weakref.ref(opt)
        del model, opt
        assert optimizer() is not None  # the handle has it
        del handle
        assert optimizer() is None
        assert [param() for param in params] == [None] * 6
    finally:
        gc.enable()


def test_without_the_optimizer_gradients_accumulate() -> None:
    param: Any = torch.ones(3, requires_grad=True)
    opt = fastopt.torch.SGD([param], lr=0.5)
    handle = fastopt.torch.step_in_backward(opt)
    del opt
    param.sum().backward()
    assert (param.tolist(), param.grad) == ([0.5] * 3, None)
    del handle
    for count in (1, 2):
        param.sum().backward()
        assert param.tolist() == [0.5] * 3
        assert param.grad.tolist() == [count] * 3


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_a_copy_steps_after_the_backward_pass(copied: Any) -> None:
    model = make_model()
    opt = fastopt.torch.AdamW(model.parameters(), lr=0.1)
    fastopt.torch.step_in_backward(opt)
    train(model, opt, steps=2)
    twin, twins_opt = copied((model, opt))
    train(twin, twins_opt, steps=2)
    assert all(param.grad is not None for param in twin.parameters())
    train(model, opt, steps=2)
    assert_equal(list(twin.parameters()), list(model.parameters()))


def test_an_interrupt_leaves_no_gradient_that_was_used() -> None:
    def make() -> tuple[Any, Any]:
        param: Any = torch.ones(3, requires_grad=True)
        opt = fastopt.torch.AdamW([param], lr=0.1)
        fastopt.torch.step_in_backward(opt)
        loss = param.sum()
        return (param, opt), lambda: loss.backward()

    taken = []
    for (param, opt), _ in at_every_point(make):
        taken.append(param.tolist() != [1.0] * 3)
        assert (param.grad is None) == taken[-1]
        assert opt.state[param].get("step", 0) == taken[-1]
    assert set(taken) == {False, True}


def test_other_optimizers_are_refused() -> None:
    opt: Any = torch.optim.SGD([torch.ones(1, requires_grad=True)])
    with pytest.raises(TypeError, match=r"^optimizer: expected one of fastopt\.torch, got SGD$"):
        fastopt.torch.step_in_backward(opt)


def go_through(*args: Any) -> Any:
    raise AssertionError("a parameter's step went through all of them")


class States(defaultdict[Any, Any]):
    __iter__ = keys = values = items = go_through


class Groups(list[Any]):
    __iter__ = go_through


def test_a_parameters_step_does_not_get_dearer_with_their_number() -> None:
    """It looks at its own state and group only."""
    params = [torch.ones(4, requires_grad=True) for _ in range(3)]
    opt = fastopt.torch.AdamW([{"params": [param]} for param in params])
    fastopt.torch.step_in_backward(opt)
    for _ in range(3):
        loss = torch.stack(params).sum()
        groups, states = opt.param_groups, States(dict, opt.state)
        opt.state, opt.param_groups = states, Groups(groups)
        loss.backward()
        opt.state, opt.param_groups = defaultdict(dict, dict.items(states)), groups
        opt.step()
    assert [int(opt.state[param]["step"]) for param in params] == [3] * 3


def test_sparse_gradients_and_groups_that_are_added() -> None:
    results = []
    for in_backward in (False, True):
        torch.manual_seed(0)
        table, head = torch.nn.Embedding(6, 3, sparse=True), torch.nn.Linear(3, 1)
        opt = fastopt.torch.Adagrad(table.parameters(), lr=0.1)
        if in_backward:
            fastopt.torch.step_in_backward(opt)
        opt.add_param_group({"params": head.parameters()})  # stepped by optimizer.step() as ever
        for batch in ([1, 1, 4], [2, 4, 4]):
            opt.zero_grad()
            head(table(torch.tensor(batch))).square().sum().backward()
            assert (table.weight.grad is None) == in_backward
            opt.step()
        results.append([table.weight, *head.parameters()])
    assert_equal(results[1], results[0])


PEAK = """
import sys, torch, fastopt.torch

def peak():  # in bytes; getrusage would begin with what the parent had when it started this program
    return 1024 * int(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0])

def train(layers, width):
    model = torch.nn.Sequential(*(torch.nn.Linear(width, width, bias=False) for _ in range(layers)))
    before = peak()
    opt = getattr(fastopt.torch, sys.argv[1])(model.parameters(), lr=1e-3)
    if sys.argv[2] == "in backward":
        fastopt.torch.step_in_backward(opt)
    for _ in range(3):
        opt.zero_grad()
        model(torch.ones(1, width)).sum().backward()
        opt.step()
    return peak() - before

torch.set_num_threads(1)
train(2, 8)  # what is loaded when first needed
print(train(160, 500))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(("name", "states"), [("SGD", 0), ("AdamW", 2)])
def test_peak_memory_drops_by_almost_the_size_of_the_gradients(name: str, states: int) -> None:
    peaks = [
        int(subprocess.run([sys.executable, "-c", PEAK, name, mode], capture_output=True, check=True).stdout)
        for mode in ("after backward", "in backward")
    ]
    gradients = 160 * 500 * 500 * 4
    assert peaks[0] - peaks[1] > 0.9 * gradients
    assert math.isclose(peaks[0], (1 + states) * gradients, rel_tol=0.2)


def test_groups_that_change_places_keep_their_options() -> None:
    params = [torch.zeros(1, requires_grad=True) for _ in range(2)]
    opt = fastopt.torch.SGD([{"params": [param], "lr": rate} for param, rate in zip(params, (1.0, 10.0), strict=True)])
    fastopt.torch.step_in_backward(opt)
    groups: list[Any] = opt.param_groups
    changes: list[Callable[[], None]] = [lambda: None, groups.reverse, lambda: groups.insert(0, groups.pop())]
    for change in changes:
        change()
        sum(params).backward()
        opt.step()
    assert [param.item() for param in params] == [-3.0, -30.0]


@pytest.mark.parametrize("odd", ["strided", "expanded gradient", "plain"])
def test_the_first_velocity_is_the_gradient_whatever_the_dampening(odd: str) -> None:
    """Also where nothing can stay bound between making the states and the first step."""
    found = []
    for in_backward in (False, True):
        tensor = torch.ones(4, dtype=torch.float64)
        param = (tensor[::2] if odd == "strided" else tensor[:2].clone()).requires_grad_()
        opt = fastopt.torch.SGD([param], lr=0.5, momentum=0.5, dampening=0.5)
        if in_backward:
            fastopt.torch.step_in_backward(opt)
        for _ in range(3):
            opt.zero_grad()
            gradient = torch.ones(1, dtype=torch.float64).expand(2) if "expanded" in odd else torch.ones_like(param)
            param.backward(gradient)
            opt.step()
        found.append(param.tolist())
    assert found[0] == found[1]
