"""The core gives the same bits on other processors: aarch64, cross-compiled and emulated, beside this machine."""

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CMAKE = (ROOT / "CMakeLists.txt").read_text()
FLAGS = re.search(r"set\(fastopt_flags ([^)]*)\)", CMAKE)[1].split()  # type: ignore[index]
ISAS = {name: flags.split() for name, flags in re.findall(r"fastopt_isa\((\w+)([^)]*)\)", CMAKE) if name != "name"}
MACHINES = {"x86_64": ["portable", "x86_v3", "x86_v4"], "aarch64": ["portable", "arm_neon"]}

Fingerprints = dict[str, list[str]]


def fingerprints(machine: str, compiler: str, emulator: list[str], folder: Path) -> Fingerprints:
    """Return the lines of fingerprint.c by instruction set, without its name."""
    command = [compiler, "-std=gnu11", f"-I{ROOT / 'csrc'}", *FLAGS, "-Werror"]
    objects = []
    for isa in MACHINES[machine]:
        objects.append(str(folder / f"{isa}.o"))
        of_isa = [f"-DFASTOPT_ISA={isa}", *ISAS[isa]]
        subprocess.run([*command, *of_isa, "-c", str(ROOT / "csrc/kernels.c"), "-o", objects[-1]], check=True)
    sources = [ROOT / "tests/fingerprint.c", *(ROOT / "csrc" / name for name in ("names.c", "dispatch.c", "step.c"))]
    program = folder / "fingerprint"
    subprocess.run(
        [*command, "-pthread", *map(str, sources), *objects, "-static", "-lm", "-o", str(program)],
        check=True,
    )
    lines = subprocess.run([*emulator, str(program)], check=True, capture_output=True, text=True).stdout.splitlines()
    found: Fingerprints = {}
    for line in lines:
        isa, rest = line.split(maxsplit=1)
        found.setdefault(isa, []).append(rest)
    return found


@pytest.mark.slow
def test_aarch64_gives_the_bits_of_this_machine(tmp_path: Path) -> None:
    cross, emulator = shutil.which("aarch64-linux-gnu-gcc"), shutil.which("qemu-aarch64")
    native = shutil.which("gcc")
    if cross is None or emulator is None or native is None or platform.machine() != "x86_64":
        pytest.skip("needs x86-64 with gcc, aarch64-linux-gnu-gcc and qemu-aarch64")
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    native_bits = fingerprints("x86_64", native, [], here)
    arm_bits = fingerprints("aarch64", cross, [emulator], there)
    assert arm_bits["portable"] == native_bits["portable"]
    for isa, bits in native_bits.items():
        if isa != "portable":
            assert arm_bits["arm_neon"] == bits
    assert arm_bits["arm_neon"] != arm_bits["portable"]
