"""Threads of OpenMP, threads of Python and forked children."""

import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from arrays import BYTES_A_THREAD, Array, bits, fingerprint, nonzero

import fastopt

SIZE = 5 * BYTES_A_THREAD // 8
"""Elements enough for several threads."""

PATIENCE = 60
"""Seconds until something counts as hanging; far beyond what any of it takes."""


def parameters(seed: int = 0) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    return nonzero(rng, SIZE), nonzero(rng, SIZE)


# ---- threads of OpenMP ----


@pytest.mark.parametrize("threads", [1, 2, 5, 64, 1000])
def test_more_threads_than_cores_or_work(threads: int) -> None:
    fastopt.set_num_threads(1)
    w, g = parameters()
    fastopt.Adam(w, clip_norm=1.0).step(g)
    again, _ = parameters()
    fastopt.set_num_threads(threads)
    fastopt.Adam(again, clip_norm=1.0).step(g)
    assert bits([again]) == bits([w])


# ---- threads of Python ----


def test_threads_that_step_the_same_optimizer_take_turns() -> None:
    """Steps with the same gradient commute only if none is lost or torn apart."""
    workers, steps = 3, 20
    w, g = parameters()
    opt = fastopt.Adam(w, weight_decay=0.1, clip_norm=1.0)
    with ThreadPoolExecutor(workers) as pool:
        infos = list(pool.map(lambda _: [opt.step(g) for _ in range(steps)], range(workers)))
    alone, _ = parameters()
    expected = fastopt.Adam(alone, weight_decay=0.1, clip_norm=1.0)
    for _ in range(workers * steps):
        info = expected.step(g)
    assert opt.step_count == workers * steps
    assert fingerprint(opt) == fingerprint(expected)
    assert {each for some in infos for each in some} == {info}


def test_snapshots_are_taken_between_steps() -> None:
    """Never of half a step: each has the bits of that many steps."""
    w = np.zeros(SIZE)
    opt = fastopt.SGD(w, lr=1.0, momentum=0.0)
    stop = threading.Event()

    def keep_stepping() -> None:
        while not stop.wait(1e-4):  # without a pause, nobody else might get the optimizer's lock for long
            opt.step(np.ones(SIZE))

    stepper = threading.Thread(target=keep_stepping)
    stepper.start()
    try:
        seen = [pickle.loads(pickle.dumps(opt)) for _ in range(10)]
    finally:
        stop.set()
        stepper.join(PATIENCE)
    for each in seen:
        (copied,) = each.param_groups[0]["params"]
        assert np.ptp(copied) == 0
        assert copied[0] == -each.step_count


def test_a_step_blocks_its_own_optimizer_and_no_other() -> None:
    entered, release = threading.Event(), threading.Event()

    def waiting(step: int) -> float:
        if threading.current_thread() is not threading.main_thread():
            entered.set()
            assert release.wait(PATIENCE)
        return 1.0

    v, w = np.zeros(3), np.zeros(3)
    slow, fast = fastopt.SGD(v, lr=waiting), fastopt.SGD(w, lr=1.0)
    second_done = threading.Event()
    first = threading.Thread(target=lambda: slow.step(np.ones(3)))

    def step_and_say() -> None:
        slow.step(np.ones(3))
        second_done.set()

    second = threading.Thread(target=step_and_say)
    try:
        first.start()
        assert entered.wait(PATIENCE)
        second.start()
        fast.step(np.ones(3))  # while `slow` is in the middle of a step
        assert w.tolist() == [-1.0] * 3
        assert not second_done.wait(0.1)
        assert slow.step_count == 0
    finally:
        release.set()
        first.join(PATIENCE)
        second.join(PATIENCE)
    assert second_done.is_set()
    assert v.tolist() == [-2.0] * 3


def test_a_step_lets_other_threads_of_python_run() -> None:
    """The first element is seen changed while the last is not yet: Python ran in the middle of the pass."""
    fastopt.set_num_threads(1)
    size = 2**21
    w, g = np.zeros(size), np.ones(size)
    opt = fastopt.SGD(w, lr=1.0)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)  # nobody loses the interpreter's lock who does not give it away
    try:
        for attempt in range(200):
            stepper = threading.Thread(target=opt.step, args=[g])
            stepper.start()
            caught = False
            while stepper.is_alive() and not caught:
                time.sleep(1e-4)  # long enough for the other thread to wake up and take it
                caught = float(w[0]) == -1.0 - attempt and float(w[-1]) == -float(attempt)
            stepper.join(PATIENCE)
            if caught:
                return
    finally:
        sys.setswitchinterval(interval)
    raise AssertionError("no step ever let another thread run")


