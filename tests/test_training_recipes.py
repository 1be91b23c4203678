"""Every optimizer and schedule by name, and what is said of names and numbers that do not fit."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import MAKERS
from trainings import trained

from fastopt import optimizers
from fastopt.training.config import ModelName, defaults, from_json, parse_options
from fastopt.training.errors import TrainingError
from fastopt.training.job import Job
from fastopt.training.recipes import (
    RULES,
    SHAPES,
    build_optimizer,
    build_schedule,
    configure,
    optimizer_names,
)

CONFIG = configure("mlp", {"hidden": (64,), "lr": 0.5, "schedule": "constant", "epochs": 4, "threads": 1})
CHARACTERS = configure("transformer", {"layers": 1, "width": 32, "context": 16})


def values(name: str, warmup: str | None = None, total: int = 100) -> np.ndarray:
    settings = {"lr": 0.5, "schedule": name} | ({} if warmup is None else {"warmup": warmup})
    schedule = build_schedule(configure("mlp", settings), total)
    return np.array([schedule(step) for step in range(total)])


@pytest.mark.parametrize("name", SHAPES)
def test_schedules_reach_the_learning_rate_and_never_exceed_it(name: str) -> None:
    rates = values(name)
    assert rates.max() == pytest.approx(0.5, rel=1e-3)
    assert rates.min() >= 0
    assert (rates[-1] < 0.15) == (name != "constant")


@pytest.mark.parametrize("name", sorted(SHAPES.keys() - {"one-cycle"}))
def test_warmup_goes_before_every_schedule(name: str) -> None:
    rates = values(name, warmup="10")
    np.testing.assert_array_equal(values(name, warmup="10%"), rates)
    assert rates[0] == 0
    assert (np.diff(rates[:11]) > 0).all()
    assert rates[10] == 0.5
    assert (np.diff(rates[10:]) <= 0).all()


def test_schedules_at_chosen_steps() -> None:
    np.testing.assert_allclose(values("step", total=90)[[29, 30, 60]], [0.5, 0.05, 0.005])
    np.testing.assert_allclose(values("exponential")[50], 0.05)
    np.testing.assert_allclose(values("linear")[50], 0.25)
    np.testing.assert_allclose(values("inverse-sqrt", warmup="16")[64], 0.25)
    assert values("one-cycle").argmax() == 29
    np.testing.assert_array_equal(values("cosine", warmup="7"), values("warmup-cosine", warmup="7"))


@pytest.mark.parametrize("name", sorted(SHAPES.keys() - {"one-cycle", "inverse-sqrt"}))
def test_a_run_may_have_a_single_step(name: str) -> None:
    assert values(name, total=1) == [0.5]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"warmup": "many"}, r"--warmup: expected a number of steps or a share of all such as 5%, got 'many'"),
        ({"warmup": "1.5"}, r"--warmup: expected a number of steps"),
        ({"warmup": "-1"}, r"--warmup: expected a number of steps"),
        ({"warmup": "inf%"}, r"--warmup: expected a number of steps"),
        ({"warmup": "100"}, r"--warmup: expected less than the 100 steps of the run, got 100"),
        ({"schedule": "inverse-sqrt"}, r"--schedule inverse-sqrt with --warmup 0 does not fit 100 steps: .*warmup"),
        ({"schedule": "sinus"}, r"--schedule: expected one of constant, linear, cosine, .*, got 'sinus'"),
        ({"optimizer": "adamm"}, r"--optimizer: expected one of adabelief, .*, adamw, .*, got 'adamm'"),
        ({"optimizer": "jax:adamw"}, r"--optimizer: expected NAME or one of torch:NAME, .*, got 'jax:adamw'"),
        (
            {"optimizer": "torch:adamm"},
            r"--optimizer: expected one of adabelief, .*, adamw, .*, got 'adamm'",
        ),
        ({"lr": -1.0}, r"--lr: expected a finite number, 0 or more, got -1.0"),
        ({"lr": math.inf}, r"--lr: expected a finite number"),
        ({"clip_norm": math.nan}, r"--clip-norm: expected a finite number"),
        ({"weight_decay": -1.0}, r"--weight-decay: expected a finite number"),
        ({"epochs": 10**30}, r"--epochs: expected a whole number from 1 to 1000000000, got 1000000"),
        ({"epochs": True}, r"--epochs: expected a whole number"),
        ({"threads": 10**11}, r"--threads: expected a whole number from 1 to 1024, or none, got 100000000000"),
        ({"seed": -1}, r"--seed: expected a whole number from 0"),
        ({"batch_size": 0}, r"--batch-size: expected a whole number from 1 to 1000000000, or 'full', got 0"),
        ({"batch_size": "all"}, r"--batch-size: expected"),
        ({"accumulate": 0}, r"--accumulate: expected a whole number from 1 to 1000000000, got 0"),
        ({"accumulate": 2, "batch_size": "full"}, r"--accumulate 2: a full batch has all rows"),
        ({"hidden": (8, 0)}, r"--hidden: expected numbers of units such as 256,128, .*, got 8,0"),
        ({"hidden": (10**11,)}, r"--hidden: expected"),
        ({"hidden": [8]}, r"--hidden: expected"),
        ({"dtype": "float16"}, r"--dtype: expected one of float32, float64, got float16"),
        ({"task": None}, r"--task: expected one of classification, regression, got None"),
        ({"data": 7}, r"--data: expected a text, got 7"),
    ],
)
def test_unfit_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        build_optimizer(replace(CONFIG, **settings), optimizers.registry(), [np.ones(2)], 100)  # type: ignore[arg-type]


def test_every_class_has_a_name() -> None:
    assert {name.lower() for name in MAKERS} <= set(optimizer_names())


@pytest.mark.parametrize("name", optimizer_names())
def test_every_optimizer_learns_with_its_own_learning_rate(name: str) -> None:
    learned = trained("mlp", optimizer=name, hidden=(64,), epochs=8)
    if name == "rprop":
        return  # it compares signs from step to step, which of other batches say nothing
    enough = 0.5 if name in RULES["mlp"] else 0.9  # the rate of a recipe, or the optimizer's own
    assert learned.losses[-45:].mean() < enough * learned.losses[:5].mean()
    assert name not in RULES["mlp"] or learned.scores["accuracy"] > 0.93


def test_arguments_reach_the_optimizer() -> None:
    config = replace(CONFIG, optimizer="nesterov", weight_decay=0.25, clip_norm=0.0, lr=0.5)
    parameters = [np.zeros(2)]
    optimizer = build_optimizer(config, optimizers.registry(), parameters, 100, clip_norm=config.max_norm)
    group = optimizer.param_groups[0]
    assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.9, True, 0.25)
    info = optimizer.step([np.array([30.0, 40.0])])
    assert (info.lr, info.grad_norm, info.clipped) == (0.5, 50.0, False)
    clipped = build_optimizer(config, optimizers.registry(), parameters, 100, clip_norm=5.0).step(
        [np.array([30.0, 40.0])]
    )
    assert (clipped.grad_norm, clipped.clipped) == (50.0, True)


@pytest.mark.parametrize("name", optimizer_names())
def test_traffic_counts_every_read_and_write(name: str) -> None:
    job = Job(configure("mlp", {"hidden": (64,), "epochs": 4, "threads": 1, "optimizer": name, "dtype": "float64"}))
    job.problem.update()
    entries = job.problem.optimizer.state_dict()["state"].values()
    state = sum(value.size for entry in entries for value in entry.values() if np.ndim(value) > 0)
    elements = 64 * 64 + 64 + 64 * 10 + 10
    assert state == elements * {"sgd": 0, "momentum": 1, "adamw": 2}.get(name, state / elements)
    reads = (1 + 1 + 1) * elements + state  # the gradient for its norm; gradient, parameter and states for the step
    writes = elements + state
    assert job.optimizer_bytes() == (reads + writes) * 8
    job.problem.config = job.config = replace(job.config, accumulate=4)
    assert job.optimizer_bytes() == (reads + writes + 4 * (2 + 1) * elements) * 8  # gradient and mean; the mean


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": "12,x"}, r"--hidden: expected numbers of units such as 256,128, .*, got '12,x'"),
        ({"batch_size": "all"}, r"--batch-size: expected a whole number from 1 to 1000000000, or 'full', got 'all'"),
        ({"batch_size": "9" * 5000}, r"--batch-size: expected a whole number"),
    ],
)
def test_unfit_options(options: dict[str, str], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        parse_options(options)


def test_options_become_settings() -> None:
    typed = {"hidden": " 8, 4", "batch_size": "full", "optimizer": "AdamW", "data": "t.csv", "lr": None, "epochs": 3}
    settings = parse_options(typed)
    assert settings.pop("data").endswith("/t.csv")
    assert settings == {"hidden": (8, 4), "batch_size": "full", "optimizer": "adamw", "epochs": 3}
    assert parse_options({"hidden": "", "data": "digits"}) == {"hidden": (), "data": "digits"}


def test_settings_come_back_from_json() -> None:
    for config in (CONFIG, CHARACTERS):
        assert from_json(json.loads(json.dumps(config.to_json()))) == config
        for change in ({"novelty": 1}, {"model": "cnn"}):
            with pytest.raises(TrainingError, match="another version"):
                from_json({**config.to_json(), **change})


def test_the_recipe_fits_model_optimizer_and_schedule() -> None:
    digits, characters = configure("mlp", {}), configure("transformer", {})
    assert (digits.optimizer, digits.lr, digits.weight_decay, digits.epochs) == ("adamw", 2e-3, 0.01, 30)
    assert (characters.optimizer, characters.lr, characters.weight_decay) == ("adamw", 3e-4, 0.1)
    assert (characters.schedule, characters.warmup, characters.clip_norm) == ("warmup-cosine", "5%", 1.0)
    adagrad = configure("transformer", {"optimizer": "adagrad", "schedule": "cosine"})
    assert (adagrad.lr, adagrad.weight_decay, adagrad.warmup) == (0.01, 0.0, "0")
    rival = configure("transformer", {"optimizer": "torch:adamw"})
    assert (rival.lr, rival.weight_decay) == (3e-4, 0.1)
    assert configure("mlp", {"lr": 1.0, "weight_decay": 0.0}).weight_decay == 0.0


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        ("transformer", {"hidden": (8,)}, "--hidden is for --model mlp, but the model is transformer"),
        ("mlp", {"context": 8}, "--context is for --model transformer, but the model is mlp"),
        ("transformer", {"optimizer": "best"}, "--optimizer: expected one of adabelief"),
        ("mlp", {"schedule": "best"}, "--schedule: expected one of constant"),
    ],
)
def test_unfit_recipes(model: ModelName, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        configure(model, settings)


def test_defaults_are_told_of_each_model_where_they_differ() -> None:
    assert defaults("hidden") == "256,128"
    assert defaults("seed") == "0"
    assert defaults("batch_size") == "mlp 32, transformer 4, recommender 1024"


def test_torch_optimizers_are_not_for_numpy() -> None:
    with pytest.raises(TrainingError, match="--optimizer torch:adamw needs a model in torch: --model transformer"):
        Job(replace(CONFIG, optimizer="torch:adamw"))


def test_an_optimizer_for_sparse_gradients_is_not_for_a_transformer() -> None:
    config = configure("transformer", {"optimizer": "sparseadam"})
    with pytest.raises(
        TrainingError, match="--optimizer sparseadam: is for sparse gradients, those of a transformer are"
    ):
        build_optimizer(config, optimizers.registry(), [np.ones(2)], 100)


SMALL: dict[ModelName, dict[str, Any]] = {
    "mlp": {"hidden": (16,), "epochs": 2, "batch_size": 32, "threads": 1},
    "transformer": {"layers": 1, "width": 32, "context": 16, "epochs": 1, "batch_size": 32},
}


@pytest.mark.parametrize(
    ("model", "optimizer"),
    [
        ("mlp", "adamw"),
        ("mlp", "nesterov"),
        *(("transformer", name) for name in ("adamw", "torch:adamw", "torch-fused:adamw")),
    ],
)
def test_added_up_gradients_are_those_of_a_larger_batch(model: ModelName, optimizer: str, tmp_path: Path) -> None:
    """Of as many rows, in the same steps. (In float64: what is rounded otherwise grows from step to step.)"""
    settings = {**SMALL[model], "optimizer": optimizer, "dtype": "float64"}
    if model == "transformer":
        pytest.importorskip("torch")
        (tmp_path / "t.txt").write_text("".join(np.random.default_rng(0).choice(list("abcde "), 9_000)))
        settings["text"] = str(tmp_path / "t.txt")
    added, whole = trained(model, **settings, accumulate=3), trained(model, **{**settings, "batch_size": 96})
    assert len(added.losses) == len(whole.losses) > 4
    np.testing.assert_allclose(added.losses, whole.losses, rtol=1e-3)
    one = trained(model, **settings)
    assert len(one.losses) > 2 * len(added.losses)


def test_rows_are_not_added_up() -> None:
    with pytest.raises(TrainingError, match=r"^--accumulate: --model recommender steps rows alone"):
        Job(configure("recommender", {"accumulate": 2}))
