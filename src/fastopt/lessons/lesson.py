"""What a lesson is: a topic with claims, each of which is measured and then believed or not."""

from __future__ import annotations

import inspect
import math
import pkgutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastopt.lessons import topics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[np.float64]
Measure = Callable[[], float | Sequence[float]]

ROUNDING = 1e-9
"""What is smaller than this is not told from zero: processors differ in how they round, and it adds up."""


@dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`, both included; NaN is in no range."""

    low: float = -math.inf
    high: float = math.inf

    def __contains__(self, number: float) -> bool:
        return self.low <= number <= self.high

    def __str__(self) -> str:
        if number_text(self.low) == number_text(self.high):
            return number_text(self.low)
        if self.low == -math.inf:
            return f"≤\N{NO-BREAK SPACE}{number_text(self.high)}"
        if self.high == math.inf:
            return f"≥\N{NO-BREAK SPACE}{number_text(self.low)}"
        return f"{number_text(self.low)} to {number_text(self.high)}"


def exactly(number: float) -> Range:
    """Return the range of this one number."""
    return Range(number, number)


def near(number: float, tolerance: float) -> Range:
    """Return the range around a number, `tolerance` being a fraction of it."""
    margin = abs(number) * tolerance
    return Range(number - margin, number + margin)


def at_least(number: float) -> Range:
    """Return the range from a number up."""
    return Range(low=number)


def at_most(number: float) -> Range:
    """Return the range up to a number."""
    return Range(high=number)


def between(low: float, high: float) -> Range:
    """Return the range between two numbers."""
    return Range(low, high)


def number_text(number: float, digits: int = 4) -> str:
    """Return a number as the tables show it, which is the same on every processor."""
    if abs(number) < ROUNDING:
        return "0"
    mantissa, _, exponent = f"{float(f'{number:.{digits}g}'):g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


@dataclass(frozen=True)
class Claim:
    """A statement, and the experiment that decides whether it holds.

    Attributes
    ----------
    name : str
        Unique within its lesson.
    statement : str
        What is claimed.
    setting : str
        What the experiment is done on, in words.
    quantity : str
        What is measured.
    expected : tuple of Range
        Where each number has to be for the claim to hold: at the value that theory gives, or where theory gives only
        a direction, clearly on that side.
    explanation : str
        Why it should hold, or why it does not; the docstring of `measure`.
    measure : callable
        Does the experiment and returns the number, or as many as there are ranges.
    digits : int
        Significant digits that are shown of the numbers.
    varies : bool
        Whether the numbers depend on the machine: times do, and what a chaotic run makes of the last bit.
    needs : str or None
        The library beyond NumPy without which the experiment cannot be done.
    """

    name: str
    statement: str
    setting: str
    quantity: str
    expected: tuple[Range, ...]
    explanation: str
    measure: Measure
    digits: int
    varies: bool
    needs: str | None

    @property
    def possible(self) -> bool:
        """Whether what the experiment needs is installed."""
        return self.needs is None or find_spec(self.needs) is not None

    def check(self) -> Finding:
        """Do the experiment; `ImportError` where it is not possible."""
        measured = self.measure()
        numbers = tuple(map(float, measured)) if isinstance(measured, Sequence) else (float(measured),)
        holds = all(number in expected for number, expected in zip(numbers, self.expected, strict=True))
        return Finding(self, numbers, holds)

    @property
    def line(self) -> int:
        """Line of the topic's file where the experiment starts."""
        return inspect.getsourcelines(self.measure)[1]


@dataclass(frozen=True)
class Finding:
    """What came out for a claim: the numbers, and whether all are where they were expected."""

    claim: Claim
    numbers: tuple[float, ...]
    holds: bool

    @property
    def number_text(self) -> str:
        """The numbers as the tables show them."""
        return ", ".join(number_text(number, self.claim.digits) for number in self.numbers)

    @property
    def expected_text(self) -> str:
        """The expected ranges as the tables show them."""
        ranges = list(map(str, self.claim.expected))
        return f"each {ranges[0]}" if len(ranges) > 1 and len(set(ranges)) == 1 else ", ".join(ranges)

    @property
    def verdict(self) -> str:
        """The decision in words."""
        return "holds" if self.holds else "does not hold"


class Lesson:
    """A topic: the claims and the figure of one module of `fastopt.lessons.topics`.

    Parameters
    ----------
    module : str
        ``__name__`` of the topic's module. Its docstring is the text: the first line the title, the rest paragraphs.
    number : int
        Place among the lessons, from 1.
    formula : str
        The update, or what the lesson is about, as lines of plain Unicode.
    """

    def __init__(self, module: str, *, number: int, formula: str) -> None:
        self.module = sys.modules[module]
        self.name = module.rpartition(".")[2].replace("_", "-")
        self.number = number
        self.formula = inspect.cleandoc(formula)
        title, _, text = inspect.cleandoc(self.module.__doc__ or "").partition("\n")
        self.title = title.rstrip(".")
        self.text = text.strip()
        self.claims: list[Claim] = []
        self._panels = 0
        self._draw: Callable[..., None] | None = None

    def claim(
        self,
        statement: str,
        *,
        setting: str,
        quantity: str,
        expected: Range | tuple[Range, ...],
        digits: int = 3,
        varies: bool = False,
        needs: str | None = None,
    ) -> Callable[[Measure], Measure]:
        """Add the decorated function as the experiment of a claim; the arguments are the fields of `Claim`."""

        def add(measure: Measure) -> Measure:
            ranges = expected if isinstance(expected, tuple) else (expected,)
            name = measure.__name__.replace("_", "-")
            explanation = inspect.cleandoc(measure.__doc__ or "")
            self.claims.append(
                Claim(name, statement, setting, quantity, ranges, explanation, measure, digits, varies, needs)
            )
            return measure

        return add

    def draw(self, panels: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
        """Take the decorated function as the figure: it draws on as many axes; its docstring is the caption."""

        def take(draw: Callable[..., None]) -> Callable[..., None]:
            self._panels, self._draw = panels, draw
            return draw

        return take

    def figure(self, columns: int = 2) -> Figure:
        """Draw the figure, so many panels side by side; needs matplotlib."""
        from fastopt.lessons.drawing import drawn

        return drawn(self._drawing, self._panels, columns)

    @property
    def caption(self) -> str:
        """What the figure shows."""
        return " ".join(inspect.cleandoc(self._drawing.__doc__ or "").split())

    @property
    def source(self) -> str:
        """The code of the topic's file."""
        return inspect.getsource(self.module)

    @property
    def _drawing(self) -> Callable[..., None]:
        if self._draw is None:
            raise TypeError(f"{self.module.__name__} has no function decorated with LESSON.draw")
        return self._draw


def names() -> list[str]:
    """Return the names of all lessons, without running a line of them."""
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(topics.__path__))


def registry() -> dict[str, Lesson]:
    """Return the lessons by name, in their order: every module of `fastopt.lessons.topics` has one as `LESSON`."""
    modules: list[Any] = [import_module(f"{topics.__name__}.{name.replace('-', '_')}") for name in names()]
    ordered = sorted((module.LESSON for module in modules), key=lambda lesson: lesson.number)
    return {lesson.name: lesson for lesson in ordered}
