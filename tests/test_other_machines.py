"""The core gives the same bits on other processors: aarch64, cross-compiled and emulated, beside this machine."""

import platform
import shutil
from pathlib import Path

import native
import pytest

Fingerprints = dict[str, list[str]]


def fingerprints(machine: str, compiler: str, folder: Path, emulator: str = "", level: str = "-O3") -> Fingerprints:
    """Return the harness's fingerprints by instruction set, without its name."""
    program = native.harness(folder / machine, native.isas(machine), [level, "-static"], compiler)
    found: Fingerprints = {}
    for line in native.run(*emulator.split(), program, "fingerprint").splitlines():
        isa, rest = line.split(maxsplit=1)
        found.setdefault(isa, []).append(rest)
    return found


@pytest.mark.slow
def test_aarch64_gives_the_bits_of_this_machine(tmp_path: Path) -> None:
    cross, emulator = shutil.which("aarch64-linux-gnu-gcc"), shutil.which("qemu-aarch64")
    if not (cross and emulator and shutil.which("gcc") and platform.machine() == "x86_64"):
        pytest.skip("needs x86-64 with gcc, aarch64-linux-gnu-gcc and qemu-aarch64")
    # The kernels of this machine have tests of their own: here it is enough to compile them quickly.
    native_bits = fingerprints("x86_64", "gcc", tmp_path, level="-O1")
    arm_bits = fingerprints("aarch64", cross, tmp_path, emulator)
    assert arm_bits["portable"] == native_bits["portable"]
    for isa, bits in native_bits.items():
        if isa != "portable":
            assert arm_bits["arm_neon"] == bits
    assert arm_bits["arm_neon"] != arm_bits["portable"]
