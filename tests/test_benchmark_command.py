"""`fastopt bench` as people use it."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fastopt.benchmark import plan
from fastopt.benchmark.field import OURS, company
from fastopt.benchmark.runs import Entrant, Run, perform
from fastopt.cli import app

runner = CliRunner()


@pytest.fixture(autouse=True)
def folder(hasty: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def bench(*arguments: str, status: int = 0) -> str:
    result = runner.invoke(app, ["bench", *arguments], env={"COLUMNS": "100"})
    assert result.exit_code == status, result.output
    return result.output


TINY = ("--work", "50,3x20", "--rivals", "NumPy", "--threads", "1")


def test_a_table_for_each_combination(tmp_path: Path) -> None:
    output = bench(*TINY, "--optimizer", "sgd,adamw", "--dtype", "float32,float64", "--action", "step,clip")
    titles = [line for line in output.splitlines() if line.endswith(", 1 thread")]
    assert titles == [
        f"{method}, {dtype}: {action}, 1 thread"
        for method in ("SGD", "AdamW")
        for dtype in ("float32", "float64")
        for action in ("step", "clip by norm and step")
    ]
    assert output.count("\nfloor ") == output.count("\nfastopt ") == output.count("\nNumPy ") == 2 * len(titles)
    assert "numpy" in output.splitlines()[-1]


def test_of_all_optimizers_those_that_fit_are_meant() -> None:
    named = "--work", "50", "--rivals", "", "--threads", "1"
    output = bench(*named, "--optimizer", "all")
    assert output.count("\n50, ") > 30
    assert "Muon, float32: step, 1 thread" in output  # (on matrices: no vector is its work)
    assert "Muon steps matrices alone" in bench(*named, "--optimizer", "muon", status=2)


def test_figures_go_to_files_and_come_back_as_a_baseline(tmp_path: Path) -> None:
    output = bench(*TINY, "--json", "figures.json", "--plot", "figures.png")
    assert "All figures are in figures.json" in output
    content = json.loads(Path("figures.json").read_text())
    assert [len(run["results"]) >= 3 for run in content["runs"]["comparison"]] == [True, True]
    assert content["facts"]["threads"] == 1
    assert Path("figures.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figures.json", "figures.png"]
    again = bench(*TINY, "--baseline", "figures.json")
    assert "figures that both have became slower than before." in again


def test_ctrl_c_shows_what_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def interrupted(*arguments: Any) -> Run:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return perform(*arguments)

    monkeypatch.setattr(plan, "perform", interrupted)
    output = bench(*TINY, status=130)
    assert "Stopped after 1 of 2 runs." in output
    assert "\n50, 800 B" in output
    assert "3x20" not in output.partition("Stopped")[2]


def test_targets_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "perform", lambda *arguments: Run({}, []))
    monkeypatch.setattr(plan, "find_spec", lambda name: None)  # nor what needs torch
    output = bench("--targets")
    assert "Against the floor, 64M, float32" in output
    assert "Against DeepSpeed" in output
    assert "Against torch and its clipping, in a whole training step" in output
    assert "not run" in output
    assert "reached" not in output


def test_everything_is_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "perform", lambda *arguments: Run({}, []))
    monkeypatch.setattr(plan, "find_spec", lambda name: None)  # nor what needs torch
    bench("--full", "--json", "figures.json")
    runs = json.loads(Path("figures.json").read_text())["runs"]
    assert runs.keys() == {"targets", "comparison", "sizes", "threads"}
    assert len(runs["sizes"]) == 13


def test_a_run_that_fails_is_told_and_the_others_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def failing(*arguments: Any) -> Run:
        calls.append(arguments)
        if len(calls) == 1:
            raise MemoryError("no room\nfor anything")
        return perform(*arguments)

    monkeypatch.setattr(plan, "perform", failing)
    output = bench(*TINY, "--json", "figures.json")
    assert "Failed: comparison: AdamW, 50, float32: MemoryError: no room\n" in output
    assert "\n3x20, 960 B" in output
    content = json.loads(Path("figures.json").read_text())
    assert len(content["failures"]) == len(content["runs"]["comparison"]) == 1


def test_what_is_done_is_in_the_file_already(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def watching(*arguments: Any) -> Run:
        if calls:
            assert len(json.loads(Path("figures.json").read_text())["runs"]["comparison"]) == len(calls)
        calls.append(arguments)
        return perform(*arguments)

    monkeypatch.setattr(plan, "perform", watching)
    assert "Failed" not in bench(*TINY, "--json", "figures.json")
    assert len(calls) == 2


def test_a_full_disk_is_told_after_the_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fastopt.benchmark.records.replacing", full)
    output = bench(*TINY, "--json", "figures.json", status=2)
    assert "\n3x20, 960 B" in output
    assert output.splitlines()[-1] == "error: [Errno 28] No space left on device"


def test_rivals_for_whom_memory_does_not_suffice_at_once_get_runs_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "room", lambda task: len(OURS) + 2)
    seen: list[set[str]] = []

    def noting(entrants: list[Entrant], *arguments: Any) -> Run:
        seen.append({entrant.contestant for entrant in entrants})
        return Run({}, [])

    monkeypatch.setattr(plan, "perform", noting)
    bench("--work", "50", "--rivals", "NumPy,torch,optax")
    assert seen == [{*company(()), "NumPy", "torch"}, {*OURS, "optax"}]
    monkeypatch.setattr(plan, "room", lambda task: 0)
    seen.clear()
    bench("--work", "50", "--rivals", "")
    assert seen == [company(())]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--optimizer", "adamix"], "--optimizer: expected names out of sgd,"),
        (["--work", "huge"], "--work: expected one of policy,"),
        (["--rivals", "jax"], "--rivals: expected names out of fastopt bfloat16, fastopt 8bit, NumPy,"),
        (["--dtype", "float16"], "--dtype: expected names out of float32, float64, bfloat16, got 'float16'"),
        (["--action", "run"], "--action: expected names out of step,"),
        (["--json", "nowhere/figures.json"], "--json: there is no directory nowhere"),
        (["--json", "folder"], "folder cannot be written: it is a directory"),
        (["--plot", "folder.png"], "folder.png cannot be written: it is a directory"),
        (["--plot", "figures.gif"], "--plot must end in .png or .svg, got figures.gif"),
        (["--baseline", "nothing.json"], "--baseline: there is no file nothing.json"),
        (["--baseline", "broken.json"], "broken.json is not a file that fastopt bench --json wrote"),
        (["--full", "--work", "1K"], "--full says what is measured: it cannot be given with --work"),
        (["--full", "--targets"], "--full says what is measured: it cannot be given with --targets"),
    ],
)
def test_bad_options_end_it_before_anything_is_measured(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "perform", None)
    Path("broken.json").write_text("{")
    for folder in ("folder", "folder.png"):
        Path(folder).mkdir()
    output = bench(*arguments, status=2)
    assert output.startswith("error: ")
    assert message in output
    assert len(output.splitlines()) == 1
