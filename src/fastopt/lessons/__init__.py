"""The lessons, run: every claim about optimization that this library rests on, measured on its own kernels.

>>> from fastopt import lessons
>>> lesson = lessons.registry()["gradient-descent"]
>>> finding = lesson.claims[0].check()
>>> finding.numbers, finding.verdict
((4.8,), 'holds')

The topics are in `fastopt.lessons.topics`, one file each. Nothing but NumPy is needed until a figure is drawn.
"""

from fastopt.lessons.lesson import Claim, Finding, Lesson, Range, registry

__all__ = ["Claim", "Finding", "Lesson", "Range", "registry"]
