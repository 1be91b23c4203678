"""How the paths are told apart: by colour, by dash pattern and by marker, each enough by itself."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from fastopt.landscape.runs import Run


class Style(NamedTuple):
    """The look of one optimizer's paths; dash and symbol by their names in Plotly."""

    color: str
    dash: str
    symbol: str


# The palette of Okabe and Ito (2008), which colour-blind readers can tell apart, without its yellow and black, which
# vanish on white and on black paper. Fewer dashes than colours and markers: they repeat out of step.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A8A8A")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")


def styles(names: Iterable[str]) -> dict[str, Style]:
    """Return a style for every distinct name, in order of first appearance; 42 of them differ."""
    return {
        name: Style(COLORS[i % len(COLORS)], DASHES[i % len(DASHES)], SYMBOLS[i % len(SYMBOLS)])
        for i, name in enumerate(dict.fromkeys(names))
    }


def styles_of(runs: Sequence[Run]) -> dict[Run, Style]:
    """Return a style for every run: that of its optimizer, or of optimizer and rate where several rates are drawn."""
    several = len({(run.surface, run.optimizer) for run in runs}) < len(runs)
    names = {run: f"{run.optimizer}, lr {run.lr:g}" if several else run.optimizer for run in runs}
    looks = styles(names.values())
    return {run: looks[name] for run, name in names.items()}
