"""The tables and the figures of the documents, from the recorded runs: `python -m fastopt.benchmark.documents`.

It is called in a checkout. The tables stand between `<!-- name -->` and `<!-- /name -->`, and are never typed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from fastopt.benchmark import sheets
from fastopt.benchmark.records import Record
from fastopt.benchmark.sheets import Sheet
from fastopt.benchmark.targets import all_targets
from fastopt.files import replacing

RESULTS = Path("bench/results/results.json")
QUALITY = Path("bench/results/quality.json")
DOCUMENTS = (Path("README.md"), Path("docs/performance.md"), Path("docs/memory.md"))


def table(sheet: Sheet) -> str:
    """Return a table in Markdown, with a bold row for each heading."""
    rows = [sheet.columns, ["---", *["---:"] * (len(sheet.columns) - 1)]]
    rows += [row if len(row) > 1 else [f"**{row[0]}**", *[""] * (len(sheet.columns) - 1)] for row in sheet.rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def headline(record: Record) -> str:
    """Return AdamW's table, and what it says."""
    return f"""{table(sheets.headline(record))}

AdamW in float32, threads: {record.facts["threads"]}. Time of a step, its share of the floor's speed (the floor is a
loop with the same streams of reads and writes, and nothing else), and how many times as long others take; in
parentheses where the spread of the rounds does not tell which is faster."""


def targets(record: Record) -> str:
    """Return the table of the targets that the recorded run has something to say of."""
    known = [target for target in all_targets(record.facts["threads"]) if target.judge(record).measured]
    return table(sheets.target_sheet(record, known))


def noted(sheet: Sheet) -> str:
    """Return a table, and what is to be said of it."""
    return f"{table(sheet)}\n\n" + " ".join(note.removesuffix(".") + "." for note in sheet.notes)


def of_quality(sheet: Callable[[Record], Sheet]) -> Callable[[Record], str]:
    """Return what makes a table with its notes, and says where it was measured."""
    return lambda record: f"{noted(sheet(record))}\n\nMeasured on: {sheets.machine_line(record)}."


BLOCKS: dict[Path, dict[str, Callable[[Record], str]]] = {
    RESULTS: {
        "table": headline,
        "machine": sheets.machine_line,
        "rules": lambda record: table(sheets.rule_sheet(record)),
        "targets": targets,
        "sizes": lambda record: table(sheets.size_sheet(record)),
        "threads": lambda record: table(sheets.thread_sheet(record)),
        "steps": lambda record: table(sheets.step_sheet(record.steps)),
        "trainings": lambda record: table(sheets.training_sheet(record.trainings)),
    },
    QUALITY: {
        "qualities": of_quality(sheets.quality_sheet),
        "storages": of_quality(sheets.storage_sheet),
    },
}
"""By the recorded run that they are of, and by the name in the document."""


def block(name: str, root: Path) -> str:
    """Return what stands in documents under a name, from the run that is recorded in a checkout."""
    results, make = next((results, blocks[name]) for results, blocks in BLOCKS.items() if name in blocks)
    return make(Record.load(root / results))


def filled(text: str, record: Record, results: Path) -> str:
    """Return a document with its tables of a recorded run made anew."""
    blocks = BLOCKS[results]

    def block(found: re.Match[str]) -> str:
        name = found[1]
        return f"<!-- {name} -->\n{blocks[name](record)}\n<!-- /{name} -->"

    return re.sub(rf"<!-- ({'|'.join(blocks)}) -->\n.*?<!-- /\1 -->", block, text, flags=re.S)


def main() -> None:
    """Make the tables of all documents, and the figures, anew."""
    from fastopt.benchmark.plots import save

    for results in BLOCKS:
        record = Record.load(results)
        save(record, results.with_suffix(".png"))
        for document in DOCUMENTS:
            text = filled(document.read_text(encoding="utf-8"), record, results)
            with replacing(document) as temporary:
                temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
