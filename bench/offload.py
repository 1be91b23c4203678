"""Measure training with the optimizer on the host on one CUDA device of 80 GB, in under five minutes.

    python bench/offload.py

Writes offload.json and offload.txt into the folder $OUT, or here. Takes about 60 GB of the host's memory; torchao takes
part if it is installed.
"""

import importlib.util
import json
import os
import sys
from pathlib import Path


def main() -> None:
    """Measure, show, and write."""
    for module in ("numpy", "torch", "fastopt"):
        if importlib.util.find_spec(module) is None:
            sys.exit(f"bench/offload.py: {module} is not installed")
    from fastopt.benchmark import offload

    why = offload.obstacle()
    if why:
        sys.exit(f"bench/offload.py: {why}")
    folder = Path(os.environ.get("OUT", "."))
    results = offload.measure(say=lambda line: print(line, flush=True))
    text = offload.table(results)
    print(text)
    (folder / "offload.txt").write_text(text + "\n")
    (folder / "offload.json").write_text(json.dumps(results, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main()
