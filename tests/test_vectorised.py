"""The compiler's own word that every rule's loop runs on full vectors, for every dtype and instruction set."""

import re
import shutil
from dataclasses import dataclass
from typing import Any

import native
import pytest
from arrays import CSRC
from native import SUFFIXES

from fastopt import _core

VECTOR_BYTES = {"x86_v4": 64, "x86_v3": 32}
"""Of a register; 16 where not said."""

LOOPS = [f"step_{rule}" for rule in _core.RULES] + ["scale", "clamp"]

pytestmark = pytest.mark.skipif(not shutil.which("gcc"), reason="asks gcc how it compiled the kernels")


@dataclass(frozen=True)
class Compilation:
    """What became of kernels.c, compiled with the build's flags for one instruction set."""

    isa: str
    notes: dict[str, str]
    """What the vectoriser said of each function."""
    assembly: dict[str, str]
    """Each function's instructions."""


def by_heading(text: str, heading: str) -> dict[str, str]:
    parts = re.split(heading, text, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def choices() -> list[Any]:
    """The best instruction set; the others take as long each."""
    best = _core.available_isas()[0]
    return [pytest.param(isa, marks=() if isa == best else pytest.mark.slow) for isa in native.isas()]


@pytest.fixture(scope="module", params=choices())
def compilation(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Compilation:
    isa: str = request.param
    folder = tmp_path_factory.mktemp(isa)
    report, assembly = folder / "report.txt", folder / "kernels.s"
    # Functions that come out alike are kept apart, so that each has its own report.
    options = ["-fno-ipa-icf", f"-fdump-tree-vect-optimized-missed={report}", f"-DFASTOPT_ISA={isa}"]
    source = CSRC / "kernels.c"
    native.run("gcc", *native.FLAGS, *native.ISAS[isa], *options, "-S", "-o", assembly, source)
    return Compilation(
        isa, by_heading(report.read_text(), r"^;; Function (\w+) .*$"), by_heading(assembly.read_text(), r"^(\w+):$")
    )


def test_cmake_builds_what_the_core_has() -> None:
    assert set(_core.available_isas()) <= set(native.isas())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_loop_runs_on_full_vectors(compilation: Compilation, suffix: str) -> None:
    width = VECTOR_BYTES.get(compilation.isa, 16)
    for loop in LOOPS:
        notes = compilation.notes[f"{loop}_{suffix}"]
        vectorised = notes.count(f"optimized: loop vectorized using {width} byte vectors")
        # A loop over chunks stays as it is, but has a vectorised one inside and another for the rest behind it. (The
        # compiler may make two of each, one for either side of a condition.)
        others = notes.count("couldn't vectorize loop")
        assert vectorised >= max(1, 2 * others), f"{loop}: {vectorised} vectorised, {others} not"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_no_loop_calls_a_function(compilation: Compilation, suffix: str) -> None:
    """Neither libm's fma, which is slow, nor a square root that would set errno."""
    for loop in LOOPS:
        assert not re.search(r"^\s+(call|bl)\b", compilation.assembly[f"{loop}_{suffix}"], re.M), loop


def test_fused_multiply_adds_are_used_where_promised_and_only_there(compilation: Compilation) -> None:
    fused = re.search(r"^\s+(vfn?m|fml)\w+", compilation.assembly["step_sgd_f64"], re.M)
    assert (fused is not None) == (compilation.isa != "portable")
