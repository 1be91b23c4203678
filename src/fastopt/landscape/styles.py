"""How the paths are told apart: by colour, by dash pattern and by marker, each enough by itself."""

from collections.abc import Iterable
from typing import NamedTuple


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
