"""The recommender: its gradients, what it learns, its data, and that it resumes to the same bits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trainings import trained

from fastopt import Rows
from fastopt.training import interactions
from fastopt.training.batches import Batch
from fastopt.training.errors import TrainingError
from fastopt.training.interactions import load_interactions
from fastopt.training.job import Job
from fastopt.training.loop import train
from fastopt.training.prediction import load
from fastopt.training.recipes import configure
from fastopt.training.recommender import Recommender
from fastopt.training.recommender_problem import RecommenderProblem, ranking
from fastopt.training.session import CHECKPOINT


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer that are made up."""
    for name, value in {"USERS": 300, "ITEMS": 400, "DRAWS": 30_000}.items():
        monkeypatch.setattr(interactions, name, value)


def test_gradients_are_differences() -> None:
    model = Recommender(7, 9, width=4, dtype="float64", seed=0)
    rng = np.random.default_rng(0)
    for values in model.parameters.values():
        values[...] = 0.5 * rng.standard_normal(values.shape)
    columns = [rng.integers(count, size=20) for count in (7, 9, 9)]  # of a few rows, so that they repeat
    batch = Batch(np.stack(columns, axis=1), np.zeros(20))
    model.forward_backward(batch)
    gradients = dict(model.gradients)
    assert gradients.keys() == model.parameters.keys()
    for name, values in model.parameters.items():
        found = gradients[name]
        if isinstance(found, Rows):
            found = np.zeros_like(values)
            np.add.at(found, gradients[name].indices, gradients[name].values)
        for place in np.ndindex(values.shape):
            before, losses = values[place], []
            for change in (1e-6, -1e-6):
                values[place] = before + change
                losses.append(model.forward_backward(batch))
            values[place] = before
            assert found[place] == pytest.approx((losses[0] - losses[1]) / 2e-6, abs=1e-8), name


@pytest.mark.usefixtures("small")
def test_it_learns_more_than_what_is_popular() -> None:
    job = Job(configure("recommender", {"epochs": 12, "batch_size": 256, "lr": 0.02}))
    with job.arithmetic():
        train(job.run, observe=lambda record: None, save=lambda: None, should_stop=lambda: False)
    found = job.assess()
    assert found.is_better
    assert found.scores["auc"] > found.scores["baseline"]["auc"] + 0.03
    assert found.scores["hit_rate"] > found.scores["baseline"]["hit_rate"]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("optimizer", ["adamw", "sparseadam", "adagrad", "momentum"])
def test_a_run_resumes_to_the_same_bits(tmp_path: Path, optimizer: str) -> None:
    settings: dict[str, Any] = {"epochs": 2, "batch_size": 2000, "optimizer": optimizer}
    whole, first = (Job(configure("recommender", settings)) for _ in range(2))
    with whole.arithmetic():
        train(whole.run, observe=lambda record: None, save=lambda: None, should_stop=lambda: False)
        train(first.run, observe=lambda record: None, save=lambda: None, should_stop=lambda: first.run.step == 9)
    first.checkpoint().save(tmp_path / CHECKPOINT)
    second = Job.resume(tmp_path / CHECKPOINT, {})
    assert second.run.step == 9
    with second.arithmetic():
        train(second.run, observe=lambda record: None, save=lambda: None, should_stop=lambda: False)
    for name, values in whole.run.model.parameters.items():
        np.testing.assert_array_equal(second.run.model.parameters[name], values, err_msg=name)
    with pytest.raises(TrainingError, match="a run of the model recommender; only those of tables can predict"):
        load(tmp_path)


@pytest.mark.usefixtures("small")
def test_batches_are_a_pure_function_of_the_step() -> None:
    problem = RecommenderProblem(configure("recommender", {"batch_size": 5000}))  # type: ignore[arg-type]
    every = [batch.features.copy() for batch, _ in zip(problem.batches.from_step(0), range(9), strict=False)]
    later = [batch.features.copy() for batch, _ in zip(problem.batches.from_step(4), range(5), strict=False)]
    for one, other in zip(every[4:], later, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(every[0][:, 2], every[1][:, 2])


def test_ranks() -> None:
    others = np.zeros((1, 100))
    assert ranking(others) == {"auc": 0.5, "hit_rate": 0.0}
    others[0, 0] = 1
    assert ranking(others) == {"auc": 1.0, "hit_rate": 1.0}
    others[0, 1:12] = 2
    assert ranking(others) == {"auc": pytest.approx(1 - 11 / 99), "hit_rate": 0.0}


def test_interactions_of_a_table(tmp_path: Path) -> None:
    path = tmp_path / "ratings.csv"
    rows = [f"{user},{'abcdefghij'[item]},{5}" for user in range(40) for item in range(user % 5, 10, 2)]
    path.write_text("\n".join(["user,item,rating", *rows, rows[0]]) + "\n")
    data = load_interactions(str(path), 0)
    assert (data.users, data.items) == (40, 10)
    assert len(data.train) + len(data.test) == len(rows)  # the one that is there twice counts once
    assert len(data.test) == round(0.1 * len(rows))
    course = trained("recommender", interactions=str(path), epochs=1, batch_size=50)
    assert np.isfinite(course.losses).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("who,item\n1,2\n", r"no column 'user'; the columns are who, item"),
        ("user,item\n1,2\n,3\n", r"1 rows have no user; fill or drop them"),
        ("user,item\n1,2\n2,3\n", r"needs at least 100 different interactions with 2 items or more, has 2 with 2"),
    ],
)
def test_tables_that_do_not_do(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "ratings.csv"
    path.write_text(content)
    with pytest.raises(TrainingError, match=message):
        load_interactions(str(path), 0)


def test_settings_that_do_not_do(tmp_path: Path) -> None:
    for settings, message in (
        ({"interactions": str(tmp_path / "there.csv")}, "--interactions: no such file"),
        ({"interactions": "movies"}, "--interactions: expected 'generated' or a file that ends in"),
        ({"optimizer": "lars"}, "--optimizer lars: steps no rows alone, as --model recommender needs"),
        ({"optimizer": "torch:adamw"}, "--optimizer torch:adamw needs a model in torch"),
    ):
        with pytest.raises(TrainingError, match=message):
            Job(configure("recommender", settings))
