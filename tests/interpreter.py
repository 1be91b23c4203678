"""New interpreters, for what depends on the environment or on nothing having happened before."""

import json
import os
import subprocess
import sys
from typing import Any


def python(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run code in a new interpreter whose environment knows of threads and instruction sets what is given here."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("FASTOPT_", "OMP_"))}
    return subprocess.run(
        [sys.executable, "-c", code], env={**inherited, **variables}, capture_output=True, text=True, timeout=120
    )


def said(expression: str, before: str = "", **variables: str) -> Any:
    """Return the value of an expression in a new interpreter, as JSON has it."""
    done = python(f"import json, sys, fastopt\n{before}\nprint(json.dumps({expression}))", **variables)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
