"""The same numbers, messages, signatures and checkpoints as torch.optim, for everything that torch has."""

import inspect
import math
from typing import Any

import numpy as np
import pytest
from arrays import nonzero, unchanged
from cases import MAKERS, Case

import fastopt
from fastopt import optimizers

torch = pytest.importorskip("torch")

from torch_cases import NAMES, SHARED, STEPS, OnArrays, Twins, theirs, torch_options  # noqa: E402

LAYOUTS = ("contiguous", "aligned to elements", "scalar")

ULPS = 10
"""After so many steps, in the unit of the largest number on the way."""

shared_case = pytest.mark.parametrize("case", SHARED)


pytestmark = pytest.mark.usefixtures("numbers_in_double_precision")


def signature_of(name: str) -> inspect.Signature:
    return inspect.signature(theirs(name))


def twins_on_arrays(case: Case, dtype: str) -> Twins:
    return Twins(case, LAYOUTS, getattr(torch, dtype), on_arrays=True)


# ---- numbers ----


@shared_case
def test_same_numbers(case: Case, dtype: str) -> None:
    twins = twins_on_arrays(case, dtype)
    for step in range(STEPS):
        twins.step(missing=[1] if step % 7 == 3 else [])
    twins.assert_close(ulps=ULPS)


@pytest.mark.parametrize("max_norm", [0.0, 0.5, 1e6, math.inf])
def test_same_clipping_by_norm(max_norm: float, dtype: str, rng: np.random.Generator) -> None:
    grads = [nonzero(rng, shape, dtype) for shape in ((7, 5), (33,))]
    tensors = [torch.zeros(grad.shape, dtype=getattr(torch, dtype), requires_grad=True) for grad in grads]
    for tensor, grad in zip(tensors, grads, strict=True):
        tensor.grad = torch.tensor(grad)
    norm = float(torch.nn.utils.clip_grad_norm_(tensors, max_norm))
    assert fastopt.clip_grad_norm(grads, max_norm) == pytest.approx(norm, rel=8 * float(np.finfo(dtype).eps))
    for tensor, grad in zip(tensors, grads, strict=True):
        np.testing.assert_allclose(grad, tensor.grad.numpy(), rtol=8 * float(np.finfo(dtype).eps))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("max_norm", [1.0, math.inf])
def test_same_clipping_of_nonfinite_gradients(bad: float, max_norm: float, dtype: str) -> None:
    grad = np.array([1.0, bad, -2.0], dtype)
    tensor = torch.zeros(3, dtype=getattr(torch, dtype), requires_grad=True)
    tensor.grad = torch.tensor(grad)
    norm = float(torch.nn.utils.clip_grad_norm_([tensor], max_norm))
    np.testing.assert_equal(fastopt.clip_grad_norm(grad, max_norm), norm)
    np.testing.assert_array_equal(grad, tensor.grad.numpy())


def test_same_clipping_by_value(dtype: str, rng: np.random.Generator) -> None:
    grad = np.concatenate([nonzero(rng, 50, dtype), np.array([np.nan, np.inf, -np.inf, -0.0], dtype)])
    tensor = torch.zeros(grad.shape, dtype=getattr(torch, dtype), requires_grad=True)
    tensor.grad = torch.tensor(grad)
    torch.nn.utils.clip_grad_value_([tensor], 0.7)
    fastopt.clip_grad_value(grad, 0.7)
    np.testing.assert_array_equal(grad, tensor.grad.numpy())


# ---- arguments and messages ----


@pytest.mark.parametrize("name", NAMES)
def test_same_arguments_in_the_same_order_with_the_same_defaults(name: str) -> None:
    """Ours has all that are not about how torch runs the step; what is ours alone is keyword-only."""
    about_execution = {"foreach", "fused", "capturable", "differentiable"}
    theirs = {key: value for key, value in signature_of(name).parameters.items() if key not in about_execution}
    ours = inspect.signature(optimizers.registry()[name]).parameters
    positional = [key for key, value in ours.items() if value.kind is value.POSITIONAL_OR_KEYWORD]
    assert positional == list(theirs)[: len(positional)]
    assert theirs.keys() <= ours.keys()
    for key, value in theirs.items():
        assert ours[key].default == value.default, key


def message_of(maker: Any, params: Any, options: dict[str, Any]) -> str:
    with pytest.raises(ValueError, match=r".") as caught:
        maker(params, **options)
    return str(caught.value)


