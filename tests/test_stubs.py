"""What type checkers know of the optimizers (the stubs that the build makes) is what there is at run time."""

import ast
import importlib
import inspect
from pathlib import Path

import numpy as np
import pytest

import fastopt
from fastopt import optimizers

every_face = pytest.mark.parametrize("face", ["fastopt", "fastopt.torch", "fastopt.jax"])


def stub_of(face: str) -> ast.Module:
    if face != "fastopt":
        pytest.importorskip(face.partition(".")[2])
    path = importlib.import_module(f"{face}.optimizers").__file__
    assert path
    stub = Path(path).with_suffix(".pyi")
    assert stub.exists(), "the build makes it: install fastopt again"
    return ast.parse(stub.read_text(encoding="utf-8"))


@every_face
def test_the_optimizers_are_those_of_the_registry(face: str) -> None:
    tree = stub_of(face)
    classes = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    public = next(node.value for node in tree.body if isinstance(node, ast.AnnAssign))
    assert public
    module = importlib.import_module(f"{face}.optimizers")
    (function,) = (node.name for node in tree.body if isinstance(node, ast.FunctionDef))
    assert classes == set(ast.literal_eval(public)) == set(getattr(module, function)()) == set(module.__all__)
    assert classes == optimizers.registry().keys()


@every_face
def test_constructors_have_the_same_arguments(face: str) -> None:
    for node in stub_of(face).body:
        if not isinstance(node, ast.ClassDef):
            continue
        cls = getattr(importlib.import_module(face), node.name)
        assert ast.get_docstring(node) == inspect.getdoc(cls)
        assert [ast.unparse(base).rpartition(".")[2] for base in node.bases] == [
            base.__name__ for base in cls.__bases__
        ]
        (constructor,) = (child for child in node.body if isinstance(child, ast.FunctionDef))
        arguments = constructor.args
        real = inspect.signature(cls).parameters.values()
        by_position = [p.name for p in real if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
        by_name = {p.name for p in real if p.kind is inspect.Parameter.KEYWORD_ONLY}
        assert [argument.arg for argument in arguments.args] == ["self", *by_position]
        assert {argument.arg for argument in arguments.kwonlyargs} == by_name
        optional = [name for name in by_position if name != "params"]
        defaults = dict(zip(optional, map(ast.literal_eval, arguments.defaults), strict=True))
        for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
            assert default
            defaults[argument.arg] = ast.literal_eval(default)
        assert defaults == {p.name: p.default for p in real if p.name != "params"}


def test_mypy_finds_mistakes() -> None:
    """mypy complains of the comments that it does not need."""
    with pytest.raises(TypeError, match="learning_rate"):
        fastopt.AdamW(np.zeros(1), learning_rate=0.1)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="velocity"):
        fastopt.SGD(np.zeros(1), velocity="mena")  # type: ignore[arg-type]


def test_mypy_finds_mistakes_in_torch() -> None:
    torch = pytest.importorskip("torch")
    from fastopt.torch import AdamW

    parameters = [torch.zeros(1, requires_grad=True)]
    with pytest.raises(TypeError, match="learning_rate"):
        AdamW(parameters, learning_rate=0.1)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="nonfinite"):
        AdamW(parameters, nonfinite="skp")  # type: ignore[arg-type]


def test_mypy_finds_mistakes_in_jax() -> None:
    pytest.importorskip("jax")
    from fastopt.jax import AdamW

    with pytest.raises(TypeError, match="learning_rate"):
        AdamW(learning_rate=0.1)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="nonfinite"):
        AdamW(nonfinite="raise")  # type: ignore[arg-type]
