"""Ctrl-C at any moment of a step with tensors: see test_interrupts.py."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from interrupts import at_every_point  # noqa: E402
from test_interrupts import STEPS, in_another_thread  # noqa: E402

import fastopt.torch  # noqa: E402


def plain() -> Any:
    return torch.ones(2)


def strided() -> Any:
    return torch.ones(4)[::2]


def complex_numbers() -> Any:
    return torch.ones(2, dtype=torch.complex64)


KINDS = [
    ("Adam", {}, plain, 0),
    ("Adam", {"lr": fastopt.schedules.linear(0.1, 0.0, total=9), "clip_norm": 1.0}, plain, 1),
    ("SGD", {"momentum": 0.5, "dampening": 0.5, "nonfinite": "skip", "zero_grad_in_step": True}, plain, 0),
    ("SGD", {"momentum": 0.5, "dampening": 0.5}, strided, 0),
    ("Adam", {}, complex_numbers, 1),
    ("Adagrad", {"sparse": True}, plain, 1),
]


class Training:
    """One parameter's, with gradients that are made before they are stepped with."""

    def __init__(self, name: str, options: dict[str, Any], tensor: Callable[[], Any], in_backward: bool) -> None:
        self.sparse = "sparse" in options
        self.param = torch.nn.Parameter(tensor())
        given = {option: value for option, value in options.items() if option != "sparse"}
        self.opt = getattr(fastopt.torch, name)([self.param], **given)
        self.in_backward = in_backward
        self.steps = 0
        if in_backward:
            fastopt.torch.step_in_backward(self.opt)

    def prepared(self) -> Callable[[], Any]:
        """What is a step now."""
        gradient = torch.tensor([1.0, -2.0], dtype=self.param.dtype) * (self.steps + 1)
        if self.in_backward:
            loss = (self.param * gradient).sum()
            return lambda: loss.backward()
        self.param.grad = gradient.to_sparse() if self.sparse else gradient
        return lambda: self.opt.step()

    def go_on(self, steps: int) -> bool:
        while self.steps < steps:
            self.prepared()()
            self.steps += 1
        return True

    def found(self) -> Any:
        states = self.opt.state.get(self.param, {})
        return self.param.tolist(), {name: state.tolist() for name, state in states.items()}


def check_interrupts(kind: Any, in_backward: bool) -> None:
    name, options, tensor, begun = kind

    def after(steps: int) -> Training:
        training = Training(name, options, tensor, in_backward)
        training.go_on(steps)
        return training

    taken = {str(after(steps).param.tolist()): steps for steps in (begun, begun + 1)}
    expected = after(begun + 1 + STEPS).found()

    def make() -> tuple[Any, Callable[[], Any]]:
        training = after(begun)
        return training, training.prepared()

    for training, interrupt in at_every_point(make):
        assert torch.is_grad_enabled()
        training.steps = taken[str(training.param.tolist())]
        if in_backward:
            assert (training.param.grad is None) == (training.steps == begun + 1)
            training.param.grad = None
        else:
            assert training.opt.step_count == training.steps
        in_another_thread(partial(training.go_on, begun + 1 + STEPS))
        assert training.found() == expected
        del interrupt


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind[0]} {kind[2].__name__}")
def test_an_interrupt_at_any_point(kind: Any) -> None:
    check_interrupts(kind, in_backward=False)


@pytest.mark.parametrize("kind", [KINDS[0], KINDS[3]], ids=lambda kind: f"{kind[0]} {kind[2].__name__}")
def test_an_interrupt_at_any_point_of_a_step_in_the_backward_pass(kind: Any) -> None:
    check_interrupts(kind, in_backward=True)


def test_an_interrupted_load_changes_nothing_or_all() -> None:
    def training(steps: int) -> Training:
        made = Training("Adam", {}, plain, False)
        made.go_on(steps)
        return made

    snapshot = training(3).opt.state_dict()
    untouched, loaded = training(1), training(1)
    loaded.opt.load_state_dict(snapshot)

    def found(training: Training) -> Any:
        return training.found(), training.opt.step_count

    def make() -> tuple[Any, Callable[[], Any]]:
        made = training(1)
        return made, lambda: made.opt.load_state_dict(snapshot)

    for made, _ in at_every_point(make):
        assert found(made) in (found(untouched), found(loaded))
