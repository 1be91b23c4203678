"""How many instructions some kernels execute: counted by valgrind, so that no clock and no neighbour can disturb it.

`python tests/instructions.py` records the counts of this compiler, for `test_instructions.py` to compare with. They are
of a few kernels that stand for all: a new rule or storage changes none of them, and another compiler has no record.
"""

import json
import platform
import re
import shutil
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import native

import fastopt

KERNELS = (
    *(f"loop_{rule}_{arithmetic}" for rule in ("sgd", "momentum", "adam") for arithmetic in ("f32", "f64")),
    *(f"{way}_{storage}" for way in ("decode", "encode") for storage in ("BF16", "F16")),
    "add_squares_f32",
    "max_abs_f32",
)

RECORD = Path(__file__).with_suffix(".json")

Counts = dict[str, dict[str, int]]
"""By instruction set and kernel."""


def counted() -> list[str]:
    """The instruction sets that are counted here: valgrind has no AVX-512."""
    return [isa for isa in native.isas() if isa != "x86_v4" and isa in fastopt.available_isas()]


def compiler() -> str:
    """The compiler to the last digit, and what it compiles for: another one makes other instructions."""
    return f"{native.run('gcc', '--version').splitlines()[0]} for {platform.machine()}"


def count(isa: str, folder: Path) -> dict[str, int]:
    """Return the instructions of each of the kernels in a fixed work, see harness.c."""
    program = native.harness(folder / isa, native.isas(), ["-g"])
    profile = folder / f"{isa}.profile"
    native.run("valgrind", "--tool=callgrind", f"--callgrind-out-file={profile}", program, "count", isa)
    found: Counter[str] = Counter()
    for (_, function), instructions in own_costs(profile.read_text()).items():
        found[function.partition(".")[0]] += instructions
    return {kernel: found[kernel] for kernel in KERNELS}


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
        return dict(zip(counted(), pool.map(lambda isa: count(isa, Path(folder)), counted()), strict=True))


def recorded() -> dict[str, Counts]:
    """By compiler."""
    content: dict[str, Counts] = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    return content


def is_possible() -> bool:
    return shutil.which("gcc") is not None and shutil.which("valgrind") is not None


if __name__ == "__main__":
    RECORD.write_text(json.dumps({**recorded(), compiler(): measure()}, indent=1, sort_keys=True) + "\n")
