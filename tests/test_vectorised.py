"""The compiler's own word that every rule's and codec's loop runs on full vectors, on every instruction set."""

import re
import shutil
from dataclasses import dataclass
from typing import Any

import native
import pytest
from arrays import CSRC

from fastopt import _core

VECTOR_BYTES = {"x86_v4": 64, "x86_v3": 32}
"""Of a register; 16 where not said."""

RULES = [rule for rule in _core.RULES if not rule.startswith("floor")]

ARITHMETICS = re.findall(r"^#define SUFFIX (\w+)", (CSRC / "kernels.c").read_text(), re.M)

VARIANTS = len(re.findall(r"^ {12}LOOP\(", (CSRC / "loops.h").read_text(), re.M))
"""Loops of a rule that differ in what is done to the gradient."""

LISTS = (CSRC / "rules.def").read_text()

MORE = {
    "careful": re.findall(r"^CAREFUL\((\w+),", LISTS, re.M),
    "measure": re.findall(r"^(?:MEASURE\(|CAREFUL\((?=\w+, COUNTED))(\w+),", LISTS, re.M),
}
"""Rules that have other loops besides."""

LOOPS = {
    **{f"loop_{rule}_{suffix}": VARIANTS for rule in RULES for suffix in ARITHMETICS},
    **{f"{kind}_{rule}_{suffix}": 1 for kind, rules in MORE.items() for rule in rules for suffix in ARITHMETICS},
    **{f"{change}_{suffix}": 1 for change in ("scale", "clamp") for suffix in ARITHMETICS},
    **{f"{way}_{storage}": 1 for way in ("encode", "decode") for storage in ("F64", "BF16")},
    "encode_BF16_STOCHASTIC": 1,
}
for suffix in ARITHMETICS:  # gcc 12 does not know what to do with a condition where values are clipped
    LOOPS[f"loop_adagrad_rowwise_{suffix}"] -= 1
"""Function -> how many loops it has, or how many are to be vectorised."""

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
    # (A function that was split has parts with dots in their names; labels begin with one.)
    functions = by_heading(assembly.read_text(), r"^([A-Za-z_][\w.]*):$")
    return Compilation(isa, by_heading(report.read_text(), r"^;; Function (\w+) .*$"), functions)


def test_cmake_builds_what_the_core_has() -> None:
    assert set(_core.available_isas()) <= set(native.isas())


def test_every_loop_runs_on_full_vectors(compilation: Compilation) -> None:
    width = VECTOR_BYTES.get(compilation.isa, 16)
    for function, loops in LOOPS.items():
        # (The compiler may make two of one, for either side of a condition.)
        vectorised = compilation.notes[function].count(f"optimized: loop vectorized using {width} byte vectors")
        assert vectorised >= loops, f"{function}: {vectorised} of {loops} loops are vectorised"


def test_no_loop_calls_a_function(compilation: Compilation) -> None:
    """Neither libm's fma, which is slow, nor a square root that would set errno."""
    for function in LOOPS:
        assert not re.search(r"^\s+(call|bl)\b", compilation.assembly[function], re.M), function


def test_fused_multiply_adds_are_used_where_promised_and_only_there(compilation: Compilation) -> None:
    fused = re.search(r"^\s+(vfn?m|fml)\w+", compilation.assembly["loop_sgd_f64"], re.M)
    assert (fused is not None) == (compilation.isa != "portable")


def test_occurrences_of_a_row_are_added_on_vectors(compilation: Compilation) -> None:
    """This loop is unrolled as a whole before the vectoriser has a word to say."""
    assert re.search(r"^\s+(v?addps\b|fadd\s+v\d+\.4s)", compilation.assembly["sum_f32"], re.M)
