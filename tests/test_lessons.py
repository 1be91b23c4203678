"""The lessons: what they measure, and that what is said of it anywhere is what was measured."""

import json
import re
import subprocess
import sys
from functools import cache
from html.parser import HTMLParser
from io import StringIO
from itertools import islice
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from rich.console import Console
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from typer.testing import CliRunner

from fastopt.cli import app
from fastopt.lessons import Claim, Finding, Lesson, Range, registry
from fastopt.lessons.drawing import image
from fastopt.lessons.lesson import at_least, at_most, between, exactly, names, near, number_text
from fastopt.lessons.report import INDEX, INTRODUCTION, print_table, section, summary, to_json, to_markdown
from fastopt.lessons.site import pages

PAGE = Path(__file__).parents[1] / "docs" / "lessons.md"

DO_NOT_HOLD = {
    "noise/ends-lower",
    "momentum/zigzag-at-full-speed",
    "rmsprop/turned",
    "rmsprop/better-than-clipped",
    "adam/both-components",
    "adamw/better-than-l2",
    "landscapes/ends-flat",
    "schedules/one-cycle",
    "schedules/forgets-less",
    "warmup/waiting",
    "warmup/starting-anew",
    "warmup/transformer",
    "recipe/warmup",
    "recipe/usual-numbers",
    "recipe/transformer-numbers",
}
"""What the experiments decided: a verdict that changes is news."""

SLOW = {
    "batches",
    "noise",
    "rmsprop",
    "depth",
    "landscapes",
    "adam",
    "adamw",
    "schedules",
    "warmup",
    "recipe",
    "precision",
}

LESSONS = registry()
EACH_LESSON = [
    pytest.param(lesson, id=name, marks=pytest.mark.slow if name in SLOW else ()) for name, lesson in LESSONS.items()
]
EACH_CLAIM = [
    pytest.param(lesson, claim, id=f"{name}/{claim.name}", marks=pytest.mark.slow if name in SLOW else ())
    for name, lesson in LESSONS.items()
    for claim in lesson.claims
]


def findings_of(lesson: Lesson) -> list[Finding]:
    for claim in lesson.claims:
        if claim.needs is not None:
            pytest.importorskip(claim.needs)
    return [checked(claim) for claim in lesson.claims]


@cache
def checked(claim: Claim) -> Finding:
    with threadpool_limits(1, user_api="blas"):  # as the command does: more threads are slower
        return claim.check()


# --- What they measure ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("lesson", "claim"), EACH_CLAIM)
def test_claim(lesson: Lesson, claim: Claim) -> None:
    if claim.needs is not None:
        pytest.importorskip(claim.needs)
    finding = checked(claim)
    assert np.isfinite(finding.numbers).all()
    assert finding.holds == (f"{lesson.name}/{claim.name}" not in DO_NOT_HOLD), finding.number_text


@pytest.mark.parametrize("lesson", EACH_LESSON)
def test_page_of_the_documentation_is_up_to_date(lesson: Lesson) -> None:
    findings = findings_of(lesson)
    assert section(lesson, findings) in PAGE.read_text(encoding="utf-8"), (
        "make it anew: fastopt lessons --markdown docs/lessons.md"
    )


def test_page_of_the_documentation_counts_what_it_shows() -> None:
    page = PAGE.read_text(encoding="utf-8")
    hold, fail = page.count("| holds |"), page.count("| **does not hold** |")
    assert f"{hold} of {hold + fail} claims hold." in page
    assert INTRODUCTION in page
    assert fail == len(DO_NOT_HOLD)
    assert hold + fail == sum(len(lesson.claims) for lesson in LESSONS.values())


@pytest.mark.parametrize("lesson", EACH_LESSON)
def test_figure_is_labelled_and_its_legends_hide_nothing(lesson: Lesson) -> None:
    figure = lesson.figure()
    assert image(figure, "png").startswith(b"\x89PNG")
    for axes in figure.axes:
        assert axes.get_xlabel()
        assert axes.get_ylabel()
        assert axes.get_title()
        legend = axes.get_legend()
        if legend is not None:
            assert not legend.get_window_extent().overlaps(axes.get_window_extent())
    assert lesson.caption.endswith(".")