def test_threads_with_an_optimizer_each() -> None:
    def train(seed: int) -> bytes:
        w, g = parameters(seed)
        opt = fastopt.RMSprop(w, momentum=0.9, centered=True)
        for _ in range(20):
            opt.step(g)
        return bits([w])

    one_after_another = [train(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(train, range(4))) == one_after_another


def test_clipping_in_several_threads() -> None:
    def clip(seed: int) -> tuple[float, bytes]:
        _, g = parameters(seed)
        return fastopt.clip_grad_norm(g, 1.0), bits([g])

    one_after_another = [clip(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(clip, range(4))) == one_after_another


# ---- forked children ----

can_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
may_warn_of_threads = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def in_child(work: Callable[[], Any]) -> Any:
    """Return what `work` returns in a forked child; fail if that hangs."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=lambda: sender.send(work()))
    child.start()
    sender.close()
    try:
        assert receiver.poll(PATIENCE), "the child hangs or died"
        result = receiver.recv()
        child.join(PATIENCE)
        assert child.exitcode == 0
        return result
    finally:
        child.kill()
        child.join()


@can_fork
@may_warn_of_threads
@pytest.mark.parametrize("threads", [2, 5])
def test_step_in_a_child_after_the_parent_stepped_in_parallel(threads: int) -> None:
    fastopt.set_num_threads(threads)
    w, g = parameters()
    opt = fastopt.AdamW(w, clip_norm=1.0)
    opt.step(g)

    def step() -> tuple[Any, Any]:
        return opt.step(g), fingerprint(opt)

    in_the_child = in_child(step)
    assert bits([w]) != in_the_child[1][0][0][0][2]  # the child's memory is its own
    assert step() == in_the_child


@can_fork
@may_warn_of_threads
def test_everything_else_in_a_child() -> None:
    fastopt.set_num_threads(3)
    w, g = parameters()
    fastopt.SGD(w).step(g)

    def work() -> Any:
        own, gradient = parameters()
        fastopt.set_num_threads(4)
        opt = fastopt.Adam(own, nonfinite="skip")
        norms = [fastopt.global_norm(gradient), fastopt.clip_grad_norm(gradient, 1.0)]
        fastopt.clip_grad_value(gradient, 1e-3)
        return norms, opt.step(gradient), bits([own])

    assert in_child(work) == work()


@can_fork
@may_warn_of_threads
def test_child_of_a_child() -> None:
    fastopt.set_num_threads(2)
    w, g = parameters()
    opt = fastopt.SGD(w, momentum=0.9)
    opt.step(g)

    def grandchild() -> bytes:
        opt.step(g)
        return bits([w])

    def child() -> Any:
        opt.step(g)
        return in_child(grandchild)

    found = in_child(child)
    opt.step(g)
    opt.step(g)
    assert bits([w]) == found


@can_fork
@may_warn_of_threads
def test_the_parent_goes_on_in_parallel_after_a_fork() -> None:
    fastopt.set_num_threads(2)
    w, g = parameters()
    opt = fastopt.SGD(w, lr=1.0)
    opt.step(g)
    in_child(lambda: opt.step(g))
    opt.step(g)
    start, _ = parameters()
    assert bits([w]) == bits([(start - g) - g])


@can_fork
@may_warn_of_threads
def test_a_pool_of_children() -> None:
    fastopt.set_num_threads(2)
    w, g = parameters()
    fastopt.SGD(w).step(g)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        results = pool.map_async(steps_of_a_worker, range(4)).get(PATIENCE)
    assert results == [steps_of_a_worker(seed) for seed in range(4)]


def steps_of_a_worker(seed: int) -> bytes:
    w, g = parameters(seed)
    opt = fastopt.Adagrad(w)
    for _ in range(3):
        opt.step(g)
    return bits([w])


@can_fork
@may_warn_of_threads
@pytest.mark.parametrize("moment", ["in a schedule", "in the kernel"])
def test_a_fork_while_another_thread_is_in_a_step(moment: str) -> None:
    """In the child nobody is in a step: it steps, takes snapshots and loads them."""
    size = 3 if moment == "in a schedule" else 2**20
    entered, release = threading.Event(), threading.Event()

    def schedule(step: int) -> float:
        if threading.current_thread() is stepper and moment == "in a schedule":
            entered.set()
            release.wait(PATIENCE)
        return 1.0

    w, g = np.zeros(size), np.ones(size)
    opt = fastopt.SGD([w])
    opt.param_groups[0]["lr"] = schedule

    def keep_stepping() -> None:
        while not release.is_set():
            opt.step([g])
            entered.set()

    def work() -> Any:
        release.set()
        before = opt.step_count
        opt.step([g])
        opt.param_groups[0]["lr"] = 1.0
        copied = pickle.loads(pickle.dumps(opt))
        opt.load_state_dict(opt.state_dict())
        copied.step([g])
        return opt.step_count - before, copied.step_count - before

    stepper = threading.Thread(target=keep_stepping)
    stepper.start()
    try:
        assert entered.wait(PATIENCE)
        for _ in range(1 if moment == "in a schedule" else 5):
            assert in_child(work) == (1, 2)
    finally:
        release.set()
        stepper.join(PATIENCE)
    assert w.tolist() == [-float(opt.step_count)] * size


# ---- beside other work ----

BESIDE_OTHERS = """
import sys, time
import numpy as np
import fastopt

p, times = np.ones(int(sys.argv[1]), np.float32), []
if sys.argv[2] != "default":
    fastopt.set_num_threads(int(sys.argv[2]))
opt, g = fastopt.AdamW(p), np.full_like(p, 1e-3)
for _ in range(300):
    begin = time.perf_counter()
    opt.step(g)
    times.append(time.perf_counter() - begin)
print(sorted(times)[150])
"""


@pytest.mark.slow
@pytest.mark.skipif(not fastopt.info()["openmp"] or (os.cpu_count() or 1) < 2, reason="there is one thread")
@pytest.mark.parametrize("size", [100_000, 1_000_000])
def test_a_step_beside_busy_processes_takes_no_longer_than_on_one_thread(size: int) -> None:
    """Regions of several threads would wait whole time slices for one that has no core: ten times as long and more."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        ratios = []
        for _ in range(3):
            one, default = (
                float(subprocess.check_output([sys.executable, "-c", BESIDE_OTHERS, str(size), threads]))
                for threads in ("1", "default")
            )
            ratios.append(default / one)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert min(ratios) < 1.5, ratios
