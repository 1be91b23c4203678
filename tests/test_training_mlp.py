"""The hand-written backward pass against finite differences and against torch; what a step allocates."""

import tracemalloc

import numpy as np
import pytest

from fastopt.training.batches import Batch
from fastopt.training.losses import Loss, SoftmaxCrossEntropy, SquaredError
from fastopt.training.mlp import EVALUATION_ROWS, MLP

LOSSES: dict[str, Loss] = {"classification": SoftmaxCrossEntropy(), "regression": SquaredError(target_scale=3.0)}


def problem(task: str, rows: int, seed: int = 0) -> tuple[MLP, Batch]:
    outputs = 4 if task == "classification" else 1
    model = MLP([5, 7, 6, outputs], LOSSES[task], batch_size=rows, dtype="float64", seed=seed)
    random = np.random.default_rng(seed)
    for name, values in model.parameters.items():
        if name.endswith("bias"):  # zero at the start, where a wrong gradient could hide
            values[:] = random.normal(size=values.shape)
    targets = random.integers(0, outputs, rows) if task == "classification" else random.normal(size=rows)
    return model, Batch(random.normal(size=(rows, 5)), targets)


@pytest.mark.parametrize("task", LOSSES)
def test_gradients_are_the_slopes_of_the_loss(task: str) -> None:
    model, batch = problem(task, rows=9)
    model.forward_backward(batch)
    found = {name: gradient.copy() for name, gradient in model.gradients.items()}
    step = 1e-6
    for name, values in model.parameters.items():
        slopes = np.empty_like(values)
        for index in np.ndindex(values.shape):
            original = values[index]
            values[index] = original + step
            above = model.forward_backward(batch)
            values[index] = original - step
            below = model.forward_backward(batch)
            values[index] = original
            slopes[index] = (above - below) / (2 * step)
        np.testing.assert_allclose(found[name], slopes, rtol=1e-6, atol=1e-8)
        assert np.abs(slopes).max() > 1e-3, name


@pytest.mark.parametrize("task", LOSSES)
@pytest.mark.parametrize("rows", [9, 1])
def test_loss_and_gradients_agree_with_torch(task: str, rows: int) -> None:
    torch = pytest.importorskip("torch")
    model, batch = problem(task, rows)
    parameters = {name: torch.tensor(values, requires_grad=True) for name, values in model.parameters.items()}
    hidden = torch.tensor(batch.features)
    for layer in range(3):
        hidden = torch.relu(hidden) if layer else hidden
        hidden = torch.nn.functional.linear(
            hidden, parameters[f"layers.{layer}.weight"], parameters[f"layers.{layer}.bias"]
        )
    targets = torch.tensor(batch.targets)
    if task == "classification":
        expected = torch.nn.functional.cross_entropy(hidden, targets)
    else:
        expected = torch.nn.functional.mse_loss(hidden[:, 0], targets)
    expected.backward()
    assert model.forward_backward(batch) == pytest.approx(expected.item(), rel=1e-14)
    for name, gradient in model.gradients.items():
        np.testing.assert_allclose(gradient, parameters[name].grad.numpy(), rtol=1e-11, atol=1e-14)


def test_a_short_batch_uses_only_its_rows() -> None:
    model, batch = problem("classification", rows=9)
    model.forward_backward(batch)
    loss = model.forward_backward(Batch(batch.features[:4], batch.targets[:4]))
    short, _ = problem("classification", rows=4)
    for name, values in model.parameters.items():
        short.parameters[name][...] = values
    assert loss == pytest.approx(short.forward_backward(Batch(batch.features[:4], batch.targets[:4])), rel=1e-14)
    for name, gradient in model.gradients.items():
        np.testing.assert_allclose(gradient, short.gradients[name], rtol=1e-12)


def test_cross_entropy_of_huge_outputs_is_finite() -> None:
    outputs = np.array([[1e4, 0.0], [0.0, 1e4]], np.float32)
    with np.errstate(all="raise", under="ignore"):
        loss = SoftmaxCrossEntropy().to_gradient(outputs, np.array([0, 0]))
    assert loss == 5e3
    np.testing.assert_array_equal(outputs, [[0, 0], [-0.5, 0.5]])


def test_scores() -> None:
    logits = np.log(np.array([[0.5, 0.5], [0.25, 0.75]]))
    scores = SoftmaxCrossEntropy().scores(logits.copy(), np.array([0, 0]))
    assert scores == {"loss": pytest.approx(1.5 * np.log(2)), "accuracy": 0.5}
    scores = SquaredError(target_scale=10.0).scores(np.array([[1.0], [2.0]]), np.array([1.0, 4.0]))
    assert scores == {"loss": 2.0, "r2": pytest.approx(1 - 2 / 2.25), "rmse": pytest.approx(10 * 2**0.5)}


@pytest.mark.parametrize("loss", LOSSES.values())
def test_score_names_are_those_of_the_scores(loss: Loss) -> None:
    outputs, targets = np.zeros((2, 1)), np.zeros(2, np.int64)
    assert tuple(loss.scores(outputs, targets)) == loss.score_names


def test_prediction_in_blocks_is_that_of_the_rows() -> None:
    model, _ = problem("classification", rows=2)
    features = np.random.default_rng(0).normal(size=(EVALUATION_ROWS + 3, 5))
    whole = model.predict(features)
    assert whole.shape == (EVALUATION_ROWS + 3, 4)
    np.testing.assert_allclose(whole[EVALUATION_ROWS:], model.predict(features[EVALUATION_ROWS:]), rtol=1e-12)
    np.testing.assert_allclose(whole[:2], model.predict(features[:2]), rtol=1e-12)


def test_initial_weights_have_the_variance_of_he() -> None:
    model = MLP([400, 300, 2], SoftmaxCrossEntropy(), batch_size=1, dtype="float32", seed=0)
    weight = model.parameters["layers.0.weight"]
    assert weight.shape == (300, 400)
    assert weight.dtype == np.float32
    assert np.std(weight) == pytest.approx((2 / 400) ** 0.5, rel=0.01)
    assert not model.parameters["layers.0.bias"].any()
    same = MLP([400, 300, 2], SoftmaxCrossEntropy(), batch_size=1, dtype="float32", seed=0)
    other = MLP([400, 300, 2], SoftmaxCrossEntropy(), batch_size=1, dtype="float32", seed=1)
    np.testing.assert_array_equal(weight, same.parameters["layers.0.weight"])
    assert not np.array_equal(weight, other.parameters["layers.0.weight"])


def test_a_step_allocates_nothing_that_grows_with_the_network() -> None:
    model = MLP([256, 256, 256, 8], SoftmaxCrossEntropy(), batch_size=512, dtype="float32", seed=0)
    batch = Batch(np.ones((512, 256), np.float32), np.zeros(512, np.int64))
    model.forward_backward(batch)
    tracemalloc.start()
    try:
        model.forward_backward(batch)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100_000  # NumPy has buffers of 33 KB; a layer's outputs take 524 KB, its weights 262 KB
