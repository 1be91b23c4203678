"""Reference pages, made from the registries of the optimizers and of the schedules."""

from __future__ import annotations

import ast
import doctest
import inspect
import re
from collections.abc import Mapping
from typing import Any

import pictures
import repository

from fastopt import optimizers, schedules
from fastopt.benchmark import documents
from fastopt.benchmark.tasks import moved_bytes, state_bytes
from fastopt.methods.base import STORED_AS, WHOLE, WHOLE_OF_TORCH, Method, Option
from fastopt.optimizer import Optimizer

Pages = dict[str, "str | bytes"]
"""Content by address."""


def optimizer_pages() -> Pages:
    """Return a page for every optimizer, one with all of them, and their pictures."""
    found = dict(sorted(optimizers.registry().items(), key=lambda entry: entry[0].lower()))
    pages: Pages = {"optimizers/index.md": _all_optimizers(found)}
    for name, cls in found.items():
        drawn = pictures.paths(cls)
        pages[f"optimizers/{name.lower()}.md"] = _optimizer(cls, drawn)
        pages |= {f"optimizers/{name.lower()}-{scheme}.svg": picture for scheme, picture in drawn.items()}
    return pages


def schedule_pages() -> Pages:
    """Return the page of the schedules, and their pictures."""
    pages: Pages = {}
    sections = []
    for name in schedules.__all__:
        cls = getattr(schedules, name)
        if cls is schedules.Schedule:
            continue
        drawn = _drawn(cls)
        pages |= {f"schedules/{name}-{scheme}.svg": picture for scheme, picture in drawn.items()}
        shown = pictures.shown(drawn, name, f"{name}: value by step")
        sections.append(
            f"## {name}\n\n{shown}\n\n::: fastopt.schedules.{name}\n    options:\n      show_root_heading: false\n"
            "      show_root_toc_entry: false\n      heading_level: 3\n      filters: ['!^_']\n"
        )
    head = (
        "# Schedules\n\nEvery optimizer takes a schedule, or any function of the step, wherever it takes a number:\n"
        "`AdamW(params, lr=schedules.warmup_cosine(6e-4, 2000, 100_000))`. A schedule is a pure function of the "
        "number of steps taken so far. The pictures show the first example of each.\n"
    )
    return {"schedules/index.md": "\n".join([head, *sections]), **pages}


def _all_optimizers(found: Mapping[str, type[Optimizer]]) -> str:
    rows = [
        f"| [{name}]({name.lower()}.md) | {cls.method.use} | {kept:.3g} | {moved_bytes(kept):.3g} |"
        for name, cls, kept in ((name, cls, state_bytes(cls)) for name, cls in found.items())
    ]
    head = """# Optimizers

`fastopt.AdamW` steps NumPy arrays, `fastopt.torch.AdamW` tensors, `fastopt.jax.AdamW` pytrees: the same names, options
and kernels. State memory is of float32 parameters; what a step moves, at the least, is the gradient read, and parameter
and states read and written. Bytes are for each element of the parameters.

| | when to use it | state memory, bytes | moved in a step, bytes |
| --- | --- | ---: | ---: |
"""
    common = "\n\n## Options of all of them\n\nKeyword-only, in every optimizer:\n\n" + _options(WHOLE)
    beside = {name: option for name, option in WHOLE_OF_TORCH.items() if name not in WHOLE}
    reached = "\n\n## What they reach\n\n" + documents.block("qualities", repository.ROOT)
    return head + "\n".join(rows) + reached + common + "\n\nAnd in `fastopt.torch`:\n\n" + _options(beside) + "\n"


def _optimizer(cls: type[Optimizer], drawn: Mapping[str, bytes]) -> str:
    method, name = cls.method, cls.__name__
    summary, formulas, papers = _told(method)
    base = method.__mro__[1]
    if base.__name__ in optimizers.registry():
        formulas += f"\n\n`{base.__name__}`: {_told(base)[1]}"
    twin = f", a drop-in twin of `torch.optim.{method.twin}`" if method.twin else ""
    own = {option: value for option, value in method.options.items() if not value.fixed}
    sections = [
        f"# {name}",
        _marked(summary),
        f'!!! tip "When to use it"\n    {method.use}',
        _marked(formulas),
        f"`fastopt.{name}` for arrays; `fastopt.torch.{name}` for tensors{twin}.",
        pictures.shown(drawn, name.lower(), f"The path of {name} on two surfaces"),
        f"{pictures.STEPS} steps, each at the best of many rates; the stars are minima." if drawn else "",
        "## Options\n\n" + _options(own),
        "[Options of all optimizers](index.md#options-of-all-of-them): "
        + ", ".join(f"`{option}`" for option in WHOLE)
        + ".",
        "## States and memory\n\n" + _states(cls),
        "## Papers\n\n" + _marked(papers),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _told(method: type[Method]) -> tuple[str, str, str]:
    """Return the parts of a description's docstring: what it is, the formulas, the papers."""
    text, _, papers = (inspect.getdoc(method) or "").partition("\nReferences\n----------\n")
    summary, _, formulas = text.partition("\n\n")
    return summary, formulas, papers


def _options(options: Mapping[str, Option]) -> str:
    rows = [f"| `{name}` | `{option.default!r}` | {_marked(option.meaning)} |" for name, option in options.items()]
    return "| option | default | |\n| --- | --- | --- |\n" + "\n".join(rows)


def _states(cls: type[Optimizer]) -> str:
    method = cls.method
    used = method.rule(method.defaults())[1]
    rows = [
        f"| `{name}` | {_start(method, state.start)} | {'always' if name in used else 'by options'} |"
        for name, state in method.states.items()
    ]
    rows += [f"| `{name}` (a number) | {_start(method, start)} | always |" for name, start in method.numbers.items()]
    rows += ["| `step` (a number) | 0 | always |"] if method.counts_steps else []
    table = "| state | starts as | kept |\n| --- | --- | --- |\n" + "\n".join(rows) if rows else "No states."
    memory = ", ".join(f"{state_bytes(cls, dtype):.3g} with `{dtype}`" for dtype in STORED_AS)
    return (
        f"{table}\n\nWith the default options, bytes of states for each float32 element: {memory}. A step moves at "
        f"least {moved_bytes(state_bytes(cls)):.3g} bytes an element."
    )


def _start(method: type[Method], start: Any) -> str:
    return "the parameter" if start is None else f"`{start}`" if start in method.options else f"{start:g}"


def _marked(text: str) -> str:
    """Return the text of a docstring as Markdown, in which a table of reStructuredText is shown as it is."""
    table = re.compile(r"^=+  =.*^=+  =[ =]*$", re.M | re.S)
    return table.sub(lambda found: f"```text\n{found[0].replace('``', '  ')}\n```", text)


def _drawn(cls: type[schedules.Schedule]) -> dict[str, bytes]:
    """Draw the schedule of a docstring's first example, ``name(...)([0, ..., last])``; one that has a state is not."""
    example = doctest.DocTestParser().get_examples(inspect.getdoc(cls) or "")[0]
    match ast.parse(example.source).body[0]:
        case ast.Expr(ast.Call(ast.Call() as made, [ast.List() as steps])):
            schedule = eval(ast.unparse(made), dict(vars(schedules)))
            return pictures.curve(schedule, ast.literal_eval(steps)[-1])
    return {}
