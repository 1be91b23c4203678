"""Threads, OpenMP, fork and torch.compile: fastopt.torch lives in torch's process as one of its own."""

import json
import subprocess
import sys
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch_cases import assert_equal, nonzero  # noqa: E402

import fastopt.torch  # noqa: E402
from fastopt import environment  # noqa: E402
from fastopt.backends.torch import thread_count  # noqa: E402

PROCESS = """
import json, os, warnings
{imports}
import torch, fastopt, fastopt.torch

def tasks():
    return len(os.listdir("/proc/self/task"))

def step(size=10**6):
    param = torch.ones(size, requires_grad=True)
    param.grad = torch.ones(size)
    opt = fastopt.torch.SGD([param], lr=1.0)
    opt.step()
    assert not param.detach().any()
    return 1

class Steps(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return step()

found = {{}}
torch.set_num_threads(1)
step(), torch.ones(10**6).add_(1)
found["tasks of one thread"] = tasks()
torch.set_num_threads(3)
step(), torch.ones(10**6).add_(1)
found["tasks of three threads"] = tasks()
step(), torch.ones(10**6).add_(1)
found["tasks in the end"] = tasks()
loader = torch.utils.data.DataLoader(Steps(), num_workers=2, batch_size=2, multiprocessing_context="fork")
found["from workers"] = [batch.tolist() for batch in loader]
found["after workers"] = step()
found["runtimes"] = fastopt.info()["openmp_runtimes"]
print(json.dumps(found))
"""


@pytest.mark.parametrize("imports", ["import torch", "import fastopt", "import fastopt.torch, numpy"])
def test_one_pool_of_threads_and_workers_that_do_not_hang(imports: str) -> None:
    """Whichever is imported first; `fastopt.info()` would warn of a second OpenMP runtime."""
    run = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-c", PROCESS.format(imports=imports)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert len(found["runtimes"]) == 1
    # torch's third thread is the step's too, and the other way round.
    assert found["tasks of three threads"] == found["tasks of one thread"] + 2
    assert found["tasks in the end"] == found["tasks of three threads"]
    assert found["from workers"] == [[1, 1]] * 4
    assert found["after workers"] == 1


def test_the_step_takes_torchs_number_of_threads_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_chosen_threads", None)
    before = torch.get_num_threads()
    try:
        for threads in (1, 3, 2):
            torch.set_num_threads(threads)
            assert thread_count() == threads
        fastopt.set_num_threads(5)
        assert thread_count() == 5
    finally:
        torch.set_num_threads(before)


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    results = []
    for threads in (1, 2, 5):
        fastopt.set_num_threads(threads)
        generator = torch.Generator().manual_seed(0)
        params = [nonzero((size,), torch.float32, generator).requires_grad_() for size in (100_001, 7, 65_536)]
        opt = fastopt.torch.AdamW(params, clip_norm=1.0)
        for _ in range(3):
            for param in params:
                param.grad = nonzero(param.shape, torch.float32, generator)
            opt.step()
        results.append((params, opt.last_step))
    assert_equal(results[1], results[0])
    assert_equal(results[2], results[0])


def train(backend: str | None, **options: Any) -> Any:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).double()
    opt = fastopt.torch.AdamW(model.parameters(), lr=fastopt.schedules.linear(0.1, 0.0, total=8), **options)

    def step(x: Any) -> Any:
        opt.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        opt.step()
        return loss

    act = torch.compile(step, backend=backend) if backend else step
    losses = [act(x).detach() for x in nonzero((6, 5, 4), torch.float64, torch.Generator().manual_seed(0))]
    return losses, list(model.parameters()), opt.state_dict()["state"], opt.step_count


# (torch.compile itself looks at the gradient of the loss.)
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor:UserWarning")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_training_step_gives_the_same_bits(backend: str) -> None:
    """The optimizer's step breaks the graph; what is around it is compiled."""
    torch._dynamo.reset()
    expected = train(backend=None, clip_norm=0.1)
    assert_equal(train(backend, clip_norm=0.1), expected)
    counters = torch._dynamo.utils.counters
    assert counters["frames"]["ok"] >= 1
    assert counters["stats"]["unique_graphs"] <= 4, "the step is compiled anew each time"


def test_a_step_that_is_compiled_itself() -> None:
    torch._dynamo.reset()
    params = [torch.ones(5, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    for param, compiled in zip(params, (False, True), strict=True):
        opt = fastopt.torch.AdamW([param], lr=0.1)
        step = torch.compile(opt.step, backend="eager") if compiled else opt.step
        for _ in range(3):
            param.grad = param.detach().square()
            step()
        assert opt.step_count == 3
    assert_equal(params[1], params[0])
