"""The models of runs: predictions for new tables, and the perceptron as models of scikit-learn."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn.datasets import load_iris  # type: ignore[import-untyped]
from sklearn.exceptions import SkipTestWarning  # type: ignore[import-untyped]
from sklearn.model_selection import GridSearchCV, cross_val_score  # type: ignore[import-untyped]
from sklearn.utils.estimator_checks import check_estimator  # type: ignore[import-untyped]
from typer.testing import CliRunner

from fastopt import training
from fastopt.cli import app
from fastopt.training.checkpoint import Checkpoint
from fastopt.training.errors import TrainingError
from fastopt.training.job import Job
from fastopt.training.prediction import TrainedModel
from fastopt.training.session import CHECKPOINT
from fastopt.training.table_problem import TableProblem


def run(*arguments: Any, status: int = 0) -> str:
    result = CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "80"})
    assert result.exit_code == status, result.output
    return result.output


def people(rows: int, seed: int) -> pl.DataFrame:
    """Return a table in which leaving hangs on age, plan and town."""
    rng = np.random.default_rng(seed)
    age, plan = rng.integers(18, 80, rows), rng.choice(["free", "paid"], rows)
    town = rng.choice(["Ulm", "Bonn", "Rom"], rows)
    leaves = age / 40 + (plan == "free") + (town == "Rom") > 2
    shown = [None if rng.random() < 0.05 else int(number) for number in age]
    return pl.DataFrame(
        {
            "id": [f"p{i}" for i in range(rows)],
            "age": shown,
            "plan": plan,
            "town": town,
            "left": leaves,
            "paid": age * 2.5,
        }
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a table and two runs on it."""
    folder = tmp_path_factory.mktemp("trained")
    people(600, 0).write_csv(folder / "people.csv")
    data = ("train", "--data", folder / "people.csv", "--hidden=16", "--lr=0.01", "--epochs=20")
    run(*data, "--target=left", "--drop=paid", "--out", folder / "classes")
    run(*data, "--target=paid", "--drop=left", "--task=regression", "--out", folder / "numbers")
    return folder


def test_predictions_of_new_rows(trained: Path, tmp_path: Path) -> None:
    new = people(300, 1)
    model = training.load(trained / "classes")
    assert isinstance(model, TrainedModel)
    assert model.classes == ("false", "true")
    assert model.features == ("age", "plan", "town")
    assert repr(model) == "<TrainedModel of people.csv: 3 columns, 2 classes>"
    predicted = model.predict(new)
    truth = np.where(new["left"].to_numpy(), "true", "false")
    assert np.mean(predicted == truth) > 0.9
    chances = model.predict_proba(new)
    np.testing.assert_allclose(chances.sum(axis=1), 1)
    np.testing.assert_array_equal(np.array(model.classes)[chances.argmax(axis=1)], predicted)
    new.select("town", "age", "id", "plan").write_csv(tmp_path / "new.csv", separator=";")
    np.testing.assert_array_equal(model.predict(tmp_path / "new.csv"), predicted)
    np.testing.assert_array_equal(model.predict(str(tmp_path / "new.csv")), predicted)
    np.testing.assert_array_equal(model.predict(new.to_dict(as_series=False)), predicted)
    np.testing.assert_array_equal(model.predict(new[:1]), predicted[:1])


def test_the_model_of_a_run_scores_as_the_run_did(trained: Path) -> None:
    model = training.load(trained / "numbers")
    new = people(200, 2)
    predicted = model.predict(new)
    known = new["age"].is_not_null().to_numpy()
    assert predicted.dtype == np.float64
    assert np.abs(predicted - new["paid"].to_numpy())[known].mean() < 10
    with pytest.raises(TrainingError, match="knows no probabilities"):
        model.predict_proba(new)


