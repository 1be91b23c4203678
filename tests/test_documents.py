"""The code of README, of docs/ and of docstrings runs, and what is said to hold does."""

import doctest
import importlib
import re
from pathlib import Path
from types import ModuleType

import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

import fastopt

ROOT = Path(__file__).parents[1]
PAGES = [path for path in [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))] if "```python" in path.read_text()]
SOURCES = sorted(path for path in Path(fastopt.__file__).parent.rglob("*.py") if ">>> " in path.read_text())


def imported(name: str) -> ModuleType:
    """Import a module of the library, unless another library that it is for is not there."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as missing:
        raise skipped(missing) from None


def skipped(missing: ModuleNotFoundError) -> BaseException:
    """Return what to raise where an import failed: it is an error if the library itself is not there."""
    if str(missing.name).startswith("fastopt"):
        return missing
    return pytest.skip.Exception(f"{missing.name} is not installed")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_code_of_a_page(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    examples = list(Sybil([PythonCodeBlockParser()]).parse(page).examples())
    assert len(examples) == len(re.findall(r"```python|invisible-code-block: python", page.read_text(encoding="utf-8")))
    for example in examples:
        try:
            example.evaluate()
        except ModuleNotFoundError as missing:
            raise skipped(missing) from None


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_examples_of_a_module(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    place = source.relative_to(Path(fastopt.__file__).parents[1]).with_suffix("")
    module = imported(".".join(place.parts).removesuffix(".__init__"))
    failed, tried = doctest.testmod(module)
    assert tried > 0
    assert failed == 0