def test_same_numbers_in_another_process_with_another_number_of_threads() -> None:
    code = """
import sys
from fastopt import lessons, set_num_threads
set_num_threads(int(sys.argv[1]))
for name in ("momentum", "rmsprop"):
    for claim in lessons.registry()[name].claims:
        print(claim.name, *map(float.hex, claim.check().numbers))
"""
    outputs = [
        subprocess.run([sys.executable, "-c", code, threads], capture_output=True, text=True, check=True).stdout
        for threads in ("1", "2")
    ]
    assert outputs[0] == outputs[1]
    assert outputs[0].count("\n") == len(LESSONS["momentum"].claims) + len(LESSONS["rmsprop"].claims)


def test_lessons_are_numbered_and_told() -> None:
    assert [lesson.number for lesson in LESSONS.values()] == list(range(1, len(LESSONS) + 1))
    assert sorted(LESSONS) == names()
    for lesson in LESSONS.values():
        assert lesson.title
        assert lesson.text.endswith(".")
        assert lesson.formula
        assert len({claim.name for claim in lesson.claims}) == len(lesson.claims)
        for claim in lesson.claims:
            assert claim.explanation.endswith((".", ")."))
            lines = lesson.source.splitlines()
            assert lines[claim.line - 1].startswith("@LESSON.claim")


def test_experiments_need_no_library_but_numpy() -> None:
    code = (
        "import sys; from fastopt import lessons; lessons.registry()['momentum'].claims[0].check(); print(*sys.modules)"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(process.stdout.split()) & {"matplotlib", "rich", "typer", "plotly", "sklearn", "safetensors"}


# --- How a claim is decided -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expected", "inside", "outside", "text"),
    [
        (exactly(4.8), [4.8], [4.8000001], "4.8"),
        (near(10.0, 0.01), [9.9, 10.1], [9.89, 10.11], "9.9 to 10.1"),
        (near(-2.0, 0.5), [-3.0, -1.0], [-3.1, 1.0], "-3 to -1"),
        (at_least(2.0), [2.0, np.inf], [1.99], "≥\N{NO-BREAK SPACE}2"),
        (at_most(1e-9), [1e-9, -np.inf], [1e-8], "≤\N{NO-BREAK SPACE}1e-9"),
        (between(0.0, 1.0), [0.0, 1.0], [-0.1, 1.1], "0 to 1"),
    ],
)
def test_range(expected: Range, inside: list[float], outside: list[float], text: str) -> None:
    assert all(number in expected for number in inside)
    assert not any(number in expected for number in [*outside, np.nan])
    assert str(expected) == text


@pytest.mark.parametrize(
    ("number", "digits", "text"),
    [
        (7.136e-5, 3, "7.14e-5"),
        (1186.88, 4, "1187"),
        (162.0, 2, "160"),
        (4e-16, 3, "0"),
        (-0.5, 3, "-0.5"),
        (12, 1, "10"),
    ],
)
def test_number_text(number: float, digits: int, text: str) -> None:
    assert number_text(number, digits) == text


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Lesson:
    """Return a lesson of four claims, one of which does not hold, one whose number varies."""
    module = ModuleType("topics.an_example", "An <example>.\n\nText of\nthe lesson.\n")
    module.__file__ = __file__  # where its code is
    monkeypatch.setitem(sys.modules, module.__name__, module)
    lesson = Lesson(module.__name__, number=1, formula="  w ← w - g  \n  a < b")

    @lesson.claim("One & one is two", setting="arithmetic", quantity="1 + 1", expected=exactly(2.0))
    def sum_of_two() -> float:
        """By counting."""
        return 2.0

    @lesson.claim("Both are small", setting="the same", quantity="|a|, |b|", expected=(at_most(1.0), at_most(1.0)))
    def two_numbers() -> list[float]:
        """Not at all: b is
        larger.
        """
        return [0.5, 3.0]

    @lesson.claim("It is fast", setting="a clock", quantity="seconds", expected=at_least(0.0), varies=True)
    def timed() -> float:
        """It takes time."""
        return 0.123

    @lesson.claim("It is never reached", setting="a division", quantity="0/0", expected=at_least(0.0))
    def not_a_number() -> float:
        """NaN is in no range."""
        return float("nan")

    return lesson


@pytest.fixture
def findings(example: Lesson) -> dict[Lesson, list[Finding]]:
    return {example: [claim.check() for claim in example.claims]}