def test_what_is_scored_and_predicts_is_where_parameters_are_used(tmp_path: Path) -> None:
    """Schedule-Free trains them in another place."""
    run("train", "--optimizer=schedulefreeadamw", "--epochs=2", "--out", tmp_path / "run")
    job = Job.resume(tmp_path / "run" / CHECKPOINT, {})
    assert isinstance(job.problem, TableProblem)
    test = job.problem.data.test
    trained_at = {name: values.copy() for name, values in job.problem.model.parameters.items()}
    scaling = job.problem.data.standardization
    predicted = training.load(tmp_path / "run").predict(test.features * scaling.scale + scaling.mean)
    accuracy = np.mean(predicted == np.array(job.problem.data.classes)[test.targets])
    assert accuracy == json.loads((tmp_path / "run" / "scores.json").read_text())["accuracy"]
    in_use = Checkpoint.load(tmp_path / "run" / CHECKPOINT).tensors
    assert any((in_use[f"in_use.{name}"] != values).any() for name, values in trained_at.items())
    job.evaluate()
    for name, values in job.problem.model.parameters.items():
        np.testing.assert_array_equal(values, trained_at[name])


def test_only_the_folder_is_needed(trained: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / CHECKPOINT).write_bytes((trained / "classes" / CHECKPOINT).read_bytes())
    new = people(50, 3)
    np.testing.assert_array_equal(training.load(alone).predict(new), training.load(trained / "classes").predict(new))


def test_the_command_writes_a_row_for_each(trained: Path, tmp_path: Path) -> None:
    new = people(40, 4)
    new.write_csv(tmp_path / "new.csv")
    arguments = ("predict", trained / "classes", "--data", tmp_path / "new.csv", "--out", tmp_path / "p.csv")
    output = run(*arguments, "--probabilities")
    assert "40 predictions are in" in output
    assert "right of the 40 whose left is known" in output
    table = pl.read_csv(tmp_path / "p.csv", infer_schema=False)
    assert table.columns == ["left", "probability of false", "probability of true"]
    model = training.load(trained / "classes")
    assert table["left"].to_list() == model.predict(new).tolist()
    np.testing.assert_array_equal(table["probability of true"].cast(float).to_numpy(), model.predict_proba(new)[:, 1])
    output = run("predict", trained / "numbers", "--data", tmp_path / "new.csv", "--out", tmp_path / "p.csv")
    assert "rmse " in output
    assert pl.read_csv(tmp_path / "p.csv").columns == ["paid"]


def test_what_is_not_as_in_the_training_is_told(trained: Path) -> None:
    model = training.load(trained / "classes")
    new = people(10, 5)
    with pytest.raises(TrainingError, match="2 of the 3 columns that the model needs are missing: age, town"):
        model.predict(new.select("plan"))
    with pytest.warns(UserWarning, match="columns that the model does not know are not used: height"):
        model.predict(new.with_columns(height=1))
    with pytest.warns(UserWarning, match="town: 10 of kinds that the training had not"):
        model.predict(new.with_columns(town=pl.lit("Oslo")))
    with pytest.raises(TrainingError, match=r"1 columns are not as they were .*\n  age: 10 of 10 cells are no numbers"):
        model.predict(new.with_columns(age=pl.lit("old")))
    numbers = training.load(trained / "numbers")
    with pytest.raises(TrainingError, match="3 of the 3 columns that the model needs are missing: age, plan, town"):
        numbers.predict(np.ones((3, 2)))


@pytest.mark.parametrize("kind", [pl.Float64, pl.String, pl.Null])
def test_rows_of_missing_cells_alone_and_no_rows(trained: Path, kind: Any) -> None:
    model = training.load(trained / "classes")
    frame = pl.DataFrame({name: pl.Series([None], dtype=kind) for name in model.features})
    assert len(model.predict(frame)) == 1
    assert model.predict(frame[:0]).shape == (0,)
    assert model.predict_proba(frame[:0]).shape == (0, 2)


def test_a_table_of_no_rows_makes_one_of_no_predictions(trained: Path, tmp_path: Path) -> None:
    people(0, 0).write_csv(tmp_path / "new.csv")
    for name in ("classes", "numbers"):
        out = tmp_path / "made" / "for it" / f"{name}.csv"
        output = run("predict", trained / name, "--data", tmp_path / "new.csv", "--out", out)
        assert output.splitlines()[-1].startswith("0 predictions are in")
        assert out.read_text(encoding="utf-8").count("\n") == 1


