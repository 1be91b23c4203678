"""What a run shows: a bar on a terminal, lines in a file, a picture and a summary at the end."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from fastopt.training import progress
from fastopt.training.job import Job
from fastopt.training.recipes import configure
from fastopt.training.session import Outcome, run_session


@pytest.fixture
def job(tmp_path: Path) -> Job:
    generator = np.random.default_rng(0)
    samples = generator.normal(size=(50, 3))
    np.savez(tmp_path / "t.npz", X=samples, y=samples[:, 0] > 0)
    return Job(
        configure(
            "mlp",
            {
                "data": str(tmp_path / "t.npz"),
                "hidden": (),
                "optimizer": "sgd",
                "lr": 1.0,
                "schedule": "constant",
                "batch_size": 10,
                "epochs": 25,
                "dtype": "float64",
                "threads": 1,
            },
        )
    )


def shown(job: Job, out: Path, terminal: bool, width: int = 80) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=width, color_system=None)
    assert run_session(job, out, console) is Outcome.COMPLETE
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_bar_fits_the_terminal(job: Job, tmp_path: Path, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "REFRESH_SECONDS", 0.0)
    frames = [
        line for line in re.split(r"[\r\n]|\x1b\[[0-9?]*[a-zA-Z]", shown(job, tmp_path, True, width)) if "lr " in line
    ]
    bars = [frame for frame in frames if "epoch" in frame]
    assert len(bars) >= 100
    for bar in bars[:-1]:
        assert len(bar) <= width
        assert re.search(r"epoch \d+/25 .*loss \S+ lr 1\.0e\+00 \|g\| \S+", bar), bar
        assert ("samples/s" in bar) == (width >= 100)
        assert "…" not in bar
    assert "accuracy" in bars[-2]


def test_lines_tell_the_same_without_a_terminal(job: Job, tmp_path: Path) -> None:
    output = shown(job, tmp_path, terminal=False)
    lines = [line for line in output.splitlines() if line.startswith("epoch ")]
    assert len(lines) == progress.PLAIN_LINES
    for line in lines:
        assert re.fullmatch(r"epoch \d+/25  loss \S+  lr 1\.0e\+00  \|g\| \S+  \S+ samples/s  accuracy [\d.]+%", line)
    assert "\x1b" not in output


def test_summary_adds_up(job: Job, tmp_path: Path) -> None:
    output = shown(job, tmp_path, terminal=False)
    total = float(re.search(r"time +([\d.]+) s for 100 steps", output)[1])  # type: ignore[index]
    parts = re.findall(r"^  (?:forward|backward|optimizer|data, scores, files) +([\d.]+) s", output, re.MULTILINE)
    assert len(parts) == 4
    assert sum(map(float, parts)) == pytest.approx(total, abs=0.03)
    elements = 3 * 2 + 2
    assert f"{100 * 4 * 8 * elements / 1e9:.3g} GB, " in output  # SGD: the norm; gradient, parameter; parameter
    assert re.search(r"held-out accuracy +\d+\.\d%", output)
