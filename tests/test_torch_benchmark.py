"""The contestants that need torch, and whole training steps."""

import inspect
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch_cases import package_of  # noqa: E402

from fastopt.benchmark import trainings, whole, works  # noqa: E402
from fastopt.benchmark.models import MODELS  # noqa: E402
from fastopt.benchmark.rivals import Package  # noqa: E402
from fastopt.benchmark.runs import Entrant, Run, perform  # noqa: E402
from fastopt.benchmark.targets import TORCH  # noqa: E402
from fastopt.benchmark.tasks import ACTIONS, Method, Task, methods  # noqa: E402
from fastopt.training.config import ModelName  # noqa: E402

TASK = Task(methods()["adamw"], works.find("policy"))


pytestmark = pytest.mark.usefixtures("hasty")


def run_of(task: Task, *contestants: str) -> Run:
    return perform([Entrant(name, task) for name in contestants], 1e-9)


@pytest.mark.parametrize(("dtype", "action"), [("float64", "step"), *(("float32", action) for action in ACTIONS)])
@pytest.mark.parametrize("method", methods().values(), ids=methods())
def test_answers_on_tensors_are_right(method: Method, dtype: str, action: str) -> None:
    run = run_of(replace(TASK, method=method, dtype=dtype, action=action), "fastopt.torch", *TORCH)
    twin = getattr(torch.optim, method.optimizer, None)
    if twin is not None and not method.options.keys() <= inspect.signature(twin).parameters.keys():
        twin = None
    fused = twin is not None and "fused" in inspect.signature(twin).parameters
    absent = {*TORCH} if twin is None else set() if fused else {"torch fused"}
    assert {absence.entrant.contestant for absence in run.absences} == absent
    assert all(absence.reason.startswith("has no ") for absence in run.absences)


@pytest.mark.parametrize("method", methods().values(), ids=methods())
def test_bfloat16_answers_are_right(method: Method) -> None:
    if method.optimizer == "Adafactor":
        pytest.skip("its least variance is by default that of the dtype: no answer in float64 is right")
    run = run_of(replace(TASK, method=method, dtype="bfloat16"), "floor", "fastopt.torch")
    assert not run.absences


@pytest.mark.parametrize("name", methods())
def test_packages_that_optimizers_are_known_from_give_the_same_answers(name: str) -> None:
    task = replace(TASK, method=methods()[name])
    known = Package.classes.get(task.method.optimizer)
    if known is not None:
        package_of(known[0])
    run = run_of(task, "fastopt.torch", "its package")
    reasons = [absence.reason for absence in run.absences]
    assert reasons == ([] if known else [f"has no {task.method} in float32 on the CPU"])


def test_contestants_have_tensors_of_the_dtype_asked_for() -> None:
    from fastopt.benchmark.contestants import Contestant
    from fastopt.benchmark.field import CONTESTANTS
    from fastopt.benchmark.tasks import Arrays

    for name in ("fastopt.torch", *TORCH):
        task = replace(TASK, dtype="bfloat16", action="clip+zero")
        contestant: Contestant = CONTESTANTS[name](task, Arrays.of(task))
        params = contestant.params  # type: ignore[attr-defined]
        assert {param.dtype for param in params} == {torch.bfloat16}
        contestant.step()
        assert not any(param.grad.any() for param in params)


def test_models_have_the_shapes_they_say() -> None:
    tensors = {name: [tuple(p.shape) for p in make()[0].parameters()] for name, make in MODELS.items()}
    assert sorted(tensors["policy"]) == sorted(works.find("policy").shapes)
    gpt2 = works.find("gpt2-small")
    assert len(tensors["GPT-2 small"]) == len(gpt2.shapes)
    assert sum(np.prod(shape) for shape in tensors["GPT-2 small"]) == gpt2.elements


@pytest.mark.parametrize("model", ["policy", "perceptron", "recommender"])
def test_training_steps_are_timed_with_every_optimizer(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole, "peak_memory", lambda *arguments: 7)
    steps = whole.whole_steps(model, 1, 1e-9)
    assert [step.optimizer for step in steps] == list(whole.optimizers_of(model))
    assert ("torch SparseAdam" in whole.optimizers_of(model)) == (model == "recommender")
    for step in steps:
        assert (step.model, step.peak_memory) == (model, 7)
        assert 0 < step.share < 1
        assert (step.seconds > 0).all()


def test_optimizers_that_train_differently_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(whole.OPTIMIZERS, "torch fused", lambda module: lambda: None)
    with pytest.raises(AssertionError, match="policy: the losses differ"):
        whole.whole_steps("policy", 1, 1e-9)


@pytest.mark.parametrize("model", ["mlp", "transformer"])
def test_trainings_take_the_same_course_with_every_optimizer(model: ModelName, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(trainings.STEPS, model, 8)
    found = trainings.trainings(model)
    assert [training.optimizer for training in found] == list(trainings.OPTIMIZERS)
    for training in found:
        assert np.allclose(training.losses, found[0].losses, rtol=1e-4)
        assert (np.diff(training.seconds) > 0).all()
        assert len(training.losses) == 8
        assert 0 < training.share < 1


def test_smoothing_starts_at_the_first_loss_and_follows() -> None:
    assert np.allclose(list(trainings.smoothed([3.0, 3.0, 3.0])), 3)
    assert np.allclose(list(trainings.smoothed([1.0, 2.0])), [1, (0.98 * 0.02 + 0.02 * 2) / (1 - 0.98**2)])


@pytest.mark.slow
def test_peak_memory_is_at_least_that_of_the_arrays() -> None:
    found = whole.peak_memory("recommender", "torch fused", 1)
    if found is None:
        pytest.skip("this system does not tell")
    assert 4 * 500_000 * 16 * 4 <= found < 2**30  # parameters, gradients, two states
