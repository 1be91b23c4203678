"""The benchmark on the terminal: tables, and the progress of the runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from fastopt.benchmark.sheets import Sheet

STYLES = {"reached": "green", "missed": "red", "unclear": "yellow"}
"""Of cells."""

GAP = 2
"""Between columns."""

LEAST_WIDTH = 14
"""Of the first column, which gives way where the terminal is narrow."""


def show(console: Console, sheet: Sheet) -> None:
    """Print a table."""
    console.print(Text(sheet.title, style="bold"))
    widths = [max(map(len, cells)) for cells in zip(sheet.columns, *rows_of(sheet), strict=True)]
    gaps = GAP * (len(widths) - 1)
    widths[0] = min(widths[0], max(LEAST_WIDTH, console.width - sum(widths[1:]) - gaps))
    for number, (heading, rows) in enumerate(groups(sheet)):
        table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), show_header=number == 0)
        for column, (name, width) in enumerate(zip(sheet.columns, widths, strict=True)):
            table.add_column(name, justify="right" if column and name else "left", width=width, overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell, style=STYLES.get(cell, "")) for cell in row))
        if heading:
            console.print(Text(heading, style="cyan"), soft_wrap=True)
        console.print(table)
    for note in sheet.notes:
        console.print(Text(note, style="dim"), soft_wrap=True)
    console.print()


def rows_of(sheet: Sheet) -> list[Sequence[str]]:
    """Return the rows that are not headings."""
    return [row for row in sheet.rows if len(row) > 1]


def groups(sheet: Sheet) -> Iterator[tuple[str, list[Sequence[str]]]]:
    """Yield the rows under each heading; a row with one cell is a heading."""
    heading, rows = "", []
    for row in [*sheet.rows, [""]]:
        if len(row) > 1:
            rows.append(row)
            continue
        if rows:
            yield heading, rows
        heading, rows = row[0], []


class Bar:
    """A progress bar over all runs."""

    def __init__(self, progress: Progress, total: float) -> None:
        self.progress = progress
        self.task = progress.add_task("", total=total)
        self.done = 0.0
        self.seconds = 0.0

    def start(self, title: str, seconds: float) -> None:
        """Show what begins."""
        self.done += self.seconds
        self.seconds = seconds
        self.progress.update(self.task, description=title, completed=self.done, refresh=True)

    def advance(self, share: float) -> None:
        """Show how far it is."""
        self.progress.update(self.task, completed=self.done + share * self.seconds, refresh=True)


@contextmanager
def bar(console: Console, total: float) -> Iterator[Bar]:
    """Show a progress bar in the block. It is drawn between rounds only: a thread of its own would disturb them."""
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=None), TimeRemainingColumn())
    with Progress(*columns, console=console, auto_refresh=False, transient=True, expand=True) as progress:
        yield Bar(progress, total)
