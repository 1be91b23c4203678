"""Works, methods, tasks and the textbook's formulas."""

import numpy as np
import pytest
import reference

from fastopt import _core, optimizers
from fastopt.benchmark import textbook, works
from fastopt.benchmark.machine import level_of
from fastopt.benchmark.tasks import ACTIONS, Arrays, Method, Task, methods


@pytest.mark.parametrize(
    ("name", "tensors", "elements"),
    [
        ("policy", 12, 9_797),
        ("resnet50", 161, 25_557_032),
        ("bert-base", 199, 109_482_240),
        ("gpt2-small", 148, 124_439_808),
        ("64M", 1, 64_000_000),
        ("1000x1K", 1000, 1_000_000),
        ("7x3", 7, 21),
        ("316", 1, 316),
    ],
)
def test_works_have_the_tensors_and_parameters_of_their_models(name: str, tensors: int, elements: int) -> None:
    work = works.find(name)
    assert len(work.shapes) == tensors
    assert work.elements == elements


def test_a_policy_has_tensors_of_at_most_64_by_64() -> None:
    assert max(works.find("policy").shapes) == (64, 64)


@pytest.mark.parametrize("name", ["", "0", "x3", "3x", "1k", "gpt3", "-5", "1.5M", "0x5"])
def test_other_names_of_works_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"got '{name}'"):
        works.find(name)


def test_there_is_a_method_for_every_rule() -> None:
    floors = {name for name in _core.RULES if name.startswith("floor")}
    # Signum without momentum, which is not switched on but off, its streams being those of sgd; and Adafactor's rule
    # for matrices, which is the shapes' choice.
    without = {"signsgd", "adafactor"}
    assert {method.rule for method in methods().values()} == _core.RULES.keys() - floors - without


def test_there_is_a_floor_for_every_number_of_states() -> None:
    assert {f"floor{method.states((2, 2))}" for method in methods().values()} <= _core.RULES.keys()


def test_the_textbook_is_of_optimizers_that_there_are() -> None:
    assert textbook.STEPS.keys() <= optimizers.registry().keys()


IN_THE_TEXTBOOK = {name: method for name, method in methods().items() if method.optimizer in textbook.STEPS}


@pytest.mark.parametrize("method", IN_THE_TEXTBOOK.values(), ids=IN_THE_TEXTBOOK)
def test_the_textbook_gives_the_oracles_numbers(method: Method) -> None:
    rng = np.random.default_rng(5)
    p, g = rng.normal(size=50), rng.normal(size=50)
    expected, expected_state = p.copy(), dict[str, reference.Array]()
    state: textbook.State = {}
    for step in range(1, 4):
        expected, expected_state = reference.step(method.rule, expected, g, expected_state, step, method.all_options)
        textbook.STEPS[method.optimizer](p, g, state, step, method.all_options)
    assert np.allclose(p, expected, rtol=1e-13, atol=1e-15)


def test_the_textbook_clips_as_the_oracle() -> None:
    grads = [np.array([3.0, 0.0]), np.array([4.0])]
    textbook.clip_by_norm(grads, 1.0)
    coefficient = reference.clip_coefficient(5.0, 1.0)
    assert np.concatenate(grads).tolist() == [3 * coefficient, 0, 4 * coefficient]
    textbook.clip_by_norm(grads, 2.0)
    assert np.concatenate(grads).tolist() == [3 * coefficient, 0, 4 * coefficient]


def test_bytes_of_a_step_are_those_that_have_to_move() -> None:
    adamw = methods()["adamw"]
    task = Task(adamw, works.find("1M"))
    assert task.bytes == 28_000_000  # p, g, m, v read; p, m, v written
    assert task.footprint == 16_000_000
    assert Task(methods()["sgd"], works.find("1M"), "float64").bytes == 24_000_000
    assert Task(adamw, works.find("1M"), "bfloat16").bytes == 14_000_000


@pytest.mark.parametrize("action", ACTIONS)
def test_tasks_survive_json(action: str) -> None:
    task = Task(methods()["rmsprop-centered-momentum"], works.find("3x20K"), "float64", action, 3, True)
    assert Task.from_json(task.to_json()) == task


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_arrays_are_the_same_every_time_and_exact_in_their_dtype(dtype: str) -> None:
    task = Task(methods()["sgd"], works.find("policy"), dtype)
    first, second = Arrays.of(task), Arrays.of(task)
    for one, other, shape in zip(
        first.params + first.grads, second.params + second.grads, task.work.shapes * 2, strict=True
    ):
        assert (one == other).all()
        assert one.shape == shape
        assert one.dtype == ("float64" if dtype == "float64" else "float32")
        if dtype == "bfloat16":
            assert not (one.view(np.uint32) & 0xFFFF).any()


CACHES = {"L1": 100, "L2": 1000, "L3": 10_000}


@pytest.mark.parametrize(
    ("size", "level"),
    [(1, "L1"), (100, "L1"), (101, "L2"), (10_000, "L3"), (10_001, "L3 and memory"), (40_000, "memory")],
)
def test_levels_of_memory(size: int, level: str) -> None:
    assert level_of(size, CACHES) == level
    assert level_of(size, {}) == ""
