"""What optimizers reach: the search for rates, trainings at them, fewer bits."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from fastopt import Rows, optimizers
from fastopt.benchmark import plan, quality
from fastopt.benchmark.quality import STORAGES, assembled, by_default, next_rate, search, storage, trial
from fastopt.benchmark.records import PLAIN, SEARCH_SEED, Quality
from fastopt.cli import app

runner = CliRunner()


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials of some tens of steps, and few of them."""
    less: dict[str, dict[str, Any]] = {
        "digits": {"epochs": 1, "hidden": (16,), "batch_size": 64},
        "characters": {"layers": 1, "width": 32, "context": 16, "batch_size": 16, "epochs": 1},
        "interactions": {"width": 32, "epochs": 1, "batch_size": 2_000},
    }
    for name, settings in less.items():
        monkeypatch.setitem(quality.PROBLEMS, name, quality.PROBLEMS[name]._replace(settings=settings))
    for name, value in {"TRIES": 3, "SEEDS": (1, 2), "STORAGE_SEEDS": (1,), "LEARNED": 4000, "HELD_OUT": 400}.items():
        monkeypatch.setattr(quality, name, value)
    quality.passage.cache_clear()
    monkeypatch.setattr("fastopt.training.interactions.DRAWS", 20_000)


@pytest.mark.parametrize(
    ("tried", "expected"),
    [
        ({0.1: 2.0}, 1.0),
        ({0.1: math.inf}, 0.01),  # it diverged
        ({0.1: 2.0, 1.0: 1.0}, 10.0),
        ({0.1: 2.0, 1.0: 3.0}, 0.01),
        ({0.1: 2.0, 1.0: math.inf}, 0.01),
        ({0.04: 3.0, 0.1: 2.0, 1.0: 3.0}, 0.1 * math.sqrt(10)),
        ({0.01: 3.0, 0.1: 2.0, 0.4: 2.5, 1.0: 3.0}, 0.1 * math.sqrt(0.1)),
        ({0.1: math.inf, 0.01: math.inf}, 0.001),
    ],
)
def test_the_search_goes_to_where_losses_fall_then_closes_in(tried: dict[float, float], expected: float) -> None:
    assert next_rate(tried) == pytest.approx(expected)


@pytest.mark.parametrize("start", [1e-4, 0.02, 30.0])
def test_the_search_finds_a_minimum_from_far_away(start: float) -> None:
    tried = {start: abs(math.log10(start / 0.3))}
    while len(tried) < 9:
        rate = next_rate(tried)
        tried[rate] = abs(math.log10(rate / 0.3))
    assert abs(math.log10(min(tried, key=tried.__getitem__) / 0.3)) < 0.3


def test_every_optimizer_has_as_many_tries_and_is_measured_with_other_seeds() -> None:
    shares: list[float] = []
    found = search("digits", "adamw", shares.append)
    assert shares == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    searched = [trial for trial in found.trials if trial.seed == SEARCH_SEED]
    assert len({trial.lr for trial in searched}) == len(searched) == 3
    assert searched[0].lr == optimizers.AdamW.method.defaults()["lr"]
    assert found.lr == min(searched, key=lambda trial: trial.found).lr
    assert [trial.seed for trial in found.measured] == [1, 2]
    assert {trial.lr for trial in found.measured} == {found.lr}
    assert np.isfinite(found.losses).all()
    assert (found.state_bytes, found.moved_bytes) == (8, 28)
    assert all(0 < trial.optimizer_seconds < trial.seconds for trial in found.trials)


def test_prodigy_is_not_searched_for() -> None:
    found = search("digits", "prodigy")
    assert [(trial.lr, trial.seed) for trial in found.trials] == [(1.0, 0), (1.0, 1), (1.0, 2)]
    assert not found.is_at_edge
    config = by_default("digits", "prodigy")
    assert (config.schedule, config.warmup) == ("cosine", "0")


@pytest.mark.parametrize("name", quality.OPTIMIZERS_ON)
def test_schedule_free_has_no_schedule_and_is_evaluated_where_it_is_used(name: str) -> None:
    if name == "characters":
        pytest.importorskip("torch")
    job = assembled(replace(by_default(name, "schedulefreeadamw"), lr=0.01), STORAGES[PLAIN])
    assert job.config.schedule == "constant"
    found = trial(job)
    assert found.loss == job.evaluate()["loss"]
    trained = job.problem.evaluate()["loss"]
    assert found.loss != trained


def test_options_are_the_defaults_of_the_class() -> None:
    job = assembled(by_default("digits", "adamw"), STORAGES[PLAIN])
    (group,) = job.problem.optimizer.param_groups
    defaults = optimizers.AdamW.method.defaults()
    assert {name: group[name] for name in ("betas", "eps", "weight_decay")} == {
        name: defaults[name] for name in ("betas", "eps", "weight_decay")
    }
    momentum = assembled(by_default("digits", "momentum"), STORAGES[PLAIN])
    assert momentum.problem.optimizer.param_groups[0]["momentum"] == 0.9


