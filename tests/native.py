"""C programs on csrc/, compiled as CMake compiles the library: its flags, kernels.c once for each instruction set."""

import platform
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

from arrays import CSRC

CMAKE = (CSRC.parent / "CMakeLists.txt").read_text()

FLAGS = ["-std=gnu11", "-fPIC", *re.search(r"set\(fastopt_flags ([^)]*)\)", CMAKE)[1].split()]  # type: ignore[index]

ISAS = {name: flags.split() for name, flags in re.findall(r"^\s*fastopt_isa\((\w+) ?(.*)\)$", CMAKE, re.M)}
"""What CMake builds, on one kind of machine or another, with the flags of each."""

SUFFIXES = re.findall(r"^#define SUFFIX (\w+)", (CSRC / "kernels.c").read_text(), re.M)
"""Of the functions in kernels.c, one for each kind of storage."""

FAMILIES = {"x86_64": "x86_", "amd64": "x86_", "aarch64": "arm_", "arm64": "arm_"}


def isas(machine: str | None = None) -> list[str]:
    """The instruction sets that CMake builds on this or another kind of machine."""
    family = FAMILIES.get((machine or platform.machine()).lower(), "none")
    return [name for name in ISAS if name == "portable" or name.startswith(family)]


def run(*command: str | Path) -> str:
    """Return what a command prints; where it fails, what it complains of is in the error."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(map(str, command))}: exit {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def build(
    program: Path, sources: Iterable[Path], kernels: Iterable[str], options: Iterable[str] = (), compiler: str = "gcc"
) -> Path:
    """Compile the sources, link them with the kernels of these instruction sets, and return the program."""
    command = [compiler, *FLAGS, "-Werror", f"-I{CSRC}", *options]
    objects = {isa: program.with_name(f"{program.name}-{isa}.o") for isa in kernels}
    for isa, path in objects.items():
        run(*command, f"-DFASTOPT_ISA={isa}", *ISAS[isa], "-c", CSRC / "kernels.c", "-o", path)
    run(*command, "-pthread", *sources, *objects.values(), "-lm", "-o", program)
    return program
