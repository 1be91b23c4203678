"""An optimizer that is new in the registry works everywhere by itself: no other place lists the optimizers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from fastopt import landscape, optimizers
from fastopt.benchmark import plan
from fastopt.benchmark.runs import Run, perform
from fastopt.benchmark.tasks import methods
from fastopt.cli import app
from fastopt.landscape.styles import styles
from fastopt.lessons.drawing import look
from fastopt.methods.base import Flag, Method, Quantity, learning_rate
from fastopt.methods.sgd import SGD
from fastopt.optimizer import made_from
from fastopt.training.errors import TrainingError
from fastopt.training.recipes import build_optimizer, configure, optimizer_names

pytestmark = pytest.mark.filterwarnings("ignore:Matplotlib is building the font cache")

REGISTERED = optimizers.registry()


class Newcomer(SGD):
    """Momentum that is on by default, and an option that leads to the kernel without it."""

    lr = learning_rate(0.05)
    momentum = Quantity(0.9)
    weight_decay = Quantity(0.001)
    plain = Flag(False)

    @staticmethod
    def rule(options: Any) -> tuple[str, tuple[str, ...]]:
        return ("sgd", ()) if options["plain"] else SGD.rule(options)


class Undecayed(Method):
    """Has no weight decay."""

    lr = learning_rate(0.05)
    counts_steps = False

    @staticmethod
    def rule(options: Any) -> tuple[str, tuple[str, ...]]:
        return "sgd", ()


MADE = {method.__name__: made_from(method) for method in (Newcomer, Undecayed)}


@pytest.fixture(autouse=True)
def newcomers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    registry = {**REGISTERED, **MADE}
    monkeypatch.setattr(optimizers, "registry", lambda: dict(registry))


def run(*arguments: str, status: int = 0) -> str:
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "120"})
    assert result.exit_code == status, result.output
    return result.output


def test_it_trains_with_the_defaults_of_its_class() -> None:
    output = run("train", "--optimizer=newcomer", "--hidden=16", "--epochs=3", "--out=run")
    assert "optimizer  newcomer, lr 0.05, warmup-cosine" in output
    settings = json.loads(Path("run/config.json").read_text())
    assert (settings["lr"], settings["weight_decay"]) == (0.05, 0.001)
    first, *_, last = (float(row.split(",")[2]) for row in Path("run/metrics.csv").read_text().splitlines()[1:])
    assert last < 0.5 * first
    assert "after step 135 of 135" in run("train", "--resume", "--out=run")
    assert "newcomer" in run("train", "--optimizer=none", status=2)


def test_it_need_not_have_weight_decay() -> None:
    config = configure("mlp", {"optimizer": "undecayed"})
    assert (config.lr, config.weight_decay) == (0.05, 0.0)
    parameters = [np.ones(2)]
    optimizer = build_optimizer(config, optimizers.registry(), parameters, 10)
    assert type(optimizer) is MADE["Undecayed"]
    decaying = configure("mlp", {"optimizer": "undecayed", "weight_decay": 0.1})
    with pytest.raises(TrainingError, match="--weight-decay: --optimizer undecayed has none"):
        build_optimizer(decaying, optimizers.registry(), parameters, 10)


def test_what_torch_does_not_have_is_told() -> None:
    pytest.importorskip("torch")
    name = "torch:newcomer"
    Path("t.txt").write_text("one two three " * 100)
    message = f"error: --optimizer {name}: there is no Newcomer for --model transformer\n"
    assert run("train", "--model=transformer", "--text=t.txt", f"--optimizer={name}", status=2) == message


def test_it_moves_over_landscapes() -> None:
    assert "newcomer" in landscape.optimizer_names()
    output = run("landscape", "bowl", "--optimizers=newcomer,adam", "--lr=0.1", "--steps=5", "--out=bowl.svg")
    assert "newcomer" in output
    run("landscape", "bowl", "--optimizers=newcomer", "--lr=0.1", "--steps=5", "--out=bowl.html")
    assert "newcomer" in Path("bowl.html").read_text()


def test_it_has_a_look_in_the_figures_of_lessons(monkeypatch: pytest.MonkeyPatch) -> None:
    many = {f"Newcomer{number}": Newcomer for number in range(40 - len(REGISTERED))}
    old = {name: look(name) for name in REGISTERED}
    monkeypatch.setattr(optimizers, "registry", lambda: REGISTERED | many)
    looks = {name: look(name) for name in optimizers.registry()}
    assert len({str(kept) for kept in looks.values()}) == 40
    assert {name: looks[name] for name in REGISTERED} == old, "others do not change"
    assert len(styles(map(str, range(1000)))) == 1000


def test_the_benchmark_times_each_of_its_kernels(hasty: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [name for name in methods() if name.startswith("newcomer")] == ["newcomer", "newcomer-plain"]
    seen: list[Run] = []

    def noting(*arguments: Any) -> Run:
        seen.append(perform(*arguments))
        return seen[-1]

    monkeypatch.setattr(plan, "perform", noting)
    output = run("bench", "--optimizer=newcomer", "--work=50", "--rivals=all", "--threads=1")
    assert "Newcomer, float32: step, 1 thread" in output
    (only,) = seen
    # (`fastopt.jax` has every one.)
    found = [entrant.contestant for entrant in only.seconds if entrant.contestant in ("floor", "fastopt", "NumPy")]
    assert found == ["floor", "fastopt"]
    reasons = {absence.entrant.contestant: absence.reason for absence in only.absences}
    assert reasons["NumPy"] == "has no Newcomer"
    assert all(reason.endswith("is not installed") or reason.startswith("has no ") for reason in reasons.values())


def test_the_full_benchmark_has_it(hasty: None, monkeypatch: pytest.MonkeyPatch) -> None:
    timed: set[str] = set()

    def noting(entrants: Any, *arguments: Any) -> Run:
        timed.update(f"{entrant.task.method.optimizer} {entrant.task.dtype}" for entrant in entrants)
        return Run({}, [])

    monkeypatch.setattr(plan, "perform", noting)
    monkeypatch.setattr(plan, "find_spec", lambda name: None)
    run("bench", "--full")
    assert {f"Newcomer {dtype}" for dtype in ("float32", "float64", "bfloat16")} <= timed


def test_every_name_is_of_the_registry() -> None:
    names = {name.lower() for name, cls in optimizers.registry().items() if not cls.method.matrices}
    assert names <= set(optimizer_names())
    assert set(optimizer_names()) - names == {"momentum", "nesterov"}
    assert set(landscape.optimizer_names()) - names == {"gd", "momentum", "nesterov"}