OUT_OF_BOUNDS = [
    *(("SGD", {option: -1}) for option in ("lr", "momentum", "weight_decay")),
    *(("SGD", {"nesterov": True, **more}) for more in ({}, {"momentum": 0.9, "dampening": 0.1}, {"dampening": 0.1})),
    *(("Adagrad", {option: -0.5}) for option in ("lr", "lr_decay", "weight_decay", "initial_accumulator_value", "eps")),
    *(("RMSprop", {option: -1e-9}) for option in ("lr", "alpha", "eps", "weight_decay", "momentum")),
    *((name, {option: -1}) for name in ("Adam", "AdamW") for option in ("lr", "eps", "weight_decay")),
    *((name, {"betas": betas}) for name in ("Adam", "AdamW") for betas in ((1.0, 0.9), (0.9, 1.0), (-0.1, 2.0))),
    *((name, {option: math.nan}) for name in ("Adam", "AdamW") for option in ("lr", "weight_decay")),
    *((name, {option: -1}) for name in ("NAdam", "RAdam", "Adamax") for option in ("lr", "eps", "weight_decay")),
    *((name, {"betas": (0.9, 1.0)}) for name in ("NAdam", "RAdam", "Adamax")),
    ("NAdam", {"momentum_decay": -1}),
    *(("Adadelta", {option: -1}) for option in ("lr", "rho", "eps", "weight_decay")),
    ("Adadelta", {"rho": 1.1}),
    *(("ASGD", {option: -1}) for option in ("lr", "weight_decay")),
    ("Rprop", {"lr": -1}),
    *(("Rprop", {"etas": etas}) for etas in ((0.0, 1.2), (0.5, 1.0), (1.2, 0.5))),
]


@pytest.mark.parametrize(("name", "options"), OUT_OF_BOUNDS)
def test_same_message(name: str, options: dict[str, Any]) -> None:
    theirs = message_of(getattr(torch.optim, name), [torch.zeros(1)], options)
    assert message_of(MAKERS[name], [np.zeros(1)], options) == theirs


def test_same_message_for_no_parameters() -> None:
    assert message_of(MAKERS["SGD"], [], {}) == message_of(torch.optim.SGD, [], {})


# ---- checkpoints ----


@shared_case
def test_a_checkpoint_of_torch_goes_on_here(case: Case, dtype: str) -> None:
    twins = twins_on_arrays(case, dtype)
    for _ in range(3):
        twins.step()
    for param, twin in zip(twins.params, twins.twins, strict=True):
        param.data.copy_(twin)
    twins.ours = OnArrays(case, twins.params)
    twins.ours.opt.load_state_dict({**twins.theirs.state_dict(), "step_count": 3})
    schedules = {name: value for name, value in case.options.items() if name in twins.ours.opt.defaults}
    twins.ours.opt.param_groups[0].update(schedules)  # torch's numbers have taken their places
    for step in range(5):
        twins.step(missing=[2] if step == 1 else [])
        twins.assert_close(f"step {step} from the checkpoint:", ULPS)


@shared_case
def test_a_checkpoint_from_here_goes_on_in_torch(case: Case, dtype: str) -> None:
    twins = twins_on_arrays(case, dtype)
    for step in range(3):
        twins.step(missing=[2] if step == 1 else [])
    checkpoint = twins.ours.opt.state_dict()
    checkpoint["state"] = dict(zip(checkpoint["state"], twins.ours.state.values(), strict=True))
    checkpoint["param_groups"][0].update(torch_options(case, 3))
    for param, twin in zip(twins.params, twins.twins, strict=True):
        twin.data.copy_(param)
    twins.theirs = theirs(case.optimizer)(twins.twins)
    twins.theirs.load_state_dict(checkpoint)
    for state, saved in zip(twins.theirs.state.values(), checkpoint["state"].values(), strict=True):
        state.update({name: saved[name] for name in case.cls.method.numbers})  # torch casts to the parameter's dtype
    for step in range(5):
        twins.step(missing=[0] if step == 1 else [])
        twins.assert_close(f"step {step} from the checkpoint:", ULPS)


def test_a_checkpoint_of_torch_brings_its_number_of_steps_along() -> None:
    twins = twins_on_arrays(Case("Adam", "adam", {"lr": 0.1}), "float64")
    for _ in range(4):
        twins.step()
    fresh = fastopt.Adam([np.zeros(param.shape) for param in twins.params])
    fresh.load_state_dict(twins.theirs.state_dict())
    assert fresh.step_count == 4


def test_a_checkpoint_of_another_optimizer_of_torch_is_refused() -> None:
    theirs = torch.optim.Muon([torch.zeros(3, 3, requires_grad=True)])
    opt = fastopt.Adam(np.zeros(3))
    with unchanged(opt), pytest.raises(ValueError, match="group 0 is not of Adam"):
        opt.load_state_dict(theirs.state_dict())


# ---- tensors are no arrays ----


def test_tensors_are_refused_by_name() -> None:
    with pytest.raises(TypeError, match=r"^params\['w'\]: expected a NumPy array, got Tensor"):
        fastopt.SGD({"w": torch.zeros(3)})
    opt = fastopt.SGD({"w": np.zeros(3)})
    with (
        unchanged(opt),
        pytest.raises(TypeError, match=r"^gradient of params\['w'\]: expected a NumPy array, got Tensor"),
    ):
        opt.step({"w": torch.zeros(3)})


def test_the_memory_of_a_tensor_is_stepped_in_place() -> None:
    tensor = torch.ones(3, dtype=torch.float64)
    fastopt.SGD(tensor.numpy(), lr=1.0).step(np.ones(3))
    assert tensor.tolist() == [0.0] * 3