def test_a_training_that_diverges_has_no_loss() -> None:
    found = trial(assembled(replace(by_default("digits", "sgd"), lr=1e30), STORAGES[PLAIN]))
    assert found.loss is None
    assert found.found == math.inf


def test_what_does_not_fit_says_why() -> None:
    found = search("digits", "muon")
    assert found.trials == []
    assert found.obstacle.startswith("steps matrices alone")


def test_of_rows_only_whole_groups_are_left_as_rows() -> None:
    job = assembled(by_default("interactions", "adamw"), STORAGES["states 8bit"])
    batch = next(job.run.batches.from_step(0))
    model: Any = job.problem.model
    model.forward_backward(batch)
    gradients = model.gradients
    assert isinstance(gradients["items.weight"], Rows)
    items = np.concatenate([batch.features[:, 1], batch.features[:, 2]])
    assert gradients["items.bias"].shape == model.parameters["items.bias"].shape
    assert not gradients["items.bias"][np.setdiff1d(np.arange(len(gradients["items.bias"])), items)].any()
    assert gradients["items.bias"].any()


def test_storages_are_measured_at_the_rate_of_float32() -> None:
    plain = storage("interactions", PLAIN, None)
    assert len(plain.trials) == 4
    eight = storage("interactions", "states 8bit", plain)
    assert [(trial.lr, trial.seed) for trial in eight.trials] == [(plain.lr, 1)]
    assert eight.state_bytes < 0.35 * plain.state_bytes
    assert eight.losses == pytest.approx(plain.losses, rel=0.02)


@pytest.mark.parametrize("name", ["characters", "interactions"])
@pytest.mark.parametrize("of", [of for of, stored in STORAGES.items() if stored.half])
def test_weights_are_in_bfloat16(name: str, of: str) -> None:
    pytest.importorskip("torch")
    job = assembled(replace(by_default(name, "adamw"), lr=0.01), STORAGES[of])
    before = {key: array.copy() for key, array in job.problem.model.parameters.items()}
    found = trial(job)
    assert found.loss is not None
    for key, array in job.problem.model.parameters.items():
        assert not (array.view(np.uint32) & 0xFFFF).any()
        assert (array != before[key]).any()
    kept, moved = quality.bytes_of(job, half=True)
    extra = {"master float32": 4, "master split": 2, "master split8": 1}.get(of, 0)
    assert kept == pytest.approx(8 + extra, abs=0.5)
    assert moved == 6 + 2 * kept


def test_a_whole_master_and_one_in_two_pieces_are_the_same() -> None:
    pytest.importorskip("torch")
    jobs = [
        assembled(replace(by_default("characters", "adamw"), lr=0.01), STORAGES[of])
        for of in ("master float32", "master split")
    ]
    first, second = ([trial(job).loss, *job.problem.model.parameters.values()] for job in jobs)
    assert first[0] == pytest.approx(second[0], rel=0.01)


# ---- the command ----


def bench(*arguments: str, status: int = 0) -> str:
    result = runner.invoke(app, ["bench", *arguments], env={"COLUMNS": "100"})
    assert result.exit_code == status, result.output
    return result.output


def test_the_command_measures_every_optimizer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def found(name: str, optimizer: str, *rest: Any) -> Quality:
        return Quality(name, f"{name}, small", optimizer, PLAIN, 0, [], 0.0, 0.0, "not now")

    monkeypatch.setattr(quality, "search", found)
    monkeypatch.setattr(quality, "storage", lambda name, of, *rest: replace(found(name, "adamw"), storage=of))
    path = tmp_path / "quality.json"
    output = bench("--quality", "--json", str(path))
    content = json.loads(path.read_text())
    names = {entry["optimizer"] for entry in content["qualities"]}
    assert {name.lower() for name in optimizers.registry()} <= names == set(plan.trained_optimizers())
    assert len(content["qualities"]) == 2 * len(names)
    assert len(content["storages"]) == 2 * len(STORAGES)
    assert "digits: without lion: not now" in output
    bench("--quality", "--optimizer", "lion,sgd", "--json", str(path))
    content = json.loads(path.read_text())
    assert [entry["optimizer"] for entry in content["qualities"]] == ["lion", "sgd"] * 2
    assert content["storages"] == []


def test_a_real_run_of_the_command(tmp_path: Path) -> None:
    path = tmp_path / "quality.png"
    output = bench("--quality", "--optimizer", "sgd,muon", "--threads", "1", "--plot", str(path))
    assert "digits, perceptron 64-256-128-10, 23 steps" in output
    assert "digits: without muon: steps matrices alone" in output
    assert path.read_bytes().startswith(b"\x89PNG")


def test_quality_says_what_is_measured() -> None:
    assert "it cannot be given with --work" in bench("--quality", "--work", "1K", status=2)
    assert "--optimizer: expected names out of adabelief" in bench("--quality", "--optimizer", "adamix", status=2)
