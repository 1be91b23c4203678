"""Ctrl-C at any moment: a step was taken and counted, or neither, and the optimizer goes on as if nothing had been."""

import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from arrays import fingerprint
from interrupts import at_every_point

import fastopt

PATIENCE = 60
"""Seconds until something counts as hanging; far beyond what any of it takes."""

STEPS = 2
"""How many are taken after the interrupt."""


def in_another_thread(work: Callable[[], Any]) -> None:
    """Work where a turn that was never given back is not one's own."""
    done = []
    thread = threading.Thread(target=lambda: done.append(work()), daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert done, "hangs or failed"


def gradient(step: int) -> Any:
    return np.array([1.0, -2.0]) * (step + 1)


EDITS: dict[str, Callable[[Any], Any]] = {
    "nothing": lambda group: None,
    "lr": lambda group: group.update(lr=0.5),
    "momentum": lambda group: group.update(momentum=0.9),
    "clip_norm": lambda group: group.update(clip_norm=0.5),
    "amsgrad": lambda group: group.update(amsgrad=True),
}


@pytest.mark.parametrize(
    ("name", "options", "edit"),
    [
        ("Adam", {}, "nothing"),
        ("Adam", {"lr": fastopt.schedules.linear(0.1, 0.0, total=9), "clip_norm": 1.0}, "nothing"),
        ("Adam", {}, "lr"),
        ("Adam", {}, "amsgrad"),
        ("SGD", {"momentum": 0.5, "dampening": 0.5}, "nothing"),
        ("SGD", {"dampening": 0.5}, "momentum"),
        ("SGD", {}, "clip_norm"),
    ],
)
def test_an_interrupt_at_any_point(name: str, options: dict[str, Any], edit: str) -> None:
    """Also in the step that takes notice of an edited option, which must not be forgotten."""

    def made() -> tuple[Any, Any]:
        w = np.ones(2)
        opt = getattr(fastopt, name)([w], **options)
        opt.step([gradient(0)])
        EDITS[edit](opt.param_groups[0])
        return opt, w

    def after(steps: int) -> Any:
        opt, w = made()
        for step in range(1, steps):
            opt.step([gradient(step)])
        return fingerprint(opt), w.tolist()

    taken = {str(after(steps)[1]): steps for steps in (1, 2)}
    expected = after(2 + STEPS)

    def make() -> tuple[Any, Callable[[], Any]]:
        opt, w = made()
        return (opt, w), lambda: opt.step([gradient(1)])

    def go_on(opt: Any) -> bool:
        while opt.step_count < 2 + STEPS:
            opt.step([gradient(opt.step_count)])
        return True

    for (opt, w), interrupt in at_every_point(make):
        assert opt.step_count == taken[str(w.tolist())]
        in_another_thread(partial(go_on, opt))
        assert (fingerprint(opt), w.tolist()) == expected
        del interrupt


def test_an_interrupted_load_changes_nothing_or_all() -> None:
    source = np.ones(2)
    other = fastopt.Adam([source], lr=0.5)
    for step in range(3):
        other.step([gradient(step)])
    snapshot = other.state_dict()

    def make() -> tuple[Any, Callable[[], Any]]:
        opt = fastopt.Adam([np.ones(2)], lr=0.1)
        opt.step([gradient(0)])
        return opt, lambda: opt.load_state_dict(snapshot)

    untouched = fingerprint(make()[0].state_dict())
    for opt, _ in at_every_point(make):
        now = fingerprint(opt.state_dict())
        assert now in (untouched, fingerprint(snapshot))


# ---- real signals ----

SIGNALS = """
import random, signal, threading, time, warnings
import numpy as np
import fastopt
{make}

armed, longest = False, 0.003

def handler(*_):  # lets through one interrupt a round
    global armed
    if armed:
        armed = False
        raise KeyboardInterrupt

def send():
    while not stop.is_set():
        time.sleep(random.random() * longest)
        signal.pthread_kill(main, signal.SIGINT)

def rounds(step, counts, param, signals):
    global armed, longest
    begin = time.perf_counter()
    step()
    longest = 2 * (time.perf_counter() - begin) + 0.001  # so that all of a step is met
    for _ in range(signals):
        try:
            armed = True
            while armed:
                step()
        except KeyboardInterrupt:
            pass
        numbers = [-float(param().min()), -float(param().max()), *counts()]
        assert len(set(numbers)) == 1, numbers
    step()
    assert [-float(param()[0]), counts()[0]] == [numbers[0] + 1] * 2, (numbers, -float(param()[0]), counts())

signal.signal(signal.SIGINT, handler)
main, stop = threading.main_thread().ident, threading.Event()
sender = threading.Thread(target=send)
sender.start()
try:
    for size in (2, 3_000_000):  # mostly between the lines of Python, and mostly in the kernel
        work(size)
finally:
    stop.set()
    sender.join()
print("fine")
"""

OF_ARRAYS = """
def work(size):
    w, g = np.zeros(size, np.float32), np.ones(size, np.float32)
    opt = fastopt.RMSprop([w], lr=1.0, alpha=0.0, eps=0.0)  # one a step, exactly
    counts = lambda: [opt.step_count, opt.state_dict()["state"].get(0, {"step": 0})["step"]]
    rounds(lambda: opt.step([g]), counts, lambda: w, 30)
"""

OF_TENSORS = """
import torch, fastopt.torch

def work(size):
    for kind in ("plain", "strided", "in backward", "strided, in backward"):
        param = torch.nn.Parameter(torch.zeros(2 * size)[::2] if "strided" in kind else torch.zeros(size))
        opt = fastopt.torch.RMSprop([param], lr=1.0, alpha=0.0, eps=0.0)
        ones = torch.ones(size)
        if "backward" in kind:
            fastopt.torch.step_in_backward(opt)

        def step():
            if "backward" in kind:
                param.grad = None  # (an interrupt may have come before the step)
                param.backward(ones)
            else:
                param.grad = ones
                opt.step()

        def counts():
            steps = float(opt.state[param].get("step", 0))
            return [steps] if "backward" in kind else [steps, opt.step_count]

        rounds(step, counts, param.detach, 15)
"""


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="this platform cannot signal a thread")
@pytest.mark.parametrize("make", [OF_ARRAYS, OF_TENSORS], ids=["numpy", "torch"])
def test_real_signals_at_random_moments(make: str) -> None:
    if "torch" in make:
        pytest.importorskip("torch")
    run = subprocess.run(
        [sys.executable, "-c", SIGNALS.format(make=make)], capture_output=True, text=True, timeout=300, check=False
    )
    assert (run.returncode, run.stdout) == (0, "fine\n"), run.stderr


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="this platform cannot signal a thread")
def test_a_signal_handler_may_look_at_the_optimizer_whose_step_it_interrupts() -> None:
    """Not step, though: that is an error, which comes out of the step that was interrupted."""
    seen: list[Any] = []

    def handler(*_: Any) -> None:
        seen.append(opt.state_dict()["step_count"])
        if len(seen) == 2:
            opt.step([np.ones(2)])

    def schedule(step: int) -> float:
        signal.raise_signal(signal.SIGUSR1)
        return 1.0

    w = np.zeros(2)
    opt = fastopt.SGD([w], lr=1.0)
    opt.param_groups[0]["lr"] = schedule
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        opt.step([np.ones(2)])
        with pytest.raises(RuntimeError, match=r"^a step within a step of the same optimizer"):
            opt.step([np.ones(2)])
        opt.step([np.ones(2)])
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert seen == [0, 1, 1]
    assert opt.step_count == 2
    assert w.tolist() == [-2.0] * 2
