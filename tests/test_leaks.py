"""Nothing grows: neither with the number of steps, nor, during a step, with the parameters."""

import copy
import ctypes
import gc
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import pytest
from cases import Case, first_case_of_each_rule, warmup
from interpreter import said

import fastopt


class MallocInfo(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    NAMES = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_: ClassVar = [(name, ctypes.c_size_t) for name in NAMES.split()]


mallinfo = getattr(ctypes.CDLL(None), "mallinfo2", None)
if mallinfo is not None:
    mallinfo.restype = MallocInfo


def allocated_in_c() -> int:
    """Bytes that the data of arrays and the C code hold at present, where glibc tells."""
    if mallinfo is None:
        return 0
    info = mallinfo()
    return int(info.uordblks) + int(info.hblkhd)


@contextmanager
def traced() -> Iterator[None]:
    """Let tracemalloc see every allocation of Python and NumPy."""
    gc.collect()
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()


ATTEMPTS = 6
"""Of a measurement, of which the least counts: a leak is there each time, what other threads of the test runner
allocate meanwhile is not."""


def assert_steady(work: Callable[[], object], times: int) -> None:
    """Assert that calling `work` leaves nothing behind, neither in Python nor in C."""

    def allocated() -> tuple[int, int]:
        gc.collect()  # the interpreter's free lists too
        return tracemalloc.get_traced_memory()[0], allocated_in_c()

    for _ in range(times // 10):
        work()
    with traced():  # which is slow
        for _ in range(20):
            work()
        growth = []
        for _ in range(ATTEMPTS):
            before, _ = allocated()
            for _ in range(100):
                work()
            after, _ = allocated()
            growth.append(after - before)
        assert min(growth) < 1000
    _, before = allocated()
    for _ in range(times):
        work()
    _, after = allocated()
    assert after - before < 2 * times  # a leak would be of some bytes each time


def peak_of(work: Callable[[], object]) -> int:
    """The most that `work` allocates at a time, in bytes, as Python and NumPy see it."""
    work()  # what is allocated once
    peaks = []
    with traced():
        for _ in range(ATTEMPTS):
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            work()
            peaks.append(tracemalloc.get_traced_memory()[1] - before)
    return min(peaks)


@first_case_of_each_rule
def test_a_step_allocates_nothing_that_grows_with_the_parameters(case: Case) -> None:
    peaks = []
    for size in (100, 1_000_000):
        opt = case.make(np.ones(size), clip_norm=1.0, nonfinite="raise")
        g = np.ones(size)
        peaks.append(peak_of(lambda opt=opt, g=g: opt.step(g, zero_grad=False)))  # type: ignore[misc]
    small, large = peaks
    assert large <= small + 256


def test_clipping_allocates_little_beside_a_number_a_block() -> None:
    g = np.ones(1_000_000)
    for work in (lambda: fastopt.global_norm(g), lambda: fastopt.clip_grad_norm(g, 1.0)):
        assert peak_of(work) < 10_000


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_step_allocates_nothing_outside_of_pythons_sight() -> None:
    """Parameter, gradient and states have 8 MB each; a copy of any would show in the peak of resident memory."""
    before = """
import numpy as np
peak = lambda: int(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0])
w, g = np.ones(2**20), np.ones(2**20)
opt = fastopt.Adam(w, clip_norm=1.0, nonfinite="raise")
opt.step(g)
first = peak()
for _ in range(3):
    opt.step(g, zero_grad=True)
"""
    kilobytes = said("peak() - first", before)
    assert kilobytes < 1000


@pytest.mark.parametrize("clipping", [{}, {"clip_norm": 1.0, "clip_value": 0.5, "nonfinite": "skip"}])
def test_ten_thousand_steps(clipping: dict[str, Any]) -> None:
    params = {"w": np.ones((10, 10)), "b": [np.ones(3), np.ones((), "float64")]}
    grads = {"w": np.ones((10, 10)), "b": [np.ones(3), None]}
    opt = fastopt.AdamW(params, lr=warmup, **clipping)
    assert_steady(lambda: opt.step(grads), 10_000)
    assert opt.step_count > 11_000


def test_a_thousand_optimizers() -> None:
    """Made and dropped; with snapshots, groups, refused steps and clipping outside of a step."""
    w, g, wrong = np.ones(50), np.ones(50), np.ones(51)

    def live() -> None:
        opt = fastopt.RMSprop([w], momentum=0.9, centered=True)
        opt.step([g])
        opt.load_state_dict(opt.state_dict())
        opt.add_param_group({"params": np.ones(3)})
        copy.deepcopy(opt).step([g, None])
        fastopt.clip_grad_norm([g], 1.0)
        fastopt.global_norm([g, w])
        for bad in ([wrong, None], [w, None], [g, g, g], None):
            with pytest.raises((TypeError, ValueError)):
                opt.step(bad)

    assert_steady(live, 1000)


def test_arrays_are_let_go_with_the_optimizer() -> None:
    w = np.ones(10)
    references = sys.getrefcount(w)
    opt = fastopt.SGD({"w": w}, momentum=0.9)
    g = np.ones(10)
    gradient_references = sys.getrefcount(g)
    opt.step({"w": g})
    assert sys.getrefcount(g) == gradient_references, "a gradient is held after the step"
    del opt
    gc.collect()
    assert sys.getrefcount(w) == references


def test_a_refused_step_holds_nothing() -> None:
    opt = fastopt.SGD([np.ones(10), np.ones(3)])
    g = np.ones(10)
    references = sys.getrefcount(g)
    for _ in range(3):
        with pytest.raises(ValueError, match="shape"):
            opt.step([g, np.ones(4)])
    assert sys.getrefcount(g) == references
