"""The core as two files, for C: it compiles alone, and its example makes the steps that Python makes."""

import platform
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from arrays import CSRC
from native import run

import fastopt
from fastopt import _core

ROOT = CSRC.parent

PLATFORM_ISA = {"aarch64": "arm_neon", "arm64": "arm_neon"}.get(platform.machine(), "portable")
"""What a compiler makes that is told nothing."""

DOCUMENTED = ["-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
"""The compiler's flags."""

DOCUMENT = (ROOT / "docs" / "c.md").read_text()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    run(sys.executable, ROOT / "tools" / "bundle", folder)
    return folder


def steps_in_python() -> list[str]:
    """What `examples/adamw.c` prints, from NumPy."""
    _core.use_isa(PLATFORM_ISA)
    weights = [np.zeros(100_000, np.float32), np.zeros(10, np.float32)]
    targets = [((np.arange(len(w)) % 10) / 8).astype(np.float32) for w in weights]
    opt = fastopt.AdamW(weights, lr=0.1, weight_decay=0.01, clip_norm=1.0)
    lines = []
    for step in range(1, 101):
        info = opt.step([w - target for w, target in zip(weights, targets, strict=True)])
        if step % 20 == 0:
            lines.append(f"step {step:3d}  norm {info.grad_norm:.9g}  w[9] {float(weights[1][9]):.9g}")
    return lines


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_the_example_makes_the_steps_of_python(bundle: Path, compiler: str) -> None:
    if not shutil.which(compiler):
        pytest.skip(f"{compiler} is not installed")
    flags = ["-std=c11", "-Wall", "-Wextra", "-Werror", *DOCUMENTED, f"-I{bundle}"]
    program = bundle / compiler
    run(compiler, *flags, ROOT / "examples" / "adamw.c", bundle / "fastopt.c", "-lm", "-ldl", "-pthread", "-o", program)
    assert run(program).splitlines() == steps_in_python()


def test_a_program_sees_all_that_is_documented(bundle: Path) -> None:
    header = (bundle / "fastopt.h").read_text()
    documented = re.findall(r"^\| `(fo_\w+)\(", DOCUMENT, re.M)
    assert " ".join(DOCUMENTED) in DOCUMENT
    assert len(documented) == 10
    assert all(f"{name}(" in header for name in documented)
