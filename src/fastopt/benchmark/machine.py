"""The machine that figures were measured on."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import fastopt
from fastopt import environment

CPU_FOLDER = Path("/sys/devices/system/cpu")
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
MEMORY = Path("/proc/meminfo")
OWN_MEMORY = Path("/proc/self/status")

LIBRARIES = (
    *("numpy", "torch", "jax", "optax", "deepspeed", "torchao", "bitsandbytes"),
    *("timm", "pytorch_optimizer", "schedulefree", "prodigyopt"),
)


def facts() -> dict[str, Any]:
    """Return what figures depend on, as values that JSON can hold."""
    return {
        "cpu": cpu_name(),
        "cores": cores(),
        "caches": caches(),
        "memory": memory("MemTotal"),
        "huge_pages": chosen(HUGE_PAGES),
        "system": platform.platform(),
        "python": platform.python_version(),
        "fastopt": fastopt.__version__,
        "isa": fastopt.isa(),
        "threads": fastopt.get_num_threads(),
        "openmp_runtimes": [Path(file).name for file in environment.openmp_runtimes()],
        "openmp_settings": {name: value for name, value in os.environ.items() if re.match("OMP_|GOMP_|KMP_", name)},
        "libraries": {name: found for name in LIBRARIES if (found := installed(name))},
    }


def cpu_name() -> str:
    """Return what the processor calls itself."""
    listing = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.+)$", listing.read_text(), re.M) if listing.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def cores() -> int:
    """Return how many CPUs this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def caches() -> dict[str, int]:
    """Return the bytes of the data caches that all cores together have, by level, smallest first."""
    found: dict[str, int] = {}
    seen = set()
    for folder in sorted(CPU_FOLDER.glob("cpu[0-9]*/cache/index*")):
        entry = {name: (folder / name).read_text().strip() for name in ("level", "type", "size", "shared_cpu_list")}
        if entry["type"] == "Instruction" or (entry["level"], entry["shared_cpu_list"]) in seen:
            continue
        seen.add((entry["level"], entry["shared_cpu_list"]))
        level = f"L{entry['level']}"
        found[level] = found.get(level, 0) + int(entry["size"].removesuffix("K")) * 1024
    return dict(sorted(found.items()))


def level_of(size: int, caches: Mapping[str, int]) -> str:
    """Return where so many bytes lie that are used again and again: L1, L2, L3 or memory; "" if no cache is known."""
    for level, capacity in caches.items():
        if size <= capacity:
            return level
    if not caches:
        return ""
    last = list(caches)[-1]
    return "memory" if size >= 4 * caches[last] else f"{last} and memory"


def memory(entry: str, account: Path = MEMORY) -> int | None:
    """Return an entry of an account of memory, in bytes; None where there is none."""
    found = re.search(rf"^{entry}:\s+(\d+) kB$", account.read_text(), re.M) if account.exists() else None
    return int(found[1]) * 1024 if found else None


def chosen(setting: Path) -> str | None:
    """Return the entry in brackets of a kernel setting."""
    found = re.search(r"\[(\w+)\]", setting.read_text()) if setting.exists() else None
    return found[1] if found else None


def installed(library: str) -> str | None:
    """Return the version of a library, None if it is not there."""
    try:
        return version(library)
    except PackageNotFoundError:
        return None