def test_verdicts(example: Lesson, findings: dict[Lesson, list[Finding]]) -> None:
    assert [finding.verdict for finding in findings[example]] == ["holds", "does not hold", "holds", "does not hold"]
    assert findings[example][1].numbers == (0.5, 3.0)
    assert findings[example][1].expected_text == "each ≤\N{NO-BREAK SPACE}1"
    assert (example.name, example.title, example.text) == ("an-example", "An <example>", "Text of\nthe lesson.")
    assert summary(findings) == "2 of 4 claims hold."


def test_numbers_must_be_as_many_as_ranges(example: Lesson) -> None:
    @example.claim("Two", setting="", quantity="", expected=(at_least(0.0), at_least(0.0)))
    def one_number() -> float:
        return 1.0

    with pytest.raises(ValueError, match="zip"):
        example.claims[-1].check()


def test_what_cannot_be_measured_is_left_out_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastopt.lessons.lesson.find_spec", lambda name: None)
    with_torch = [claim.name for claim in LESSONS["warmup"].claims if claim.needs == "torch"]
    assert with_torch == ["transformer"]
    for lesson in LESSONS.values():
        monkeypatch.setattr(lesson, "claims", [claim for claim in lesson.claims if claim.needs][:1])
    output, notes = run("recipe", "--json", "--figure", "f.svg")
    assert json.loads(output) == []
    assert "1 claims need torch, which is not installed: not measured" in notes


def test_lesson_without_figure_says_so(example: Lesson) -> None:
    with pytest.raises(TypeError, match=r"topics.an_example has no function decorated with LESSON\.draw"):
        example.figure()


def test_table(findings: dict[Lesson, list[Finding]]) -> None:
    output = StringIO()
    print_table(Console(width=100, file=output), findings)
    lines = output.getvalue().splitlines()
    [row] = [line for line in lines if "Both are small" in line]
    assert re.fullmatch(r"Both are small +\|a\|, \|b\| +0\.5, 3 +does not *", row)
    assert lines[-1] == "2 of 4 claims hold."


def test_json(findings: dict[Lesson, list[Finding]]) -> None:
    first, second, third, fourth = json.loads(to_json(findings))
    assert first == {
        "lesson": "an-example",
        "name": "sum-of-two",
        "claim": "One & one is two",
        "setting": "arithmetic",
        "measured": "1 + 1",
        "numbers": [2.0],
        "expected": [[2.0, 2.0]],
        "holds": True,
        "varies": False,
    }
    assert second["expected"] == [[None, 1.0]] * 2
    assert third["varies"]
    assert fourth["numbers"] == [None]


def test_markdown(findings: dict[Lesson, list[Finding]]) -> None:
    page = to_markdown(findings)
    assert "| Both are small | the same | \\|a\\|, \\|b\\| | 0.5, 3 |" in page
    assert "| **does not hold** |" in page
    assert "*Both are small* does not hold: Not at all: b is larger." in page
    assert "0.123" not in page
    assert "2 of 4 claims hold." in page


# --- The site -------------------------------------------------------------------------------------------------------


