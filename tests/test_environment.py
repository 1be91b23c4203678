"""Instruction sets, numbers of threads, and what an import brings along."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arrays import CSRC
from interpreter import python, said

import fastopt
from fastopt import _core, environment

EXTRAS = ("torch", "typer", "rich", "matplotlib", "plotly", "safetensors", "sklearn", "scipy", "hypothesis")


# ---- the import ----


def test_the_import_needs_numpy_alone() -> None:
    found = said("sorted(sys.modules)")
    assert "numpy" in found
    assert not {name.partition(".")[0] for name in found} & set(EXTRAS)


NEW = "sorted(set(sys.modules) - before)"
LONG = {"concurrent.futures", "dataclasses", "importlib.metadata", "pathlib", "pkgutil"}


def imported(statement: str, first: str) -> set[str]:
    """What a statement imports beside what another one has."""
    code = f"import json, sys, {first}\nbefore = set(sys.modules)\n{statement}\nprint(json.dumps({NEW}))"
    done = python(code)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


def test_the_import_is_quick() -> None:
    """It takes a few modules, none of which the standard library has to build up; an optimizer brings the rest."""
    found = imported("import fastopt", "numpy")
    assert not found & LONG
    assert not {name for name in found if name.startswith(("fastopt.methods", "fastopt.backends", "fastopt.engine"))}
    assert len({name for name in found if name.startswith("fastopt")}) < 12
    later = imported("fastopt.AdamW", "fastopt")
    assert {"fastopt.optimizers", "fastopt.methods.adam"} <= later
    assert not later & LONG - {"pkgutil"}


@pytest.mark.parametrize(("face", "beside"), [("fastopt", "numpy"), ("fastopt.torch", "torch")])
def test_the_import_makes_no_class_before_it_is_asked_for(face: str, beside: str) -> None:
    pytest.importorskip(beside)
    assert not {name for name in imported(f"import {face}", beside) if name.startswith("fastopt.methods.")} - {
        "fastopt.methods.base"
    }
    made = f"[name for name in {face}.optimizers.registry() if name in before]"
    assert said(made, f"import {face}; {face}.AdamW; before = {{*vars({face}.optimizers)}}") == ["AdamW"]
    assert said(f"{face}.AdamW is {face}.optimizers.registry()['AdamW']", f"import {face}")


@pytest.mark.parametrize("face", ["fastopt", "fastopt.torch"])
def test_what_is_made_later_is_there_from_the_beginning(face: str) -> None:
    if face == "fastopt.torch":
        pytest.importorskip("torch")
    known = set(fastopt.optimizers.registry())
    for found in ("dir({0})", "dir({0}.optimizers)", "{0}.__all__", "{0}.optimizers.__all__", "[*there]"):
        before = f"import {face}; there = {{}}; exec('from {face} import *', there)" if "there" in found else ""
        assert known <= set(said(found.format(face), before or f"import {face}")), found
    absent = f"import {face}\ntry: {face}.Adamw\nexcept AttributeError as error: message = str(error)"
    assert said("message", absent) == f"module '{face}' has no attribute 'Adamw'"
    assert said("hasattr(fastopt, 'nothing') or 'fastopt.optimizers' in sys.modules") is False


def test_threads_that_ask_at_once_get_one_class() -> None:
    before = """
import threading
asked, barrier = [], threading.Barrier(4)
def ask():
    barrier.wait()
    asked.append(fastopt.Adam)
threads = [threading.Thread(target=ask) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""
    assert said("[len(asked), len(set(asked)), asked[0] is fastopt.Adam]", before) == [4, 1, True]


def test_the_import_warns_of_nothing() -> None:
    done = python("import warnings; warnings.simplefilter('error'); import fastopt")
    assert (done.returncode, done.stderr) == (0, "")


def test_public_names_exist() -> None:
    for name in fastopt.__all__:
        assert getattr(fastopt, name) is not None


# ---- info ----


def test_info() -> None:
    found = said("fastopt.info()")
    assert found == {
        "version": fastopt.__version__,
        "isa": found["available_isas"][0],
        "available_isas": list(fastopt.available_isas()),
        "threads": said("fastopt.get_num_threads()"),  # (here other tests may have asked OpenMP for another number)
        "openmp": _core.has_openmp(),
        "openmp_runtimes": found["openmp_runtimes"],
        "compiler": _core.compiler(),
        "numpy": np.__version__,
        "python": found["python"],
        "platform": found["platform"],
    }
    assert found["compiler"].startswith(("gcc", "clang"))
    if sys.platform == "linux" and _core.has_openmp():
        assert len(found["openmp_runtimes"]) == 1
        assert "omp" in found["openmp_runtimes"][0]


def test_info_warns_of_two_openmp_runtimes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "openmp_runtimes", lambda: ["/a/libgomp.so.1", "/b/libomp.so"])
    with pytest.warns(RuntimeWarning, match=r"^2 OpenMP runtimes .*/a/libgomp.so.1, /b/libomp.so"):
        found = fastopt.info()
    assert found["openmp_runtimes"] == ["/a/libgomp.so.1", "/b/libomp.so"]


# ---- instruction sets ----


def test_available_isas() -> None:
    found = fastopt.available_isas()
    assert found[-1] == "portable"
    assert len(set(found)) == len(found)
    names = (CSRC.parent / "CMakeLists.txt").read_text()
    assert all(f"fastopt_isa({name}" in names for name in found)


@pytest.mark.parametrize("name", fastopt.available_isas())
def test_isa_of_the_environment(name: str) -> None:
    assert said("fastopt.isa()", FASTOPT_ISA=name) == name


