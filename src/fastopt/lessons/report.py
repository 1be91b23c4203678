"""The findings as a table for a terminal, as Markdown and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastopt.lessons.lesson import Finding, Lesson

INTRODUCTION = """\
What is said about optimization, measured on fastopt's own kernels. Each claim says where its number has to be: at the
value that theory gives, or where theory gives only a direction, clearly on that side. The settings are small ones in
which the effect can be seen if it is there. A claim that does not hold is left as it is, with the reason."""

INDEX = "index.html"
"""The first page of the site."""

Findings = Mapping[Lesson, Sequence[Finding]]
"""What came out for each lesson, in order."""


def summary(findings: Findings) -> str:
    """Return in a sentence how many claims hold."""
    verdicts = [finding.holds for group in findings.values() for finding in group]
    return f"{sum(verdicts)} of {len(verdicts)} claims hold."


def print_table(console: Console, findings: Findings, *, in_full: bool = False) -> None:
    """Print the claims by lesson: what was measured, the number, what was expected, and the verdict.

    In full, with the setting of each experiment and the reason.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 2, 1, 0), header_style="bold")
    table.add_column("claim")
    table.add_column("measured")
    table.add_column(_with_details("number", "expected"), max_width=20)
    table.add_column("verdict", width=8)
    for lesson, group in findings.items():
        table.add_row(Text(f"{lesson.number}. {lesson.title}", style="bold cyan"))
        for finding in group:
            table.add_row(
                _with_details(finding.claim.statement, finding.claim.explanation if in_full else ""),
                _with_details(finding.claim.quantity, finding.claim.setting if in_full else ""),
                _with_details(finding.number_text, finding.expected_text),
                Text(finding.verdict, style="green" if finding.holds else "bold red"),
            )
    console.print(table)
    console.print(f"\n{summary(findings)}", highlight=False)


def _with_details(text: str, details: str) -> Text:
    return Text.assemble(text, ("\n" + _one_line(details) if details else "", "dim"))


def print_lesson(console: Console, lesson: Lesson) -> None:
    """Print the title, the text and the formula of a lesson."""
    console.print(Text(lesson.title, style="bold cyan"))
    console.print()
    console.print(Text(" ".join(lesson.text.split())))
    console.print()
    console.print(Text(lesson.formula, style="cyan"), soft_wrap=True)
    console.print()


def to_json(findings: Findings) -> str:
    """Return the findings as a JSON list, an object a claim; what is not finite is null, as are open ends of ranges."""
    records = [
        {
            "lesson": lesson.name,
            "name": finding.claim.name,
            "claim": finding.claim.statement,
            "setting": finding.claim.setting,
            "measured": finding.claim.quantity,
            "numbers": [_finite(number) for number in finding.numbers],
            "expected": [[_finite(expected.low), _finite(expected.high)] for expected in finding.claim.expected],
            "holds": finding.holds,
            "varies": finding.claim.varies,
        }
        for lesson, group in findings.items()
        for finding in group
    ]
    return json.dumps(records, indent=2, ensure_ascii=False, allow_nan=False)


def to_markdown(findings: Findings) -> str:
    """Return the findings as a page of Markdown, without the numbers that depend on the machine."""
    sections = [section(lesson, group) for lesson, group in findings.items()]
    head = (
        f"# The lessons, run\n\n{INTRODUCTION}\n{summary(findings)}\n\n"
        "This page is made by `fastopt lessons --markdown docs/lessons.md`. `fastopt lessons` runs them all, "
        "`fastopt lessons NAME`\none of them with its figure, `fastopt lessons --html DIR` makes a site of text, "
        "figures and code. Each lesson is one\nfile in [`src/fastopt/lessons/topics`](../src/fastopt/lessons/topics): "
        "take one and change it.\n"
    )
    return "\n".join([head, *sections])


def section(lesson: Lesson, group: Sequence[Finding]) -> str:
    """Return the part of the page that is about one lesson."""
    path = f"../src/fastopt/lessons/topics/{lesson.name.replace('-', '_')}.py"
    rows = [_row(finding) for finding in group]
    failures = [
        f"*{finding.claim.statement}* does not hold: {_one_line(finding.claim.explanation)}\n"
        for finding in group
        if not finding.holds
    ]
    return "\n".join(
        [
            f"## {lesson.number}. [{lesson.title}]({path})\n",
            f"{lesson.text}\n",
            f"```\n{lesson.formula}\n```\n",
            "| claim | setting | measured | number | expected | verdict |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
            *failures,
        ]
    )


def _row(finding: Finding) -> str:
    claim = finding.claim
    number = "depends on the machine" if claim.varies else finding.number_text
    verdict = finding.verdict if finding.holds else f"**{finding.verdict}**"
    cells = (claim.statement, claim.setting, claim.quantity, number, finding.expected_text, verdict)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