class Outline(HTMLParser):
    """What a page refers to, and whether its elements are closed in order."""

    VOID = frozenset({"meta", "br", "path", "use", "image", "rect", "circle", "line", "polyline", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.ids: set[str] = set()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        values = dict(attributes)
        self.ids.update(str(values[key]) for key in ("id", "name") if key in values)
        self.links += [str(values[key]) for key in ("href", "src", "xlink:href") if key in values]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def site() -> dict[str, str]:
    chosen = [LESSONS[name] for name in ("gradient-descent", "momentum")]
    made = pages({lesson: [checked(claim) for claim in lesson.claims] for lesson in chosen})
    return dict(islice(made, 3))  # without the landscape, which has tests of its own


@pytest.mark.parametrize("name", ["index.html", "gradient-descent.html", "momentum.html"])
def test_pages_are_complete_and_need_nothing_else(site: dict[str, str], name: str) -> None:
    outline = Outline()
    outline.feed(site[name])
    assert outline.open == []
    assert not outline.tags & {"link", "img", "iframe"}
    assert ("script" in outline.tags) == ("script-src 'unsafe-inline'" in site[name]) == (name == "index.html")
    for link in outline.links:
        assert link.partition("#")[0] in {*site, "landscape.html"} or link[1:] in outline.ids, link
    assert "@import" not in site[name]
    assert not re.search(r"url\((?!#)", site[name])


def test_page_shows_text_formula_numbers_figure_and_code(site: dict[str, str]) -> None:
    page, lesson = site["momentum.html"], LESSONS["momentum"]
    assert "v ← beta · v + g" in page
    assert page.count("<svg") == 2
    assert lesson.caption in page
    assert page.count("does not hold") == 1
    for claim in lesson.claims:
        assert f'href="#line-{claim.line}"' in page
    assert '<span class="nd">@cache</span>' in page


def test_pages_escape_what_they_show(findings: dict[Lesson, list[Finding]], example: Lesson) -> None:
    @example.draw(panels=1)
    def figure(axes: object) -> None:
        """Nothing."""

    index, page = islice(pages(findings), 2)
    assert "An &lt;example&gt;" in index[1]
    news, table = index[1].index("What does not hold"), index[1].index("<table>")
    assert news < index[1].index("Not at all: b is\nlarger.") < table, "what does not hold comes first, with the reason"
    assert "One &amp; one" in page[1]
    assert "a &lt; b" in page[1]


# --- The command ----------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str, status: int = 0) -> tuple[str, str]:
    result = CliRunner().invoke(app, ["lessons", *arguments], env={"COLUMNS": "110"})
    assert result.exit_code == status, result.output
    return result.stdout, result.stderr


def test_one_lesson_with_its_figure(empty_directory: Path) -> None:
    output, notes = run("gradient-descent")
    assert output.startswith("Gradient descent\n")
    assert "w ← w - lr · g" in output
    assert "5 - 0.1 · 2 = 4.8." in output
    assert output.endswith("8 of 8 claims hold.\n")
    assert notes == "wrote gradient-descent.png\n"
    assert [file.name for file in empty_directory.iterdir()] == ["gradient-descent.png"]


def test_figure_json_and_markdown_of_one_lesson(empty_directory: Path) -> None:
    output, notes = run("gradient-descent", "--figure", "new/f.svg", "--json", "--markdown", "m.md")
    assert [record["lesson"] for record in json.loads(output)] == ["gradient-descent"] * 8
    assert notes == "wrote new/f.svg\nwrote m.md\n"
    assert b"<svg" in (empty_directory / "new" / "f.svg").read_bytes()
    assert (empty_directory / "m.md").read_text().startswith("# The lessons, run\n")


def test_same_figure_is_the_same_file() -> None:
    lesson = LESSONS["gradient-descent"]
    for kind in ("png", "svg"):
        assert image(lesson.figure(), kind) == image(lesson.figure(), kind)


def test_site_of_one_lesson(empty_directory: Path) -> None:
    run("gradient-descent", "--html", "site")
    assert {file.name for file in (empty_directory / "site").iterdir()} == {
        "index.html",
        "gradient-descent.html",
        "landscape.html",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fame"], "error: NAME must be one of gradient-descent, batches, "),
        (["--figure=f.png"], "error: --figure needs the NAME of a lesson"),
        (["momentum", "--figure=f.gif"], "error: --figure must end in .png or .svg, got f.gif"),
    ],
)
def test_errors_take_one_line_and_come_before_the_work(arguments: list[str], message: str) -> None:
    output, notes = run(*arguments, status=2)
    assert output == ""
    assert notes.startswith(message)
    assert notes.count("\n") == 1


def test_what_cannot_be_written_is_said(empty_directory: Path) -> None:
    (empty_directory / "site").write_text("a file")
    (empty_directory / "m.md").mkdir()
    for option, target, reason in (
        ("--html", "site", f"{Path('site') / INDEX} cannot be written: {empty_directory / 'site'} is not a directory"),
        ("--markdown", "m.md", "m.md cannot be written: it is a directory"),
        ("--figure", "site/f.png", "site/f.png cannot be written: "),
    ):
        output, notes = run("gradient-descent", option, target, status=2)
        assert output == "", "found out before the work"
        assert notes.startswith(f"error: {reason}")
        assert notes.count("\n") == 1
    assert sorted(file.name for file in empty_directory.iterdir()) == ["m.md", "site"]


@pytest.mark.slow
def test_all_lessons_at_once(empty_directory: Path) -> None:
    script = "from fastopt.__main__ import main; main()"
    process = subprocess.run(
        [sys.executable, "-c", script, "lessons", "--html=site"], capture_output=True, text=True, check=True
    )
    assert process.stdout.endswith(f"{len(EACH_CLAIM) - len(DO_NOT_HOLD)} of {len(EACH_CLAIM)} claims hold.\n")
    assert len(list((empty_directory / "site").iterdir())) == len(LESSONS) + 2
