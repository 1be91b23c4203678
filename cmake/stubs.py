"""Write what type checkers and editors know of the optimizers' classes, which are made at run time.

The stubs `optimizers.pyi`, `torch/optimizers.pyi` and `jax/optimizers.pyi` come from the same descriptions as the
classes. Neither the compiled core nor torch nor JAX is needed. CMake runs this; by hand it is

    python cmake/stubs.py src/fastopt
"""

from __future__ import annotations

import importlib
import math
import sys
from inspect import Parameter, formatannotation
from pathlib import Path
from textwrap import indent
from types import ModuleType
from typing import Any

PACKAGE = Path(__file__).resolve().parent.parent / "src" / "fastopt"

FOR_NUMPY = '''\
"""The optimizers for NumPy. (Made by cmake/stubs.py.)"""

from collections.abc import Callable
from typing import Any, Literal

from fastopt.modes import TwoModes
from fastopt.optimizer import Optimizer

_Number = float | Callable[[int], float]
'''

FOR_TORCH = '''\
"""The optimizers for torch. (Made by cmake/stubs.py.)"""

from collections.abc import Callable
from typing import Literal

import torch
from torch.optim.optimizer import ParamsT

from fastopt.modes import TwoModes
from fastopt.torch.optimizer import Optimizer

_Number = float | torch.Tensor | Callable[[int], float]
'''

FOR_JAX = '''\
"""The optimizers for JAX. (Made by cmake/stubs.py.)"""

from collections.abc import Callable
from typing import Any, Literal

import jax

from fastopt.jax.optimizer import Optimizer, TwoModes

_Number = float | jax.Array | Callable[[Any], Any]
'''

REGISTRY = "def registry() -> dict[str, type[Optimizer]]: ...\n"

FLAGS = {"foreach": None, "fused": None, "capturable": False, "differentiable": False}
"""What `Method.twin_flags` may name beside the options, with torch's defaults."""


def main(folder: Path) -> None:
    """Write all."""
    bare = ModuleType("fastopt")  # the package without what its __init__ imports
    bare.__path__ = [str(PACKAGE)]
    sys.modules["fastopt"] = bare
    methods = importlib.import_module("fastopt.methods").registry()
    base = importlib.import_module("fastopt.methods.base")
    classes = [class_for_numpy(name, method) for name, method in methods.items()]
    write(folder / "optimizers.pyi", [FOR_NUMPY, listed([*methods]), *classes, REGISTRY])
    classes = [class_for_torch(name, method, base.WHOLE_OF_TORCH) for name, method in methods.items()]
    write(folder / "torch" / "optimizers.pyi", [FOR_TORCH, listed([*methods]), *classes, REGISTRY])
    classes = [class_for_jax(name, method, base.WHOLE_OF_JAX) for name, method in methods.items()]
    write(folder / "jax" / "optimizers.pyi", [FOR_JAX, listed([*methods]), *classes, REGISTRY])


def write(path: Path, parts: list[str]) -> None:
    """Write a file, unless it is like that already."""
    text = "\n".join(parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def listed(names: list[str]) -> str:
    """Return the line that says what is public."""
    return f"__all__: tuple[str, ...] = {tuple(names)!r}\n"


def class_for_numpy(name: str, method: Any) -> str:
    """Return the class of a description for NumPy."""
    parameters = [*method.signature().parameters.values()]
    arguments = ["params: Any", *parameters[1:]]
    return written(f"class {name}({modes_of(method)}Optimizer):", method.documentation(), arguments)


def class_for_torch(name: str, method: Any, whole: Any) -> str:
    """Return the class of a description for torch."""
    twin = vars(method).get("twin")
    parameters = dict(method.signature(whole).parameters)
    flags = method.twin_flags if twin else ("*",)
    for place, flag in enumerate(flags):
        if flag == "*":
            continue
        kind = Parameter.KEYWORD_ONLY if "*" in flags[:place] else Parameter.POSITIONAL_OR_KEYWORD
        known = parameters.pop(flag, None) or Parameter(
            flag, kind, default=FLAGS[flag], annotation=bool | None if FLAGS[flag] is None else bool
        )
        parameters[flag] = known.replace(kind=kind)
    bases = f"{modes_of(method)}Optimizer" + (f", torch.optim.{twin}" if twin else "")
    ordered = sorted(parameters.values(), key=lambda parameter: parameter.kind)
    return written(f"class {name}({bases}):", method.documentation(whole), ["params: ParamsT", *ordered[1:]])


def class_for_jax(name: str, method: Any, whole: Any) -> str:
    """Return the class of a description for JAX, which is made without parameters."""
    parameters = [*method.signature(whole).parameters.values()][1:]
    documentation = method.documentation(whole).replace("params\n    What to optimize, in place.\n", "")
    base = "TwoModes" if "train_mode" in method.options else "Optimizer"
    return written(f"class {name}({base}):", documentation, parameters)


def modes_of(method: Any) -> str:
    """Return the base of a class that has `train` and `eval`, and a comma."""
    return "TwoModes, " if "train_mode" in method.options else ""


def written(head: str, documentation: str, parameters: list[Any]) -> str:
    """Return a class with its constructor, of parameters that may be written already."""
    arguments = ["self"]
    for parameter in parameters:
        if isinstance(parameter, str):
            arguments.append(parameter)
            continue
        if parameter.kind is Parameter.KEYWORD_ONLY and "*" not in arguments:
            arguments.append("*")
        arguments.append(f"{parameter.name}: {typed(parameter.annotation)} = {value(parameter.default)}")
    lines = "".join(f"    {argument},\n" for argument in arguments)
    body = f'r"""{documentation}\n"""\n\ndef __init__(\n{lines}) -> None: ...\n'
    return f"{head}\n{indent(body, '    ')}"


def value(default: Any) -> str:
    """Return a default as it is written: infinity is no name."""
    return "1e999" if default == math.inf else repr(default)


def typed(annotation: Any) -> str:
    """Return a type as it is written."""
    if isinstance(annotation, str):
        return annotation
    return formatannotation(annotation).replace("float | collections.abc.Callable[[int], float]", "_Number")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
