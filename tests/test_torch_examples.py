"""The examples for torch's users run, and learn."""

import re
import runpy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize(
    ("name", "library", "times"), [("lightning", "lightning", 10), ("transformers", "transformers", 5)]
)
def test_the_loss_falls(name: str, library: str, times: int) -> None:
    if find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    command = [sys.executable, "-W", "ignore", str(EXAMPLES / f"torch_{name}.py")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    losses = [float(line.split()[-1]) for line in run.stdout.splitlines()]
    assert len(losses) >= 12
    assert losses[-1] < losses[0] / times


def test_the_poles_stay_up_for_longer() -> None:
    train: Any = runpy.run_path(str(EXAMPLES / "torch_policy.py"))["train"]
    train.__globals__["UPDATES"] = 120
    lengths = [length for ended in train() for length in ended]
    first = sum(lengths[:50]) / 50
    assert max(sum(lengths[start : start + 30]) / 30 for start in range(0, len(lengths), 10)) > 2.5 * first


def test_a_model_learns_with_its_optimizer_on_the_host() -> None:
    train: Any = runpy.run_path(str(EXAMPLES / "torch_offload.py"))["main"]
    assert train(100) < 0.05


def test_the_documentation_says_which_of_torchs_classes_are_not_there() -> None:
    import fastopt.torch

    text = (EXAMPLES.parent / "docs" / "torch.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"`(\w+)`", text.partition("Not there: ")[2].partition(" of torch;")[0]))
    classes = {
        name
        for name, value in vars(torch.optim).items()
        if isinstance(value, type) and issubclass(value, torch.optim.Optimizer) and value is not torch.optim.Optimizer
    }
    assert listed == {name for name in classes if not hasattr(fastopt.torch, name)}