@pytest.mark.parametrize("name", fastopt.available_isas())
def test_use_isa(name: str) -> None:
    _core.use_isa(name)
    assert fastopt.isa() == name
    w = np.ones(3)
    fastopt.SGD(w, lr=1.0).step(np.ones(3))
    assert not w.any()


def test_best_isa_by_default() -> None:
    assert said("[fastopt.isa(), fastopt.available_isas()[0]]", FASTOPT_ISA="") == [fastopt.available_isas()[0]] * 2


@pytest.mark.parametrize("name", ["x86_v9", "PORTABLE", " portable", "Ω"])
def test_unknown_isa(name: str) -> None:
    before = fastopt.isa()
    with pytest.raises(ValueError, match=rf"^instruction set '{name}' is not available here; there are .*portable"):
        _core.use_isa(name)
    assert fastopt.isa() == before
    done = python("import fastopt", FASTOPT_ISA=name)
    assert done.returncode == 1
    assert f"ImportError: FASTOPT_ISA: instruction set {name!r} is not available here" in done.stderr


# ---- threads ----


def test_threads_of_the_environment() -> None:
    assert said("fastopt.get_num_threads()", FASTOPT_NUM_THREADS="3") == 3
    assert said("fastopt.get_num_threads()", FASTOPT_NUM_THREADS="3", OMP_NUM_THREADS="5") == 3
    assert said("fastopt.get_num_threads()", FASTOPT_NUM_THREADS="") == said("fastopt.get_num_threads()")


@pytest.mark.skipif(not _core.has_openmp(), reason="no OpenMP runtime")
def test_threads_of_openmp() -> None:
    assert said("fastopt.get_num_threads()", OMP_NUM_THREADS="5") == 5


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", "1e3", "²", "99999999999999999999"])
def test_bad_number_of_threads_in_the_environment(value: str) -> None:
    done = python("import fastopt", FASTOPT_NUM_THREADS=value)
    assert done.returncode == 1
    assert "ImportError: FASTOPT_NUM_THREADS: expected an integer" in done.stderr
    assert repr(value) in done.stderr


@pytest.mark.parametrize("threads", [1, 2, 7, np.int64(3)])
def test_set_num_threads(threads: int) -> None:
    fastopt.set_num_threads(threads)
    assert fastopt.get_num_threads() == threads
    assert type(fastopt.get_num_threads()) is int


@pytest.mark.parametrize("threads", [0, -1, 2**31, 10**30])
def test_number_of_threads_out_of_bounds(threads: int) -> None:
    before = fastopt.get_num_threads()
    with pytest.raises(ValueError, match=rf"^threads: expected .*, got {threads}$"):
        fastopt.set_num_threads(threads)
    assert fastopt.get_num_threads() == before


@pytest.mark.parametrize("threads", [1.0, "2", True, [2]])
def test_number_of_threads_that_is_no_integer(threads: Any) -> None:
    before = fastopt.get_num_threads()
    with pytest.raises(TypeError, match=r"^threads: expected an integer, got"):
        fastopt.set_num_threads(threads)
    assert fastopt.get_num_threads() == before


@pytest.mark.skipif(not _core.has_openmp(), reason="no OpenMP runtime")
def test_a_limit_on_openmp_is_heeded_unless_a_number_was_asked_for() -> None:
    limits = pytest.importorskip("threadpoolctl").threadpool_limits
    fastopt.set_num_threads(None)
    before = fastopt.get_num_threads()
    for threads in (1, 3):
        with limits(threads, user_api="openmp"):
            assert fastopt.get_num_threads() == threads
    assert fastopt.get_num_threads() == before
    fastopt.set_num_threads(2)
    with limits(1, user_api="openmp"):
        assert fastopt.get_num_threads() == 2
    fastopt.set_num_threads(None)
    assert fastopt.get_num_threads() == before
    assert environment.chosen_threads() is None


def test_a_training_leaves_no_number_of_threads_behind(tmp_path: Path) -> None:
    """Not even the number that it found: nobody had asked for that."""
    pytest.importorskip("typer")
    (tmp_path / "rows.csv").write_text("\n".join(["x,y", *(f"{k},{k % 2}" for k in range(40))]))
    run = f"""
from fastopt import environment
from fastopt.__main__ import main
sys.argv = ["fastopt", "train", "--data", {str(tmp_path / "rows.csv")!r}, "--target", "y", "--epochs", "1",
            "--threads", "1", "--out", {str(tmp_path / "run")!r}]
sys.stdout, stdout = open(os.devnull, "w"), sys.stdout
try:
    main()
except SystemExit as error:
    assert not error.code, error.code
finally:
    sys.stdout = stdout
"""
    assert said("environment.chosen_threads()", "import os" + run) is None
    assert (tmp_path / "run").exists()


def test_threads_without_an_openmp_runtime_are_warned_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_core, "has_openmp", lambda: False)
    environment._warn_of_one_thread.cache_clear()
    fastopt.set_num_threads(1)
    with pytest.warns(RuntimeWarning, match="no OpenMP runtime was found: every step runs on one thread") as caught:
        fastopt.set_num_threads(4)
    fastopt.set_num_threads(2)  # without a warning, which would be an error here
    assert caught[0].filename == __file__
    environment._warn_of_one_thread.cache_clear()
    monkeypatch.setenv("FASTOPT_NUM_THREADS", "3")
    with pytest.warns(RuntimeWarning, match="no OpenMP runtime"):
        assert environment._threads_of_environment() == 3
