"""The compiler's own word that every rule's loop runs on full vectors, for every dtype and instruction set."""

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from arrays import CSRC

from fastopt import _core

CMAKE = (CSRC.parent / "CMakeLists.txt").read_text()
FAMILY = "x86_" if platform.machine().lower() in ("x86_64", "amd64") else "arm_"

VECTOR_BYTES = {"x86_v4": 64, "x86_v3": 32}
"""Of a register; 16 where not said."""

SUFFIXES = re.findall(r"^#define SUFFIX (\w+)", (CSRC / "kernels.c").read_text(), re.M)
LOOPS = [f"step_{rule}" for rule in _core.RULES] + ["scale", "clamp"]

pytestmark = pytest.mark.skipif(not shutil.which("gcc"), reason="asks gcc how it compiled the kernels")


def flags() -> list[str]:
    found = re.search(r"set\(fastopt_flags (.*?)\)", CMAKE, re.S)
    assert found
    # Functions that come out alike are kept apart, so that each has its own report.
    return ["-std=gnu11", "-fPIC", "-fno-ipa-icf", *found[1].split()]


def isa_flags() -> dict[str, list[str]]:
    """The instruction sets that CMake builds on this kind of machine, with their flags."""
    rows = re.findall(r"^\s*fastopt_isa\((\w+) ?(.*)\)$", CMAKE, re.M)
    return {name: extra.split() for name, extra in rows if name == "portable" or name.startswith(FAMILY)}


class Compilation:
    """kernels.c, compiled with the build's flags for one instruction set."""

    def __init__(self, isa: str, extra: list[str], folder: Path) -> None:
        self.isa = isa
        self.assembly = folder / f"{isa}.s"
        self.report = folder / f"{isa}.txt"
        self.process = subprocess.Popen(
            [
                *("gcc", *flags(), *extra, f"-DFASTOPT_ISA={isa}"),
                f"-fdump-tree-vect-optimized-missed={self.report}",
                *("-S", "-o", str(self.assembly), str(CSRC / "kernels.c")),
            ],
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self) -> None:
        _, errors = self.process.communicate(timeout=300)
        assert self.process.returncode == 0, errors
        self.notes = self._split(self.report.read_text(), r"^;; Function (\w+) .*$")
        self.bodies = self._split(self.assembly.read_text(), r"^(\w+):$")

    @staticmethod
    def _split(text: str, heading: str) -> dict[str, str]:
        parts = re.split(heading, text, flags=re.M)
        return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.fixture(scope="module")
def compilations(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Compilation]:
    folder = tmp_path_factory.mktemp("vectorised")
    running = [Compilation(isa, extra, folder) for isa, extra in isa_flags().items()]
    for compilation in running:
        compilation.finish()
    return {compilation.isa: compilation for compilation in running}


def test_cmake_builds_what_the_core_has() -> None:
    assert set(_core.available_isas()) <= set(isa_flags())


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("isa", isa_flags())
def test_every_loop_runs_on_full_vectors(compilations: dict[str, Compilation], isa: str, suffix: str) -> None:
    compilation, width = compilations[isa], VECTOR_BYTES.get(isa, 16)
    for loop in LOOPS:
        notes = compilation.notes[f"{loop}_{suffix}"]
        assert f"optimized: loop vectorized using {width} byte vectors" in notes, loop
        # Of loops that the compiler made two of (one for each side of a condition), neither may stay behind.
        assert "couldn't vectorize loop" not in notes, loop


@pytest.mark.parametrize("isa", isa_flags())
def test_no_loop_calls_a_function(compilations: dict[str, Compilation], isa: str) -> None:
    """Neither libm's fma, which is slow, nor a square root that would set errno."""
    for suffix in SUFFIXES:
        for loop in LOOPS:
            body = compilations[isa].bodies[f"{loop}_{suffix}"]
            assert not re.search(r"^\s+(call|bl)\b", body, re.M), f"{loop}_{suffix}"


@pytest.mark.parametrize("isa", isa_flags())
def test_fused_multiply_adds_are_used_where_promised_and_only_there(
    compilations: dict[str, Compilation], isa: str
) -> None:
    fused = re.search(r"^\s+(vfn?m|fml)\w+", compilations[isa].bodies["step_sgd_f64"], re.M)
    assert (fused is not None) == (isa != "portable")
