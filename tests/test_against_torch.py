"""The same numbers, messages, signatures and checkpoints as torch.optim, for everything that torch has."""

import inspect
import math
from typing import Any

import numpy as np
import pytest
from arrays import Array, assert_close, joined, nonzero, unchanged
from cases import CASES, MAKERS, Case

import fastopt
from fastopt import optimizers

torch = pytest.importorskip("torch")

TWINS = [name for name, cls in optimizers.registry().items() if vars(cls.method).get("twin")]
"""The optimizers that torch has too."""

STEPS = 50

ULPS = {"float32": 10, "float64": 10}
"""After so many steps, in the unit of the largest number on the way."""


def signature_of(name: str) -> inspect.Signature:
    return inspect.signature(getattr(torch.optim, name))


def torch_options(case: Case, step: int = 0) -> dict[str, Any]:
    """The options of a case that torch has too, schedules evaluated."""
    known = signature_of(case.optimizer).parameters
    return {name: value for name, value in case.options_at(step).items() if name in known}


def torch_has(case: Case) -> bool:
    if case.optimizer not in TWINS:
        return False
    known = {*signature_of(case.optimizer).parameters, "clip_norm", "clip_value"}
    return case.options.keys() <= known


SHARED = [case for case in CASES if torch_has(case)]
shared_case = pytest.mark.parametrize("case", SHARED)


class Pair:
    """The same parameters with torch's optimizer and with ours."""

    def __init__(self, case: Case, dtype: str, rng: np.random.Generator) -> None:
        self.case, self.dtype, self.rng = case, dtype, rng
        self.shapes = [(7, 5), (33,), ()]
        self.arrays: list[Array] = [np.asarray(nonzero(rng, shape, dtype)) for shape in self.shapes]
        self.tensors = [torch.tensor(array, requires_grad=True) for array in self.arrays]
        self.ours = case.make(self.arrays)
        self.torchs = getattr(torch.optim, case.optimizer)(self.tensors, **torch_options(case))
        self.largest = np.maximum(np.abs(joined(self.arrays)), 1.0)

    def step(self, missing: int | None = None) -> None:
        grads: list[Any] = [np.asarray(nonzero(self.rng, shape, self.dtype)) for shape in self.shapes]
        if missing is not None:
            grads[missing] = None
        for tensor, grad in zip(self.tensors, grads, strict=True):
            tensor.grad = None if grad is None else torch.tensor(grad)
        clip_norm, clip_value = self.case.clipping_at(self.ours.step_count)
        if math.isfinite(clip_norm):
            torch.nn.utils.clip_grad_norm_(self.tensors, clip_norm)
        if math.isfinite(clip_value):
            torch.nn.utils.clip_grad_value_(self.tensors, clip_value)
        self.torchs.param_groups[0].update(torch_options(self.case, self.ours.step_count))
        self.torchs.step()
        self.ours.step(grads)
        self.largest = np.maximum(self.largest, np.abs(self.torch_values()))

    def torch_values(self) -> Array:
        return joined([tensor.detach().numpy() for tensor in self.tensors])

    def assert_same(self, what: str = "parameter") -> None:
        assert_close(joined(self.arrays), self.torch_values(), self.largest, self.dtype, what, ulps=ULPS[self.dtype])


# ---- numbers ----


@shared_case
def test_same_numbers(case: Case, dtype: str, rng: np.random.Generator) -> None:
    pair = Pair(case, dtype, rng)
    for step in range(STEPS):
        pair.step(missing=1 if step % 7 == 3 else None)
    pair.assert_same()
    ours, theirs = pair.ours.state_dict()["state"], pair.torchs.state_dict()["state"]
    assert ours.keys() == theirs.keys()
    for name in theirs.get(0, ()):
        expected = joined([theirs[index][name].numpy() for index in theirs])
        actual = joined([np.asarray(ours[index][name]) for index in theirs])
        assert_close(actual, expected, float(np.abs(expected).max()), dtype, name, ulps=ULPS[dtype])


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


@pytest.mark.parametrize("name", TWINS)
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
]


@pytest.mark.parametrize(("name", "options"), OUT_OF_BOUNDS)
def test_same_message(name: str, options: dict[str, Any]) -> None:
    theirs = message_of(getattr(torch.optim, name), [torch.zeros(1)], options)
    assert message_of(MAKERS[name], [np.zeros(1)], options) == theirs


def test_same_message_for_no_parameters() -> None:
    assert message_of(MAKERS["SGD"], [], {}) == message_of(torch.optim.SGD, [], {})


# ---- checkpoints ----


@shared_case
def test_a_checkpoint_of_torch_goes_on_here(case: Case, dtype: str, rng: np.random.Generator) -> None:
    pair = Pair(case, dtype, rng)
    for _ in range(3):
        pair.step()
    checkpoint = pair.torchs.state_dict()
    for array, tensor in zip(pair.arrays, pair.tensors, strict=True):
        array[...] = tensor.detach().numpy()
    pair.ours = case.make(pair.arrays)
    pair.ours.load_state_dict({**checkpoint, "step_count": 3})
    schedules = {name: value for name, value in case.options.items() if name in pair.ours.defaults}
    pair.ours.param_groups[0].update(schedules)  # torch's numbers have taken their places
    for step in range(5):
        pair.step(missing=2 if step == 1 else None)
        pair.assert_same(f"step {step} from the checkpoint: parameter")


@shared_case
def test_a_checkpoint_from_here_goes_on_in_torch(case: Case, dtype: str, rng: np.random.Generator) -> None:
    pair = Pair(case, dtype, rng)
    for step in range(3):
        pair.step(missing=2 if step == 1 else None)
    checkpoint = pair.ours.state_dict()
    for state in checkpoint["state"].values():
        state.update({name: torch.tensor(value) for name, value in state.items()})
    checkpoint["param_groups"][0].update(torch_options(case, 3))
    for array, tensor in zip(pair.arrays, pair.tensors, strict=True):
        tensor.data.copy_(torch.tensor(array))
    pair.torchs = getattr(torch.optim, case.optimizer)(pair.tensors)
    pair.torchs.load_state_dict(checkpoint)
    for step in range(5):
        pair.step(missing=0 if step == 1 else None)
        pair.assert_same(f"step {step} from the checkpoint: parameter")


def test_a_checkpoint_of_torch_brings_its_number_of_steps_along(rng: np.random.Generator) -> None:
    pair = Pair(Case("Adam", "adam", {"lr": 0.1}), "float64", rng)
    for _ in range(4):
        pair.step()
    fresh = fastopt.Adam([np.zeros(shape) for shape in pair.shapes])
    fresh.load_state_dict(pair.torchs.state_dict())
    assert fresh.step_count == 4


def test_a_checkpoint_of_another_optimizer_of_torch_is_refused() -> None:
    theirs = torch.optim.NAdam([torch.zeros(3, requires_grad=True)])
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
