"""The command line as people use it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import fastopt
from fastopt.__main__ import main
from fastopt.cli import app
from fastopt.files import locked
from fastopt.training.config import Config
from fastopt.training.job import Job
from fastopt.training.session import CHECKPOINT

runner = CliRunner()


def run(*arguments: str, status: int = 0) -> str:
    result = runner.invoke(app, list(arguments), env={"COLUMNS": "120"})
    assert result.exit_code == status, result.output
    return result.output


def error(*arguments: str) -> str:
    """Return the single line of an error."""
    lines = run(*arguments, status=2).splitlines()
    assert len(lines) == 1
    return lines[0]


@pytest.fixture(autouse=True)
def empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def prices(empty_directory: Path) -> str:
    generator = np.random.default_rng(0)
    size, rooms = generator.uniform(20, 200, 300), generator.integers(1, 8, 300)
    price = 3000 * size + 20000 * rooms + generator.normal(size=300) * 5000
    rows = np.column_stack([size, rooms, price])
    np.savetxt("prices.csv", rows, delimiter=",", header="size,rooms,price", comments="")
    return "prices.csv"


def test_no_arguments_train_the_digits(empty_directory: Path) -> None:
    output = run("train")
    assert "digits: 1,438 rows to learn, 359 held out, 64 features, 10 classes" in output
    assert "perceptron 64-256-128-10, 50,826 parameters, float32" in output
    for part in ("forward", "backward", "optimizer", "GB/s"):
        assert part in output
    assert sum(line.startswith("epoch ") for line in output.splitlines()) == 20
    out = empty_directory / "runs" / "digits-1"
    assert {file.name for file in out.iterdir()} == {
        "checkpoint.safetensors",
        "config.json",
        "metrics.csv",
        "scores.json",
        "training.png",
    }
    assert (out / "training.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((out / "config.json").read_text())["lr"] == 0.002
    header, *_, last = (out / "metrics.csv").read_text().splitlines()
    assert header == "step,epoch,loss,lr,grad_norm,test_loss,test_accuracy"
    assert last.startswith("1350,30,")
    assert float(last.split(",")[-1]) >= 0.97
    run("train", "--epochs", "1")
    assert (empty_directory / "runs" / "digits-2").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_digits_reach_97_percent_for_every_seed(seed: int) -> None:
    run("train", "--seed", str(seed), "--out", "run")
    assert float(Path("run/metrics.csv").read_text().splitlines()[-1].split(",")[-1]) >= 0.97


@pytest.mark.parametrize("batch_size", ["1", "full"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_batch_size_and_dtype(batch_size: str, dtype: str) -> None:
    np.savez("t.npz", X=np.repeat([[0.0, 1], [1, 0]], 20, axis=0), y=np.repeat(["left", "right"], 20))
    arguments = ["--data=t.npz", "--epochs=20", "--hidden=4", "--lr=0.05", "--out=o"]
    run("train", *arguments, "--batch-size", batch_size, "--dtype", dtype)
    *_, last = Path("o/metrics.csv").read_text().splitlines()
    assert last.startswith("640,20," if batch_size == "1" else "20,20,")
    assert last.endswith(",1.0")


def test_regression_reports_original_units(prices: str) -> None:
    output = run("train", "--data", prices, "--target", "price", "--task", "regression", "--epochs=60", "--out=o")
    assert "numbers to predict" in output
    last = dict(
        zip(*(line.split(",") for line in Path("o/metrics.csv").read_text().splitlines()[:: 60 * 8]), strict=True)
    )
    assert float(last["test_r2"]) > 0.99
    assert 4000 < float(last["test_rmse"]) < 12000  # the noise has a standard deviation of 5000


def test_linear_model_finds_the_line(prices: str) -> None:
    arguments = ["--data", prices, "--target=price", "--task=regression", "--hidden=", "--out=o", "--lr=0.02"]
    output = run("train", *arguments)
    assert "perceptron 2-1, 3 parameters" in output


def test_run_is_not_overwritten_and_resumes_with_the_same_command() -> None:
    arguments = ["train", "--epochs", "2", "--hidden", "8", "--out", "run"]
    run(*arguments)
    before = Path("run/checkpoint.safetensors").read_bytes()
    assert error(*arguments) == "error: run holds a run already: add --resume to continue it, or choose another --out"
    assert "after step 90 of 90" in run(*arguments, "--resume")
    assert "after step 90 of 90" in run("train", "--resume", "--out", "run")
    assert error("train", "--resume", "--out=run", "--epochs=1") == (
        "error: --epochs 1 contradicts the run to resume, which was started with 2"
    )
    assert Path("run/checkpoint.safetensors").read_bytes() == before


def test_a_run_can_be_made_longer() -> None:
    run("train", "--epochs=2", "--hidden=8", "--out=run", "--schedule=constant", "--warmup=0")
    assert "after step 90 of 135" in run("train", "--resume", "--out=run", "--epochs=3")
    assert json.loads(Path("run/config.json").read_text())["epochs"] == 3
    assert "after step 135 of 135" in run("train", "--resume", "--out=run")
    run("train", "--epochs=3", "--hidden=8", "--out=whole", "--schedule=constant", "--warmup=0")
    for name in (CHECKPOINT, "metrics.csv", "scores.json", "config.json"):
        assert Path("run", name).read_bytes() == Path("whole", name).read_bytes()


def test_a_model_that_has_learned_nothing_ends_with_3() -> None:
    Path("same.csv").write_text("a,y\n" + "".join(f"1,{row % 3 // 2}\n" for row in range(60)))
    for task, word in (("classification", "the commonest class"), ("regression", "the mean")):
        options = ["--data=same.csv", "--target=y", f"--task={task}", "--epochs=1", "--lr=0", f"--out={task}"]
        last = run("train", *options, "--keep=a", status=3).splitlines()[-1]
        assert last.startswith("The model is no better than ")
        assert last.endswith(f"{word}.")
        reason, which = run("train", *options, "--out=another", status=2).splitlines()
        assert reason.endswith("same.csv: no column besides the target 'y' can be learned from")
        assert which == "  a: always the same"


@pytest.mark.skipif(os.name == "nt", reason="the modes of POSIX")
def test_files_of_a_run_have_the_usual_mode() -> None:
    run("train", "--epochs=1", "--hidden=8", "--out=run")
    before = os.umask(0)
    os.umask(before)
    for path in Path("run").iterdir():
        assert path.stat().st_mode & 0o777 == 0o666 & ~before, path


def test_scores_at_the_end(prices: str) -> None:
    output = run("train", "--epochs=2", "--hidden=16", "--out=run")
    scores = json.loads(Path("run/scores.json").read_text())
    confusion = np.array(scores["confusion"])
    assert scores["rows"] == confusion.sum() == 359
    assert scores["accuracy"] == confusion.trace() / 359
    assert scores["baseline"]["accuracy"] == confusion.sum(axis=1)[int(scores["baseline"]["class"])] / 359
    for number in range(10):
        facts = scores["classes"][str(number)]
        assert facts["recall"] == confusion[number, number] / facts["rows"]
        assert facts["precision"] == confusion[number, number] / confusion[:, number].sum()
    assert f"{scores['baseline']['accuracy']:.1%} by always saying" in output
    output = run("train", "--data", prices, "--target=price", "--task=regression", "--epochs=20", "--out=prices")
    scores = json.loads(Path("prices/scores.json").read_text())
    table = np.loadtxt(prices, delimiter=",", skiprows=1)
    assert scores["rows"] == 60
    assert scores["r2"] == pytest.approx(1 - (scores["rmse"] / table[:, 2].std()) ** 2, abs=0.05)
    assert scores["mean_absolute_error"] < scores["baseline"]["mean_absolute_error"] / 2
    assert f"rmse {scores['baseline']['rmse']:.4g} by always saying" in output


def test_columns_are_reported_before_the_training() -> None:
    cells = [f"p{i},{'' if i % 9 == 0 else i},{'Ulm' if i % 2 else 'Bonn'},{i % 2}" for i in range(60)]
    Path("t.csv").write_text("\n".join(["name,age,town,y", *cells]))
    output = run("train", "--data=t.csv", "--target=y", "--epochs=20", "--hidden=4", "--lr=0.05", "--out=run")
    before, _, _ = output.partition("data ")
    assert re.search(
        r"name +left out +- +60 +60 different texts, looks like an identifier; --keep name uses it", before
    )
    assert re.search(r"age +number +7 +53 +missing cells: \d+(\.5)?, and a feature that tells where", before)
    assert re.search(r"town +category +- +2", before)
    output = run(
        "train", "--data=t.csv", "--target=y", "--drop=town,age", "--keep=name", "--epochs=1", "--out=kept", status=3
    )
    assert re.search(r"name +category +- +60", output)
    assert re.search(r"town +left out +as asked", output)


def test_errors_take_one_line(prices: str) -> None:
    assert error("train", "--resume") == "error: --resume needs --out DIR, the directory of the run"
    assert "nothing to resume" in error("train", "--resume", "--out", "nowhere")
    assert "the columns are size, rooms, price" in error("train", "--data", prices, "--target", "cost")
    assert "--optimizer: expected one of adabelief" in error("train", "--optimizer", "best")
    assert "--schedule: expected one of constant" in error("train", "--schedule", "best")
    assert "--batch-size: expected a whole number" in error("train", "--batch-size", "0")
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--threads=100000000000"], "--threads: expected a whole number from 1 to 1024, or none, got 100000000000"),
        ([f"--epochs={10**30}"], f"--epochs: expected a whole number from 1 to 1000000000, got {10**30}"),
        ([f"--seed={10**30}"], "--seed: expected a whole number from 0 to 9223372036854775807"),
        ([f"--batch-size={10**30}"], "--batch-size: expected a whole number from 1 to 1000000000, or 'full'"),
        (["--hidden=100000000000"], "--hidden: expected numbers of units such as 256,128, each from 1 to 1000000"),
        (["--lr=nan"], "--lr: expected a finite number, 0 or more, got nan"),
        (["--weight-decay=inf"], "--weight-decay: expected a finite number, 0 or more, got inf"),
        (["--model=transformer", "--layers=100000000000"], "--layers: expected a whole number from 1 to 1000"),
        (["--model=transformer", "--width=320000000000"], "--width: expected a whole number from 1 to 1000000"),
        (["--model=transformer", "--context=100000000000"], "--context: expected a whole number from 1 to 1000000"),
    ],
)
def test_numbers_too_large_take_one_line(options: list[str], message: str) -> None:
    assert error("train", *options).startswith(f"error: {message}")


def test_too_little_memory_takes_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_large(*arguments: object) -> None:
        raise MemoryError("Unable to allocate 7 TiB")

    monkeypatch.setattr("fastopt.training.table_problem.MLP.__init__", lambda *arguments, **options: too_large())
    message = "error: the data and the model do not fit into the memory (Unable to allocate 7 TiB)"
    assert error("train", "--out=run") == message
    assert not Path("run").exists()


def test_what_cannot_be_written_is_said_before_the_data_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastopt.training.table_problem.load", None)
    Path("file").touch()
    reason = f"cannot be written: {Path('file').absolute()} is not a directory to write in"
    assert error("train", "--out=file/run") == f"error: file/run/{CHECKPOINT} {reason}"
    assert error("train", "--out=file") == f"error: file/{CHECKPOINT} {reason}"
    assert "there is no directory file: nothing to resume" in error("train", "--resume", "--out=file")
    Path("runs").touch()
    assert "cannot be written" in error("train")


def test_the_second_of_two_runs_in_a_directory_is_told() -> None:
    arguments = ["train", "--epochs=1", "--hidden=2", "--out=run"]
    run(*arguments)
    before = {path.name: path.read_bytes() for path in Path("run").iterdir()}
    Path("new").mkdir()
    with locked(Path("run")), locked(Path("new")):
        assert error(*arguments, "--resume") == "error: run is in use by another process"
        assert error("train", "--epochs=1", "--hidden=2", "--out=new") == "error: new is in use by another process"
    assert {path.name: path.read_bytes() for path in Path("run").iterdir()} == before
    assert not list(Path("new").iterdir())


def test_runs_without_a_directory_at_once_get_one_each(monkeypatch: pytest.MonkeyPatch) -> None:
    def another_comes_first(config: Config) -> Job:
        Path("runs/digits-1").mkdir(parents=True)
        return Job(config)

    monkeypatch.setattr("fastopt.training.command.Job", another_comes_first)
    assert "All files of the run are in runs/digits-2/" in run("train", "--epochs=1", "--hidden=2")


@pytest.mark.parametrize("name", ["exp[adam]", "lr[/red]", "a:smile:", "cost$x$ in $^$", "[bold]"])
def test_names_are_shown_as_they_are(name: str) -> None:
    rows = "".join(f"{number},{number % 2},{number % 2}\n" for number in range(40))
    data = Path(f"{name}.csv".replace("/", " "))
    data.write_text(f"a,{name},kind\n{rows}")
    arguments = ["train", "--data", str(data), "--epochs=20", "--lr=0.1", f"--out={name}"]
    output = run(*arguments, "--target=kind")
    assert f"{data.name}: 32 rows to learn" in output
    assert f"All files of the run are in {name}/" in output
    assert f"error: {name} holds a run already" in error(*arguments, "--target=kind")
    assert f"the columns are a, {name}, kind" in error(*arguments, "--target=none", "--out=other")


def write_text(path: str) -> str:
    words = np.random.default_rng(0).choice(["one", "two", "three"], 500)
    Path(path).write_text(" ".join(words))
    return path


TINY = ["--model=transformer", "--layers=1", "--width=32", "--context=16", "--lr=0.01", "--epochs=2"]


def test_transformer_learns_a_text() -> None:
    pytest.importorskip("torch")
    output = run("train", *TINY, "--text", write_text("words.txt"))
    assert "words.txt: 2,137 characters to learn, 238 held out, 8 different" in output
    assert "transformer, 1 layers of 32, context 16, " in output
    assert sum(line.startswith("epoch ") for line in output.splitlines()) == 20
    out = Path("runs/words-1")
    assert {file.name for file in out.iterdir()} == {
        "checkpoint.safetensors",
        "config.json",
        "metrics.csv",
        "sample.txt",
        "scores.json",
        "training.png",
    }
    header, *_, last = (out / "metrics.csv").read_text().splitlines()
    assert header == "step,epoch,loss,lr,grad_norm,test_loss,test_bits_per_character"
    bits = float(last.split(",")[-1])
    assert bits < 2.5
    assert f"held-out bits per character  {bits:.4g}" in output
    sample = (out / "sample.txt").read_text()
    assert len(sample) == 501
    assert sample.splitlines()[0][:40] in output
    assert set(sample) <= set("onetwhr \n")


SAME_FORMULA = 1e-9
"""How far losses in float64 may be apart: rounding makes 1e-14 of them in a short training, whatever the processor, and
the least difference of a formula, epsilon inside the root instead of outside, 1e-6."""


def test_report_compares_the_optimizers() -> None:
    pytest.importorskip("torch")
    write_text("words.txt")
    losses = {}
    for name in ("AdamW", "torch:AdamW", "torch-fused:AdamW"):
        out = name.replace(":", "-")
        output = run("train", *TINY, "--text=words.txt", "--dtype=float64", "--optimizer", name, "--out", out)
        assert f"optimizer  {name.lower()}, lr 0.01" in output
        share = re.search(r"optimizer's share +([\d.]+)% of a step, ([\d.]+) of ([\d.]+) ms", output)
        assert share is not None
        percent, optimizer, step = map(float, share.groups())
        assert 0 < percent < 100
        assert percent == pytest.approx(100 * optimizer / step, rel=0.02)
        rows = Path(out, "metrics.csv").read_text().splitlines()[1:21]
        losses[name] = [float(row.split(",")[2]) for row in rows]
    for rival in ("torch:AdamW", "torch-fused:AdamW"):
        assert losses[rival] == pytest.approx(losses["AdamW"], rel=SAME_FORMULA)


def test_errors_of_texts_take_one_line() -> None:
    pytest.importorskip("torch")
    Path("short.txt").write_text("too short")
    Path("bytes.txt").write_bytes(bytes(range(256)) * 10)
    Path("empty.txt").touch()
    transformer = ("train", "--model", "transformer")
    assert "--text: no such file: " in error(*transformer, "--text", "missing.txt")
    for name, reason in (("short", "at least 650 characters"), ("empty", "got 0"), ("bytes", "byte 0x80 at position")):
        message = error(*transformer, "--text", f"{name}.txt")
        assert f"{name}.txt: " in message
        assert reason in message
    assert "--hidden is for --model mlp" in error(*transformer, "--hidden", "8")
    assert "--text is for --model transformer" in error("train", "--text", "t.txt")
    assert "--width: expected a multiple of 32" in error(*transformer, "--width", "8")
    assert "needs a model in torch" in error("train", "--optimizer", "torch:AdamW")
    assert not Path("runs").exists()


def test_transformer_without_torch_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.partition(".")[0] == "torch"]:
        monkeypatch.delitem(sys.modules, module)
    for module in ("text_problem", "transformer", "torch_optimizers"):
        monkeypatch.delitem(sys.modules, f"fastopt.training.{module}", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    message = "error: --model transformer needs torch; install it with: pip install torch"
    assert error("train", "--model", "transformer") == message
    assert error("train", "--model", "transformer", "--optimizer", "torch:AdamW") == message
    assert not Path("runs").exists()


def test_divergence_takes_one_line() -> None:
    output = run("train", "--optimizer=sgd", "--lr=1e30", "--clip-norm=0", "--epochs=1", "--out=run", status=2)
    assert "error: the training diverged at step" in output.splitlines()[-1]
    for option in ("--lr=1e300", "--weight-decay=1e300"):
        output = run("train", option, "--epochs=1", f"--out={option}", status=2)
        assert "the optimizer cannot take step" in output.splitlines()[-1]


@pytest.mark.parametrize("option", ["--epochs=0", "--seed=-1", "--clip-norm=-1", "--task=guess", "--lr=-1"])
def test_values_out_of_range_name_the_option(option: str) -> None:
    assert option.partition("=")[0] in run("train", option, status=2)


def test_info_shows_every_fact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastopt.environment.openmp_runtimes", lambda: ["/a/libgomp.so"])
    output = run("info")
    for name in fastopt.info():
        assert name.replace("_", " ") in output
    assert fastopt.isa() in output


def test_info_shows_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastopt.environment.openmp_runtimes", lambda: ["/a/libgomp.so", "/b/libiomp5.so"])
    assert "warning: 2 OpenMP runtimes are loaded in this process (/a/libgomp.so, /b/libiomp5.so)" in run("info")


def test_version() -> None:
    assert run("--version") == f"fastopt {fastopt.__version__}\n"


def in_new_process(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


def test_library_imports_nothing_of_the_command_line() -> None:
    code = "import sys, fastopt; print(*sys.modules)"
    modules = set(in_new_process(code).stdout.split())
    assert "fastopt" in modules
    assert not modules & {"typer", "rich", "matplotlib", "plotly", "polars", "safetensors", "sklearn", "threadpoolctl"}


def test_what_a_terminal_cannot_show_is_spelled() -> None:
    code = """
import io, sys
sys.stdout = io.TextIOWrapper(sys.stdout.buffer, encoding="ascii", errors="strict")
sys.argv = ["fastopt", "train", "--epochs=1", "--hidden=2", "--out=\\u00e9\\udcff"]
from fastopt.__main__ import main
main()
"""
    process = in_new_process(code)
    assert (process.returncode, process.stderr) == (0, "")
    assert r"All files of the run are in \xe9\udcff/" in process.stdout


@pytest.mark.parametrize(
    "missing", ["typer", "rich", "safetensors", "threadpoolctl", "sklearn", "matplotlib", "polars"]
)
def test_missing_library_is_said_in_one_line(missing: str) -> None:
    code = f"""
import sys
sys.modules[{missing!r}] = None
sys.argv = ["fastopt", "train", "--epochs=1", "--hidden=2"]
from fastopt.__main__ import main
main()
"""
    process = in_new_process(code)
    expected = f"fastopt: the command line needs {missing}; install its libraries with: pip install 'fastopt[cli]'\n"
    assert (process.returncode, process.stderr) == (1, expected)


def test_an_interrupt_while_the_libraries_are_read_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fastopt.cli.app", interrupted)
    with pytest.raises(SystemExit) as error:
        main()
    assert error.value.code == 130
