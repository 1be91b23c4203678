"""Accelerate takes fastopt's optimizers as it takes torch's."""

import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
accelerate = pytest.importorskip("accelerate")

from torch_cases import NAMES, assert_equal, nonzero, ours, theirs  # noqa: E402

EXAMPLE = Path(__file__).parents[1] / "examples" / "torch_accelerate.py"


@pytest.fixture(autouse=True)
def fresh_accelerate() -> None:
    """Forget the options of the process's last `Accelerator`."""
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


def test_the_example_learns() -> None:
    run = subprocess.run([sys.executable, str(EXAMPLE)], capture_output=True, text=True, timeout=300, check=True)
    losses = [float(line.split()[-1]) for line in run.stdout.splitlines()]
    assert len(losses) == 20
    assert losses[-1] < losses[0] / 10


def test_the_example_gives_torchs_losses() -> None:
    train: Any = runpy.run_path(str(EXAMPLE))["train"]
    assert train() == pytest.approx(train(torch.optim.AdamW), rel=1e-4)


def prepared(cls: Any, accelerator: Any) -> Any:
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3)
    opt = cls(model.parameters(), lr=0.01)
    return accelerator.prepare(model, opt, torch.optim.lr_scheduler.StepLR(opt, 2, 0.5))


def step_on(accelerator: Any, parts: Any, batches: Any) -> None:
    model, opt, scheduler = parts
    for x in batches:
        opt.zero_grad()
        accelerator.backward(model(x).square().mean())
        opt.step()
        scheduler.step()


@pytest.mark.parametrize("name", NAMES)
def test_the_state_goes_through_a_checkpoint_of_accelerate(name: str, tmp_path: Path) -> None:
    batches = nonzero((6, 5, 4), torch.float32, torch.Generator().manual_seed(0))
    results = []
    for cls in (ours(name), theirs(name)):
        accelerator = accelerate.Accelerator(cpu=True)
        through = prepared(cls, accelerator)
        step_on(accelerator, through, batches[:3])
        accelerator.save_state(str(tmp_path / cls.__module__))
        step_on(accelerator, through, batches[3:])
        expected = [param.detach().clone() for param in through[0].parameters()]
        accelerator.load_state(str(tmp_path / cls.__module__))
        step_on(accelerator, through, batches[3:])
        assert_equal(list(through[0].parameters()), expected)
        results.append(expected)
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("name", NAMES)
def test_mixed_precision(name: str) -> None:
    batches = nonzero((4, 5, 4), torch.float32, torch.Generator().manual_seed(0))
    results = []
    for cls in (ours(name), theirs(name)):
        accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16")
        parts = prepared(cls, accelerator)
        step_on(accelerator, parts, batches)
        results.append(list(parts[0].parameters()))
    torch.testing.assert_close(results[0], results[1])
