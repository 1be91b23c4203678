"""harness.c, compiled with csrc/ as CMake compiles the library: its flags, kernels.c once for each instruction set.

`python tests/native.py time adam` builds it and runs it; `python tests/native.py` says what else there is.
"""

import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from arrays import CSRC

HERE = Path(__file__).parent

CMAKE = (CSRC.parent / "CMakeLists.txt").read_text()

FLAGS = ["-std=gnu11", "-fPIC", *re.search(r"set\(fastopt_flags ([^)]*)\)", CMAKE)[1].split()]  # type: ignore[index]

ISAS = {name: flags.split() for name, flags in re.findall(r"^\s*fastopt_isa\((\w+) ?(.*)\)$", CMAKE, re.M)}
"""What CMake builds, on one kind of machine or another, with the flags of each."""

FAMILIES = {"x86_64": "x86_", "amd64": "x86_", "aarch64": "arm_", "arm64": "arm_"}


def isas(machine: str | None = None) -> list[str]:
    """The instruction sets that CMake builds on this or another kind of machine."""
    family = FAMILIES.get((machine or platform.machine()).lower(), "none")
    return [name for name in ISAS if name == "portable" or name.startswith(family)]


def run(*command: str | Path, **environment: str) -> str:
    """Return what a command prints; where it fails, what it complains of is in the error."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, env={**os.environ, **environment})
    assert done.returncode == 0, f"{' '.join(map(str, command))}: exit {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def harness(folder: Path, kernels: Iterable[str], options: Iterable[str] = (), compiler: str = "gcc") -> Path:
    """Compile harness.c and csrc/ with the kernels of these instruction sets, and return the program."""
    folder.mkdir(exist_ok=True)
    command = [compiler, *FLAGS, "-Werror", f"-I{CSRC}", *options]
    objects = {isa: folder / f"{isa}.o" for isa in kernels}
    for isa, path in objects.items():
        run(*command, f"-DFASTOPT_ISA={isa}", *ISAS[isa], "-c", CSRC / "kernels.c", "-o", path)
    engine = [CSRC / name for name in ("names.c", "scalars.c", "dispatch.c", "rows.c", "threads.c", "step.c")]
    program = folder / "harness"
    run(*command, "-pthread", HERE / "harness.c", *engine, *objects.values(), "-lm", "-ldl", "-o", program)
    return program


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        done = subprocess.run([harness(Path(place), isas()), *sys.argv[1:]], check=False)
    sys.exit(done.returncode)
