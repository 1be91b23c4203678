"""The command ``fastopt lessons``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from fastopt.console import fail, plain_console
from fastopt.files import check_writable, replacing
from fastopt.lessons.lesson import Finding, Lesson, names, registry
from fastopt.lessons.report import INDEX, Findings, print_lesson, print_table, to_json, to_markdown

FIGURES = (".png", ".svg")


def lessons(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help=f"Run only this one and draw its figure: {', '.join(names())}.",
            show_default="all",
        ),
    ] = None,
    figure: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where the figure of NAME goes: .png or .svg.", show_default="NAME.png"),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Make a site there: texts, formulas, figures, numbers and code.")
    ] = None,
    markdown: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the table as Markdown.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the table as JSON.")] = False,
) -> None:
    """Measure the claims about optimization that this library rests on, and say which hold."""
    try:
        chosen = _chosen(name)
        picture = _picture(name, figure)
        outputs = [path for path in (picture, markdown, html and html / INDEX) if path]
        for path in outputs:
            check_writable(path)
        # The matrices are small: more threads only get into each other's way.
        with threadpool_limits(1, user_api="blas"):
            findings = _checked(chosen)
            _show(findings, as_json)
            files = list(_files(findings, picture, html, markdown))
        for path, content in files:
            _write(path, content)
    except (ValueError, OSError) as error:
        fail(str(error))
    _report_impossible(chosen)
    for path in outputs:
        plain_console(stderr=True).print(f"wrote {path}", soft_wrap=True, highlight=False)


def _chosen(name: str | None) -> list[Lesson]:
    known = registry()
    if name is not None and name not in known:
        raise ValueError(f"NAME must be one of {', '.join(known)}, got {name!r}")
    return list(known.values()) if name is None else [known[name]]


def _picture(name: str | None, figure: Path | None) -> Path | None:
    if figure is None:
        return None if name is None else Path(f"{name}.png")
    if name is None:
        raise ValueError("--figure needs the NAME of a lesson; --html DIR makes all figures")
    if figure.suffix not in FIGURES:
        raise ValueError(f"--figure must end in {' or '.join(FIGURES)}, got {figure}")
    return figure


def _checked(chosen: Sequence[Lesson]) -> Findings:
    findings: dict[Lesson, list[Finding]] = {}
    total = sum(len(lesson.claims) for lesson in chosen)
    with _progress() as bar:
        task = bar.add_task("", total=total)
        for lesson in chosen:
            bar.update(task, description=lesson.title)
            findings[lesson] = []
            for claim in lesson.claims:
                if claim.possible:
                    findings[lesson].append(claim.check())
                bar.advance(task)
    return findings


def _report_impossible(chosen: Sequence[Lesson]) -> None:
    missing = [claim.needs for lesson in chosen for claim in lesson.claims if not claim.possible]
    for library in dict.fromkeys(missing):
        note = f"{missing.count(library)} claims need {library}, which is not installed: not measured"
        plain_console(stderr=True).print(note, soft_wrap=True, highlight=False)


def _files(
    findings: Findings, picture: Path | None, html: Path | None, markdown: Path | None
) -> Iterator[tuple[Path, bytes]]:
    if picture is not None:
        from fastopt.lessons.drawing import image

        [lesson] = findings
        yield picture, image(lesson.figure(), picture.suffix[1:])
    if markdown is not None:
        yield markdown, to_markdown(findings).encode()
    if html is not None:
        from fastopt.lessons.site import pages

        yield from _drawn(html, pages(findings), len(findings) + 2)


def _drawn(html: Path, pages: Iterable[tuple[str, str]], total: int) -> Iterator[tuple[Path, bytes]]:
    with _progress() as bar:
        for file, page in bar.track(pages, total, description="Pages"):
            yield html / file, page.encode()


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def _progress() -> Progress:
    console = plain_console(stderr=True)
    columns = (TextColumn("{task.description:<17}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _show(findings: Findings, as_json: bool) -> None:
    if as_json:
        print(to_json(findings))
        return
    console = plain_console()
    if len(findings) == 1:
        [lesson] = findings
        print_lesson(console, lesson)
    print_table(console, findings, in_full=len(findings) == 1)