def test_errors_of_the_command_take_one_line(trained: Path, tmp_path: Path) -> None:
    people(10, 6).write_csv(tmp_path / "new.csv")
    new, out = tmp_path / "new.csv", tmp_path / "p.csv"
    for arguments, message in (
        ((tmp_path, "--data", new, "--out", out), "is no folder of a run"),
        ((trained / "classes", "--data", tmp_path / "none.csv", "--out", out), "no such file"),
        ((trained / "classes", "--data", new, "--out", new), "is the table itself"),
        ((trained / "classes", "--data", new, "--out", tmp_path), "cannot be written"),
        ((trained / "numbers", "--data", new, "--out", out, "--probabilities"), "knows no probabilities"),
    ):
        output = run("predict", *arguments, status=2)
        assert message in output
        assert output.count("\n") == 1
    assert not out.exists()


def test_runs_on_arrays_predict_arrays(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(200, 2, 3))
    np.savez(tmp_path / "t.npz", X=samples, y=np.where(samples[:, 0, 0] > 0, "up", "down"))
    run("train", "--data", tmp_path / "t.npz", "--epochs=10", "--out", tmp_path / "run")
    model = training.load(tmp_path / "run")
    assert model.features == tuple(map(str, range(6)))
    predicted = model.predict(samples)
    assert np.mean(predicted == np.where(samples[:, 0, 0] > 0, "up", "down")) > 0.9
    np.testing.assert_array_equal(model.predict(samples.reshape(200, 6)), predicted)
    np.savez(tmp_path / "new.npz", X=samples)
    np.testing.assert_array_equal(model.predict(tmp_path / "new.npz"), predicted)
    with pytest.raises(TrainingError, match=r"expected rows of 6 numbers, got float64 \(3, 5\)"):
        model.predict(np.ones((3, 5)))


def test_runs_of_texts_cannot_predict(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    (tmp_path / "t.txt").write_text("ab cd " * 500)
    run(
        "train", "--model=transformer", "--layers=1", "--width=32", "--context=16", "--epochs=1", "--lr=0.01",
        "--text", tmp_path / "t.txt", "--out", tmp_path / "run",
    )  # fmt: skip
    with pytest.raises(TrainingError, match="a run of the model transformer; only those of tables can predict"):
        training.load(tmp_path / "run")


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@pytest.mark.parametrize("kind", [training.Classifier, training.Regressor])
def test_scikit_learns_checks(kind: Any) -> None:
    assert issubclass(SkipTestWarning, UserWarning)
    check_estimator(kind())


def test_scikit_learns_tools() -> None:
    flowers, species = load_iris(return_X_y=True)
    model = training.Classifier(hidden=(16,), lr=0.02)
    assert cross_val_score(model, flowers, species, cv=3).mean() > 0.9
    search = GridSearchCV(model, {"hidden": [(4,), (16,)], "optimizer": ["adam", "sgd"]}, cv=3).fit(flowers, species)
    assert search.best_score_ > 0.9
    again = pickle.loads(pickle.dumps(search.best_estimator_))
    np.testing.assert_array_equal(again.predict_proba(flowers), search.best_estimator_.predict_proba(flowers))
    line = training.Regressor(hidden=(), lr=0.05).fit(flowers[:, :3], flowers[:, 3])
    assert line.score(flowers[:, :3], flowers[:, 3]) > 0.9


def test_parameters_that_make_no_sense_are_named() -> None:
    flowers, species = load_iris(return_X_y=True)
    with pytest.raises(TrainingError, match="--epochs: expected a whole number"):
        training.Classifier(epochs=0).fit(flowers, species)
    with pytest.raises(TrainingError, match="--optimizer: expected one of"):
        training.Regressor(optimizer="best").fit(flowers, species)
