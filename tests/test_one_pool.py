"""One pool of threads in a process: fastopt takes those of the OpenMP runtime that is there, whoever brought it."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from interpreter import python
from native import run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")

WORK = """
import json, os, pathlib, sys
import numpy as np
found = []
def count():
    found.append(len(os.listdir("/proc/self/task")))
def kmeans():
    from sklearn.cluster import KMeans
    KMeans(2, n_init=1).fit(np.random.default_rng(0).normal(size=(4096, 8)))
def torch_sum():
    import torch
    torch.ones(2**22).mul_(2)
def step():
    import fastopt
    w = np.ones(2**20)
    fastopt.AdamW(w).step(w.copy())
def torch_step():
    import torch, fastopt.torch
    w = torch.ones(2**20, requires_grad=True)
    w.grad = torch.ones(2**20)
    fastopt.torch.AdamW([w]).step()
def runtimes():
    import fastopt
    found.append(fastopt.info()["openmp_runtimes"])
"""

OTHERS = [pytest.param("torch_sum()", id="torch"), pytest.param("kmeans()", id="scikit-learn")]


def found(code: str, **variables: str) -> list[Any]:
    """What a fresh process has put into the list of that name."""
    limits = {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "1", **variables}
    done = python(f"{WORK}\n{code}\nprint(json.dumps(found))", **limits)
    assert (done.returncode, done.stderr) == (0, "")
    return list(json.loads(done.stdout))


def needs(work: str) -> None:
    pytest.importorskip("torch" if "torch" in work else "sklearn")


def test_alone_a_step_has_the_threads_that_openmp_is_told() -> None:
    before, after = found("import fastopt; count(); step(); count()")
    assert (before, after) == (1, 2)


@pytest.mark.parametrize("imported", ["", "import fastopt"])
@pytest.mark.parametrize("work", OTHERS)
def test_a_step_shares_the_threads_of_others(work: str, imported: str) -> None:
    """Whichever is imported first; and there is one runtime, so `info` warns of nothing."""
    needs(work)
    before, after, runtimes = found(f"{imported}\n{work}; count(); step(); count(); runtimes()")
    assert before >= 2
    assert after == before
    assert len(runtimes) == 1


def test_a_step_of_torch_shares_the_threads_of_torch_whoever_else_was_there_before() -> None:
    needs("sklearn")
    needs("torch")
    before, after = found("step(); kmeans(); torch_sum(); import fastopt.torch; count(); torch_step(); count()")
    assert after == before


def test_in_a_region_of_somebody_else_a_step_opens_none(tmp_path: Path) -> None:
    """Nested regions have one thread, unless OpenMP is told otherwise."""
    source, library = tmp_path / "region.c", tmp_path / "region.so"
    source.write_text("""
        void in_region(void (*body)(void))
        {
        #pragma omp parallel num_threads(2)
        #pragma omp master
            body();
        }
    """)
    run("gcc", "-fopenmp", "-shared", "-fPIC", source, "-o", library)
    before, after = found(f"""
import ctypes
def body():
    count(); step(); count()
callback = ctypes.CFUNCTYPE(None)(body)
ctypes.PyDLL({str(library)!r}).in_region(callback)
""")
    assert after == before


def test_a_limit_that_is_set_before_the_first_step_holds() -> None:
    pytest.importorskip("threadpoolctl")
    before, after = found("""
import fastopt, threadpoolctl
count()
with threadpoolctl.threadpool_limits(1):
    step()
count()
""")
    assert after == before


def test_without_a_runtime_a_step_takes_one_thread(tmp_path: Path) -> None:
    """As in images that have no libgomp: here one without the functions is found in its place."""
    run("gcc", "-shared", "-x", "c", "/dev/null", "-o", tmp_path / "libgomp.so.1")
    before, after, openmp, threads = found(
        """
import fastopt
count(); step(); count()
found += [fastopt.info()["openmp"], fastopt.get_num_threads()]
""",
        LD_LIBRARY_PATH=str(tmp_path),
    )
    assert after == before
    assert (openmp, threads) == (False, 1)


def test_the_core_is_not_linked_to_a_runtime() -> None:
    from fastopt import _core

    needed = run("readelf", "-d", _core.__file__)
    assert "libc.so" in needed
    assert "omp" not in needed
