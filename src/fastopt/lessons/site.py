"""The site: a front page with the walk and all findings, and a page a lesson with text, figure, numbers and code.

Every page is one file that needs nothing else, follows the reader's choice of light or dark, and fits a telephone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from html import escape
from importlib import resources
from string import Template

from fastopt import landscape, surfaces
from fastopt.lessons.drawing import INK, PAPER, image
from fastopt.lessons.lesson import Finding, Lesson
from fastopt.lessons.report import INDEX, INTRODUCTION, Findings, summary
from fastopt.lessons.walk import walk

LANDSCAPE = "landscape.html"
TITLE = "Optimization in eight steps"
STEPS = 200
SHOWN_SURFACES = (
    "parabola",
    "bowl",
    "ravine",
    "rosenbrock",
    "saddle",
    "plateau",
    "cliff",
    "sharp_and_flat",
    "himmelblau",
)
SHOWN_OPTIMIZERS = ("gd", "momentum", "nesterov", "rmsprop", "adam")
SHOWN_RATES = (0.001, 0.01, 0.1)
TOO_HIGH = 1.1
"""On the parabola, to see what a rate does that is too high."""


def pages(findings: Findings) -> Iterator[tuple[str, str]]:
    """Make the files of the site.

    Parameters
    ----------
    findings : mapping of Lesson to sequence of Finding
        What came out.

    Yields
    ------
    name, content : str
        The front page first, then a page for each lesson, then the page on which optimizers move over surfaces.
    """
    yield INDEX, _page(TITLE, _index(findings), style="walk.css", script="walk.js")
    lessons = list(findings)
    for place, lesson in enumerate(lessons):
        neighbours = lessons[place - 1] if place else None, lessons[place + 1] if place + 1 < len(lessons) else None
        yield _file(lesson), _page(lesson.title, _lesson(lesson, findings[lesson], neighbours))
    shown = [surfaces.registry()[name]() for name in SHOWN_SURFACES]
    runs = landscape.run(shown, SHOWN_OPTIMIZERS, SHOWN_RATES, STEPS)
    high = landscape.run([surface for surface in shown if surface.n == 1], SHOWN_OPTIMIZERS, [TOO_HIGH], STEPS)
    yield LANDSCAPE, landscape.page([*runs, *high])


def _page(title: str, body: str, *, style: str | None = None, script: str | None = None) -> str:
    return Template(_asset("page.html")).substitute(
        title=escape(title),
        style=_asset("page.css") + (_asset(style) if style else "") + _code_style(),
        scripts="'unsafe-inline'" if script else "'none'",
        script=f"<script>\n{_asset(script)}</script>\n" if script else "",
        body=body,
    )


def _asset(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _file(lesson: Lesson) -> str:
    return f"{lesson.name}.html"


def _link(file: str, text: str) -> str:
    return f'<a href="{file}">{escape(text)}</a>'


def _index(findings: Findings) -> str:
    failing = {lesson: [finding for finding in group if not finding.holds] for lesson, group in findings.items()}
    news = "".join(_news(lesson, finding) for lesson, group in failing.items() for finding in group)
    sections = [
        f"<h2>{lesson.number}. {_link(_file(lesson), lesson.title)}</h2>\n{_table(group, with_reasons=False)}"
        for lesson, group in findings.items()
    ]
    return "\n".join(
        [
            f"<h1>{TITLE}</h1>",
            walk(findings, _file, LANDSCAPE),
            f"<h2>The lessons, run</h2>\n<p>{escape(INTRODUCTION)} {summary(findings)}</p>",
            f"<p>{_link(LANDSCAPE, 'Optimizers on their way down')}: watch them move over test surfaces.</p>",
            *([f'<h2>What does not hold</h2>\n<dl id="news">{news}</dl>'] if news else []),
            f"<nav>{' '.join(_link(_file(lesson), lesson.title) for lesson in findings)}</nav>",
            *sections,
        ]
    )


def _news(lesson: Lesson, finding: Finding) -> str:
    """Return what a claim that does not hold teaches."""
    claim = finding.claim
    return (
        f"<dt>{escape(claim.statement)}</dt><dd>{escape(claim.quantity)}: {escape(finding.number_text)} "
        f"(expected {escape(finding.expected_text)}). {escape(claim.explanation)} "
        f"{_link(_file(lesson), lesson.title)}</dd>"
    )


def _lesson(lesson: Lesson, group: Sequence[Finding], neighbours: tuple[Lesson | None, Lesson | None]) -> str:
    before, after = neighbours
    links = [
        _link(INDEX, "All lessons"),
        *([_link(_file(before), f"← {before.title}")] if before else []),
        *([_link(_file(after), f"{after.title} →")] if after else []),
    ]
    paragraphs = [f"<p>{escape(paragraph)}</p>" for paragraph in lesson.text.split("\n\n")]
    return "\n".join(
        [
            f"<nav>{' '.join(links)}</nav>",
            f"<h1>{escape(lesson.title)}</h1>",
            *paragraphs,
            f'<pre class="formula">{escape(lesson.formula)}</pre>',
            _figure(lesson),
            f"<h2>Claims</h2>\n{_table(group, with_reasons=True)}",
            f"<h2>The code that made this page</h2>\n{_code(lesson)}",
        ]
    )


def _table(group: Sequence[Finding], with_reasons: bool) -> str:
    head = "".join(f'<th scope="col">{name}</th>' for name in ("claim", "measured", "number", "expected", "verdict"))
    rows = "\n".join(_row(finding, with_reasons) for finding in group)
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>"


def _row(finding: Finding, with_reasons: bool) -> str:
    claim = finding.claim
    reason = (
        f'<p class="why">{escape(claim.explanation)} <a href="#line-{claim.line}">code</a></p>' if with_reasons else ""
    )
    verdict = "holds" if finding.holds else "fails"
    return (
        f"<tr><td><p>{escape(claim.statement)}</p>{reason}</td>"
        f'<td><p>{escape(claim.quantity)}</p><p class="setting">{escape(claim.setting)}</p></td>'
        f'<td class="number" data-label="number">{_lines(finding.number_text)}</td>'
        f'<td class="number" data-label="expected">{_lines(finding.expected_text)}</td>'
        f'<td class="verdict {verdict}">{finding.verdict}</td></tr>'
    )


def _lines(numbers: str) -> str:
    """Return the numbers of a list one by one: below each other, each is beside what was expected of it."""
    return "".join(f"<span>{number}</span>" for number in escape(numbers).split(", "))


def _figure(lesson: Lesson) -> str:
    """Return the figure twice: with panels side by side, and for narrow screens with all of them below each other."""
    drawings = [_svg(lesson, columns, look) for columns, look in ((2, "wide"), (1, "narrow"))]
    return f"<figure>\n{''.join(drawings)}\n<figcaption>{escape(lesson.caption)}</figcaption>\n</figure>"


def _svg(lesson: Lesson, columns: int, look: str) -> str:
    drawing = image(lesson.figure(columns), "svg").decode()
    drawing = drawing[drawing.index("<svg") :].replace(INK, "currentColor").replace(PAPER, "none")
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    return drawing.replace("<svg", f'<svg class="{look}" role="img" aria-label="{escape(lesson.caption)}"', 1)


def _code(lesson: Lesson) -> str:
    from pygments import highlight  # type: ignore[import-untyped]
    from pygments.formatters import HtmlFormatter  # type: ignore[import-untyped]
    from pygments.lexers import PythonLexer  # type: ignore[import-untyped]

    return str(highlight(lesson.source, PythonLexer(), HtmlFormatter(cssclass="code", lineanchors="line")))


def _code_style() -> str:
    from pygments.formatters import HtmlFormatter

    light, dark = (_rules(HtmlFormatter(style=style)) for style in ("default", "github-dark"))
    return f"\n{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}\n"


def _rules(formatter: object) -> str:
    """Return the colours of the words, not those of the box around them."""
    rules = formatter.get_style_defs(".code").splitlines()  # type: ignore[attr-defined]
    return "\n".join(rule for rule in rules if re.match(r"\.code \.\w+ {", rule))
