"""How many instructions the kernels execute: counted by valgrind, so that no clock and no neighbour can disturb it.

`python tests/instructions.py` records the counts of this compiler, for `test_instructions.py` to compare with.
"""

import json
import platform
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
CMAKE = (ROOT / "CMakeLists.txt").read_text()
FLAGS = re.search(r"set\(fastopt_flags ([^)]*)\)", CMAKE)[1].split()  # type: ignore[index]
ISAS = {name: flags.split() for name, flags in re.findall(r"fastopt_isa\((\w+)([^)]*)\)", CMAKE)}

COUNTED = ("portable", "x86_v3") if platform.machine() in ("x86_64", "AMD64") else ()
"""Valgrind has no AVX-512."""

RECORD = Path(__file__).with_suffix(".json")

Counts = dict[str, dict[str, int]]
"""By instruction set and function."""


def compiler() -> str:
    """The compiler and the part of its version that its code depends on."""
    version = subprocess.run(["gcc", "-dumpversion"], check=True, capture_output=True, text=True).stdout
    return f"gcc {version.split('.')[0].strip()}"


def build(isa: str, folder: Path) -> Path:
    """Return the program of instructions.c, compiled as CMake compiles the library, but without OpenMP."""
    # Kernels that come out alike are kept apart, so that each has its own count.
    flags = ["-std=gnu11", "-g", "-fPIC", "-fno-ipa-icf", f"-I{ROOT / 'csrc'}", *FLAGS]
    kernels, program = folder / f"{isa}.o", folder / isa
    for_isa = [f"-DFASTOPT_ISA={isa}", *ISAS[isa], "-c", str(ROOT / "csrc/kernels.c"), "-o", str(kernels)]
    subprocess.run(["gcc", *flags, *for_isa], check=True)
    sources = [str(Path(__file__).with_suffix(".c")), *(str(ROOT / "csrc" / name) for name in ("names.c", "step.c"))]
    linking = [f"-DKERNELS=fo_kernels_{isa}", *sources, str(kernels), "-pthread", "-lm", "-o", str(program)]
    subprocess.run(["gcc", *flags, *linking], check=True)
    return program


def count(isa: str, folder: Path) -> dict[str, int]:
    """Return the instructions in each kernel, and in step.c as a whole."""
    program = build(isa, folder)
    profile = folder / f"{isa}.profile"
    command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={profile}", str(program)]
    subprocess.run(command, check=True, capture_output=True)
    found: Counter[str] = Counter()
    for (file, function), instructions in own_costs(profile.read_text()).items():
        if Path(file).name == "step.c":
            found["step.c"] += instructions
        elif Path(file).parent.name == "csrc" and Path(file).name != "names.c":
            found[function.partition(".")[0]] += instructions
    return dict(sorted(found.items()))


def own_costs(profile: str) -> Counter[tuple[str, str]]:
    """Return the cost of every (file, function) without what it calls, from a profile in callgrind's format."""
    names: dict[tuple[str, str], str] = {}

    def name(kind: str, text: str) -> str:
        """Names are written once, after a number in parentheses that stands for them from then on."""
        number, _, spelled = text.partition(" ")
        return names.setdefault((kind, number), spelled) if spelled else names[kind, number]

    costs: Counter[tuple[str, str]] = Counter()
    file = function = ""
    of_call = False
    for line in profile.splitlines():
        key, _, value = line.partition("=")
        if key == "fl":
            file = name("file", value)
        elif key == "fn":
            function = name("function", value)
        elif key in ("fi", "fe", "cfi", "cfl"):
            name("file", value)
        elif key == "cfn":
            name("function", value)
        elif key == "calls":
            of_call = True
        elif re.match(r"[+\-*\d]", line):
            if not of_call:
                costs[file, function] += int(line.split()[1])
            of_call = False
    return costs


def measure() -> Counts:
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as pool:
        return dict(zip(COUNTED, pool.map(lambda isa: count(isa, Path(folder)), COUNTED), strict=True))


def recorded() -> dict[str, Counts]:
    """By compiler."""
    content: dict[str, Counts] = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    return content


def is_possible() -> bool:
    return shutil.which("gcc") is not None and shutil.which("valgrind") is not None


if __name__ == "__main__":
    RECORD.write_text(json.dumps({**recorded(), compiler(): measure()}, indent=1, sort_keys=True) + "\n")
