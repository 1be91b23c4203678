"""Threads, OpenMP, fork and torch.compile: fastopt.torch lives in torch's process as one of its own."""

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch_cases import assert_equal, nonzero  # noqa: E402

import fastopt.torch  # noqa: E402
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


def test_the_step_takes_torchs_number_of_threads_unless_told_otherwise() -> None:
    fastopt.set_num_threads(None)
    before = torch.get_num_threads()
    try:
        for threads in (1, 3, 2):
            torch.set_num_threads(threads)
            assert thread_count() == -threads  # at most so many
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


# ---- threads of Python ----


def in_threads(workers: int, work: Any) -> None:
    with ThreadPoolExecutor(workers) as pool:
        for done in [pool.submit(work, worker) for worker in range(workers)]:
            done.result()


@pytest.mark.parametrize("size", [5, 2_000_000])
def test_threads_that_step_one_optimizer_each_with_fresh_gradients(size: int) -> None:
    """No step is lost or torn apart, whoever's gradient it takes."""
    workers, steps = 3, 15
    param = torch.zeros(size, requires_grad=True)
    opt = fastopt.torch.SGD([param], lr=1.0)

    def work(_: int) -> None:
        for _ in range(steps):
            param.grad = torch.ones(size)
            opt.step()

    in_threads(workers, work)
    assert opt.step_count == workers * steps
    assert (param == -float(workers * steps)).all()


def test_what_a_step_reads_is_its_own_whatever_other_threads_do() -> None:
    """With the same gradient of zeros nothing changes but the number of steps."""
    size = 2_000_000
    param = torch.full((size,), 1000.0, requires_grad=True)
    param.grad = torch.zeros(size)
    opt = fastopt.torch.AdamW([param], weight_decay=0.0)
    in_threads(3, lambda _: [opt.step() for _ in range(15)])
    assert (param == 1000).all()
    assert opt.state[param]["step"].item() == opt.step_count == 45


def test_gradients_that_another_thread_replaces_and_drops_between_steps() -> None:
    size = 100_000
    params = [torch.zeros(size, requires_grad=True) for _ in range(3)]
    opt = fastopt.torch.SGD(params, lr=1.0, momentum=0.9)
    stop = threading.Event()

    def replace() -> None:
        while not stop.is_set():
            for param in params:
                param.grad = None
                param.grad = torch.zeros(size)  # soon to be freed

    thread = threading.Thread(target=replace)
    thread.start()
    try:
        for _ in range(100):
            opt.step()
    finally:
        stop.set()
        thread.join()
    assert opt.step_count == 100
    assert not any(param.detach().any() for param in params)


def test_a_step_blocks_its_own_optimizer_and_no_other() -> None:
    entered, release, done = threading.Event(), threading.Event(), threading.Event()

    def waiting(step: int) -> float:
        if threading.current_thread() is first:
            entered.set()
            release.wait(60)
        return 1.0

    params = [torch.zeros(3, requires_grad=True) for _ in range(2)]
    slow, fast = fastopt.torch.SGD(params[:1]), fastopt.torch.SGD(params[1:], lr=1.0)
    slow.param_groups[0]["lr"] = waiting
    for param in params:
        param.grad = torch.ones(3)

    def step_and_say() -> None:
        slow.step()
        done.set()

    first, second = threading.Thread(target=slow.step), threading.Thread(target=step_and_say)
    try:
        first.start()
        assert entered.wait(60)
        second.start()
        fast.step()  # while `slow` is in the middle of a step
        assert not done.wait(0.1)
        assert slow.step_count == 0
    finally:
        release.set()
        first.join(60)
        second.join(60)
    assert done.is_set()
    assert [param.tolist() for param in params] == [[-2.0] * 3, [-1.0] * 3]


def test_threads_with_an_optimizer_each() -> None:
    def trained(seed: int) -> Any:
        gen = torch.Generator().manual_seed(seed)
        param = nonzero((100_000,), torch.float32, gen).requires_grad_()
        opt = fastopt.torch.AdamW([param], lr=0.1 * (seed + 1), clip_norm=1.0)
        for _ in range(5):
            param.grad = nonzero((100_000,), torch.float32, gen)
            opt.step()
        return param

    expected = [trained(seed) for seed in range(4)]
    found: dict[int, Any] = {}
    in_threads(4, lambda seed: found.update({seed: trained(seed)}))
    assert_equal([found[seed] for seed in range(4)], expected)


# ---- forked children ----

FORK = """
import os, pickle, signal, sys, threading, warnings
warnings.simplefilter("ignore")
import torch, fastopt.torch

torch.set_num_threads(2)
params = [torch.zeros(1000, requires_grad=True) for _ in range(400)]
opt = fastopt.torch.SGD(params, lr=1.0)
for param in params:
    param.grad = torch.ones(1000)
opt.step()
entered, release = threading.Event(), threading.Event()

def schedule(step):
    if threading.current_thread() is not threading.main_thread():
        entered.set()
        release.wait()
    return 1.0

opt.param_groups[0]["lr"] = schedule
stepper = threading.Thread(target=opt.step)
stepper.start()
entered.wait()
child = os.fork()
if not child:
    status = 1
    try:
        signal.alarm(100)  # seconds until a child that hangs is killed
        release.set()
        opt.step()
        opt.param_groups[0]["lr"] = 1.0
        again = pickle.loads(pickle.dumps(opt))
        assert (opt.step_count, again.step_count) == (2, 2)
        assert torch.ones(4_000_000).add_(1).sum() == 8_000_000
        assert all((param == -2).all() for param in params)
        status = 0
    finally:
        os._exit(status)
_, status = os.waitpid(child, 0)
release.set()
stepper.join()
assert all((param == -2).all() for param in params)
print(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
def test_a_fork_while_another_thread_is_in_a_step_that_had_been_parallel() -> None:
    """The child steps, pickles, and runs a large operation of torch's own on the same OpenMP runtime."""
    run = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=300, check=False)
    assert (run.returncode, run.stdout) == (0, "0\n"), run.stderr


FORK_BEFORE_TORCH_WORKED = """
import os, signal, warnings
warnings.simplefilter("ignore")
import torch, fastopt, fastopt.torch

torch.set_num_threads(2)
fastopt.set_num_threads(2)
params = [torch.nn.Parameter(torch.zeros(1000)) for _ in range(400)]
opt = fastopt.torch.SGD(params, lr=1.0)
for param in params:
    param.grad = torch.ones(1000)
opt.step()
child = os.fork()
if not child:
    signal.alarm(100)
    os._exit(int(torch.ones(4_000_000).add_(1).sum() != 8_000_000))
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
def test_a_fork_before_torch_itself_has_worked() -> None:
    """It would take the threads that were set when it begins to, in the child."""
    code = FORK_BEFORE_TORCH_WORKED
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert (run.returncode, run.stdout) == (0, "0\n"), run.stderr
