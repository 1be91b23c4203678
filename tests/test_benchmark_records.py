"""What is kept of a benchmark, what is said of it: files, targets, tables, documents, figure."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastopt.benchmark import documents, machine, sheets, works
from fastopt.benchmark.documents import BLOCKS, DOCUMENTS, filled
from fastopt.benchmark.field import CONTESTANTS
from fastopt.benchmark.measure import Ratio
from fastopt.benchmark.records import PLAIN, Quality, Record, Trial, WholeStep, WholeTraining, changes
from fastopt.benchmark.runs import Absence, Entrant, Run
from fastopt.benchmark.targets import OfRun, OfTraining, OfTrainingStep, all_targets, rules, runs_for
from fastopt.benchmark.tasks import Task, methods

ROOT = Path(__file__).parents[1]
TASK = Task(methods()["adamw"], works.find("1M"), threads=2)
FACTS: dict[str, Any] = {**machine.facts(), "caches": {"L1": 2**15, "L2": 2**21, "L3": 2**25}, "threads": 2}


def run_of(milliseconds: Mapping[str, float], task: Task = TASK, noise: float = 0.0) -> Run:
    """A run in which each contestant took so long, round by round the same but for some noise."""
    rng = np.random.default_rng(3)
    times = {
        Entrant(name, task): 1e-3 * mean * (1 + noise * rng.uniform(-1, 1, 15)) for name, mean in milliseconds.items()
    }
    return Run(times, [])


def record_of(*runs: Run, section: str = "comparison") -> Record:
    return Record(FACTS, "2026-01-31", {section: list(runs)})


def quality_of(
    optimizer: str, losses: list[float | None], rates: tuple[float, ...] = (0.1, 1.0, 0.01), **other: Any
) -> Quality:
    """What came of an optimizer that was tried at some rates, of which the first is the best."""
    searched = [Trial(rate, 0, float(1 + k), 2.0, 1.0) for k, rate in enumerate(rates)]
    measured = [Trial(rates[0], seed, loss, 1.0 + seed, 0.5) for seed, loss in enumerate(losses, start=1)]
    given = {"problem": "digits", "title": "digits, small", "storage": PLAIN, "state_bytes": 8, "moved_bytes": 28}
    return Quality(optimizer=optimizer, steps=100, trials=searched + measured, **{**given, **other})


@pytest.fixture
def full() -> Record:
    """A record with something of everything."""
    times = {"floor": 1, "fastopt": 1.25, "NumPy": 30, "fastopt.torch": 1.25, "torch": 8, "torch fused": 1.26}
    policy = replace(TASK, work=works.find("policy"), action="clip")
    tiny = replace(TASK, work=works.find("1K"))
    sizes = [run_of(times, replace(TASK, work=works.find(name))) for name in ("100", "10K", "1M")]
    threads = Run({Entrant("fastopt", replace(TASK, threads=n)): np.full(9, 1e-3 / n) for n in (1, 2)}, [])
    runs = {
        "comparison": [run_of(times), run_of(times, policy), run_of(times, tiny)],
        "sizes": sizes,
        "threads": [threads],
    }
    runs["comparison"][0].absences.append(Absence(Entrant("optax", TASK), "jax is not installed"))
    steps = [
        WholeStep("policy", name, np.full(9, seconds), share, memory)
        for name, seconds, share, memory in (("torch", 2e-3, 0.5, 10**8), ("fastopt.torch", 1e-3, 0.1, None))
    ]
    trainings = [
        WholeTraining(
            "perceptron", name, np.array([1.0, 2.0, 3.0]) * slow, np.array([2.0, 1.0, low]), np.array([0.3, 0.6, 0.9])
        )
        for name, slow, low in (("torch", 2.0, 0.5), ("fastopt.torch", 1.0, 0.4))
    ]
    qualities = [
        quality_of("sgd", [0.5, 0.6], rates=(1.0, 0.1)),
        quality_of("adamw", [0.2, 0.3]),
        quality_of("lion", [0.1, None]),
        Quality("digits", "digits, small", "muon", PLAIN, 0, [], 0.0, 0.0, "steps matrices alone"),
    ]
    storages = [
        quality_of("adamw", [0.2, 0.3]),
        quality_of("adamw", [0.26, 0.32], storage="states 8bit", state_bytes=2.25, moved_bytes=16.5),
        quality_of("adamw", [0.4, 0.5], storage="rounding nearest"),
    ]
    failures = ["training: transformer: out of memory"]
    return Record(FACTS, "2026-01-31", runs, steps, trainings, qualities, storages, failures)


# ---- files ----


def test_records_survive_their_files(full: Record, tmp_path: Path) -> None:
    full.save(tmp_path / "one.json")
    again = Record.load(tmp_path / "one.json")
    again.save(tmp_path / "two.json")
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    assert again.facts == full.facts
    assert again.failures == full.failures
    assert [sheet.rows for sheet in sheets.all_sheets(again, [], None)] == [
        sheet.rows for sheet in sheets.all_sheets(full, [], None)
    ]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 2, "facts": {}}'])
def test_other_files_are_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "some.json").write_text(content)
    with pytest.raises(ValueError, match=r"some\.json is not a file that fastopt bench --json wrote"):
        Record.load(tmp_path / "some.json")


def test_files_of_other_versions_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "some.json").write_text('{"format": 1}')
    with pytest.raises(ValueError, match="of another version of fastopt: expected format 2, got 1"):
        Record.load(tmp_path / "some.json")


# ---- baselines ----


def test_what_became_slower_is_told_by_the_share_of_the_floor() -> None:
    before = record_of(run_of({"floor": 1, "fastopt": 1.1, "fastopt.torch": 1.2}, noise=0.01))
    slower_machine = record_of(run_of({"floor": 3, "fastopt": 3.3, "fastopt.torch": 4.5}, noise=0.01))
    found = {change.entrant.contestant: change.is_slower for change in changes(before, slower_machine)}
    assert found == {"fastopt": False, "fastopt.torch": True}
    assert not any(change.is_slower for change in changes(slower_machine, before))


def test_noise_is_not_slower() -> None:
    before = record_of(run_of({"floor": 1, "fastopt": 1.1}, noise=0.3))
    now = record_of(run_of({"floor": 1, "fastopt": 1.2}, noise=0.3))
    assert [change.is_slower for change in changes(before, now)] == [False]


def test_only_what_both_have_is_compared() -> None:
    before = record_of(run_of({"floor": 1, "fastopt": 1}))
    now = record_of(run_of({"floor": 1, "fastopt": 9}, replace(TASK, dtype="float64")))
    assert changes(before, now) == []
    sheet = sheets.change_sheet(changes(before, before))
    assert sheet.notes == ["0 of 1 figures that both have became slower than before."]


# ---- targets ----


def target(bound: float, **options: Any) -> OfRun:
    entrants: dict[str, Any] = {"entrant": Entrant("fastopt", TASK), "others": (Entrant("floor", TASK),)}
    return OfRun("AdamW", "the floor", bound, **entrants, **options)


def of_targets(*runs: Run) -> Record:
    return record_of(*runs, section="targets")


@pytest.mark.parametrize(
    ("bound", "options", "verdict"),
    [
        (0.7, {}, "reached"),
        (0.8, {}, "unclear"),
        (0.9, {}, "missed"),
        (1.4, {"sense": "time"}, "reached"),
        (1.25, {"sense": "time"}, "unclear"),
        (1.1, {"sense": "time"}, "missed"),
        (1.1, {"sense": "time", "or_seconds": 2e-3}, "reached"),
        (1.1, {"sense": "time", "or_seconds": 1e-3}, "missed"),
    ],
)
def test_targets_are_judged_by_the_whole_interval(bound: float, options: dict[str, Any], verdict: str) -> None:
    run = run_of({"floor": 1, "fastopt": 1.25}, noise=0.05)
    assert target(bound, **options).judge(of_targets(run)).verdict == verdict


def test_targets_need_a_run_with_all_their_entrants() -> None:
    assert target(1).judge(of_targets()).verdict == "not run"
    assert target(1).judge(of_targets(run_of({"fastopt": 1}))).verdict == "not run"
    assert target(1).judge(of_targets(run_of({"fastopt": 1, "NumPy": 1}))).verdict == "not run"


def test_of_several_rivals_the_fastest_counts_and_one_may_be_absent() -> None:
    names = ("torch", "torch foreach", "torch fused")
    others = tuple(Entrant(name, TASK) for name in names)
    wanted = OfRun("", "", 3, entrant=Entrant("fastopt.torch", TASK), others=others)
    run = run_of({"fastopt.torch": 1, "torch": 8, "torch foreach": 4})
    run.absences.append(Absence(Entrant("torch fused", TASK), "has none"))
    outcome = wanted.judge(of_targets(run))
    assert outcome.measured is not None
    assert outcome.measured.ratio.median == pytest.approx(4)
    assert outcome.verdict == "reached"


def test_targets_of_training_steps_and_of_trainings(full: Record) -> None:
    step = OfTrainingStep("policy", "torch", 1.6, model="policy").judge(full)
    assert step.verdict == "reached"
    assert step.measured == (Ratio(2, 2, 2), 1e-3)
    assert OfTrainingStep("", "torch", 1.6, model="recommender").judge(full).verdict == "not run"
    time = OfTraining("", "torch", 2.5, model="perceptron", quantity="time").judge(full)
    assert time.verdict == "missed"
    assert time.measured == (Ratio(2, 2, 2), 3)
    share = OfTraining("", "torch", 0.5, model="perceptron", quantity="share of the optimizer").judge(full)
    assert share.verdict == "reached"  # 0.15 of torch's time, 0.3 of ours
    assert share.measured is not None
    assert share.measured.ratio.median == pytest.approx(0.5)
    assert OfTraining("", "torch", 1, model="transformer", quantity="time").judge(full).verdict == "not run"


def test_there_is_a_run_for_every_target() -> None:
    wanted = [target for target in all_targets(2) if isinstance(target, OfRun)]
    groups = [set(group) for group in runs_for(wanted)]
    assert all(any({*target.entrants} <= group for group in groups) for target in wanted)
    assert all(entrant.contestant in CONTESTANTS for group in groups for entrant in group)
    assert all(target.entrant.task.threads == 2 for target in wanted)


def test_targets_of_whole_trainings_are_of_models_that_there_are() -> None:
    pytest.importorskip("torch")
    from fastopt.benchmark.models import MODELS
    from fastopt.benchmark.trainings import STEPS

    wanted = all_targets(2)
    assert {target.model for target in wanted if isinstance(target, OfTrainingStep)} <= MODELS.keys()
    assert {str(target.model) for target in wanted if isinstance(target, OfTraining)} <= set(map(str, STEPS))


def test_one_thread_has_no_target_of_two() -> None:
    assert {t.entrant.task.threads for t in all_targets(1) if isinstance(t, OfRun)} == {1}


def test_every_rule_has_a_target_in_both_dtypes() -> None:
    floors = [target for target in all_targets(1) if isinstance(target, OfRun) and "floor" in target.against]
    for dtype, bound in (("float32", 0.95), ("float64", 0.8)):
        found = {
            target.entrant.task.method.rule
            for target in floors
            if target.entrant.task.dtype == dtype and target.bound == bound
        }
        assert found == rules().keys()


# ---- tables ----


@pytest.mark.parametrize(
    ("number", "text"),
    [(0.0, "0.00 ns"), (4.5e-7, "450 ns"), (1e-6, "1.00 µs"), (12.34e-6, "12.3 µs"), (0.5, "500 ms"), (75, "75.0 s")],
)
def test_times_have_three_digits(number: float, text: str) -> None:
    assert sheets.time(number) == text


def test_a_comparison_says_what_is_known() -> None:
    run = run_of({"floor": 1, "fastopt": 1.25, "NumPy": 30, "fastopt.torch": 1.25}, noise=0)
    even = run_of({"torch": 1.25}, noise=0.1)
    run.seconds.update(even.seconds)
    run.absences.append(Absence(Entrant("optax", TASK), "jax is not installed"))
    (sheet,) = sheets.comparisons(record_of(run))
    assert sheet.title == "AdamW, float32: step, 2 threads"
    heading, floor, ours, numpy, _, torch = sheet.rows
    assert heading == ["1M, 16.0 MB, L3"]
    assert floor[0] == "floor"
    assert floor[5] == "100 %"
    assert ours == ["fastopt", "1.25 ms", "±0 %", "800 M", "22.4", "80 %", ""]
    assert numpy == ["NumPy", "30.0 ms", "±0 %", "33.3 M", "0.93", "3 %", "24.0x (24.0 to 24.0)"]
    assert torch[6].startswith("unclear (0.9")
    assert sheet.notes[1:] == ["optax: jax is not installed"]


def test_speeds_of_states_in_fewer_bits_are_of_their_own_bytes() -> None:
    (sheet,) = sheets.comparisons(record_of(run_of({"fastopt": 1, "fastopt 8bit": 1}, noise=0)))
    _, plain, stored = sheet.rows
    assert (plain[4], stored[4]) == ("28.0", "16.5")


def test_speeds_are_of_the_bytes_that_have_to_move() -> None:
    (sheet,) = sheets.comparisons(record_of(run_of({"floor": 1.0})))
    assert sheet.rows[1][1:5] == ["1.00 ms", "±0 %", "1.00 G", "28.0"]


def test_the_cost_against_size_is_that_of_an_element_too(full: Record) -> None:
    sheet = sheets.size_sheet(full)
    assert sheet.rows[0][:5] == ["100", "L1", "1.25 ms", "12.5 µs", "80 %"]
    assert sheet.rows[2][:5] == ["1.00 M", "L3", "1.25 ms", "1.25 ns", "80 %"]
    assert sheet.columns[5:] == ("NumPy", "torch", "torch fused")
    assert sheet.rows[0][5:] == ["24.0x", "6.40x", "1.01x"]


def test_threads_are_compared_with_one(full: Record) -> None:
    assert sheets.thread_sheet(full).rows == [
        ["1M, 16.0 MB, L3"],
        ["fastopt", "1", "1.00 ms", "", ""],
        ["fastopt", "2", "500 µs", "", "2.00x (2.00 to 2.00)"],
    ]


def test_a_task_whose_rivals_are_in_two_runs_has_one_row() -> None:
    runs = [run_of({"floor": 1, "fastopt": 2, "NumPy": 30}), run_of({"floor": 1, "fastopt": 2.5, "optax": 5})]
    sheet = sheets.headline(record_of(*runs))
    assert sheet.rows == [["1M, step", "2.00 ms", "50 %", "15.0x", "2.00x"]]


def test_the_time_of_a_training_is_that_to_a_loss_that_all_reach(full: Record) -> None:
    sheet = sheets.training_sheet(full.trainings)
    assert sheet.rows == [
        ["perceptron, to a loss of 0.5"],
        ["torch", "6.00 s", "15 %"],
        ["fastopt.torch", "3.00 s", "30 %"],
    ]


def test_training_steps_are_compared_with_fastopts(full: Record) -> None:
    sheet = sheets.step_sheet(full.steps)
    assert sheet.rows[1:] == [
        ["torch", "2.00 ms", "50 %", "100 MB", "2.00x (2.00 to 2.00)"],
        ["fastopt.torch", "1.00 ms", "10 %", "", ""],
    ]


def test_optimizers_stand_by_their_mean_losses_and_what_does_not_fit_is_told(full: Record) -> None:
    sheet = sheets.quality_sheet(full)
    assert sheet.rows == [
        ["digits, small, 100 steps"],
        ["adamw", "0.2500", "±0.0500", "0.1", "5.00 ms", "2.00 s", "8"],
        ["sgd", "0.5500", "±0.0500", "*1", "5.00 ms", "2.00 s", "8"],
        ["lion", "diverged", "", "0.1", "5.00 ms", "2.00 s", "8"],
    ]
    assert "rate: the best of 3 for each" in sheet.notes[1]
    assert sheet.notes[-1] == "digits: without muon: steps matrices alone"


def test_storages_are_compared_with_float32_seed_by_seed(full: Record) -> None:
    assert sheets.storage_sheet(full).rows == [
        ["digits, small, 100 steps, rate 0.1"],
        ["float32", "0.2500", "±0.0500", "", "", "8", "28"],
        ["states 8bit", "0.2900", "±0.0300", "+0.0400 ±0.0200", "yes, all +", "2.25", "16.5"],
        ["rounding nearest", "0.4500", "±0.0500", "+0.2000 ±0.0000", "no, all +", "8", "28"],
    ]


@pytest.mark.parametrize(
    ("dtype", "line"),
    [
        (
            "float32",
            "a step moves 28 and states keep 8; with states in bfloat16 20 and 4; with states in 8bit 16.5 and 2.25",
        ),
        (
            "bfloat16",
            "a step moves 14 and states keep 4; with states in float32 22 and 8; with states in 8bit 10.5 and 2.25",
        ),
        ("float64", "a step moves 56 and states keep 16"),
    ],
)
def test_a_comparison_says_what_each_storage_moves_and_keeps(dtype: str, line: str) -> None:
    assert sheets.storages_line(replace(TASK, dtype=dtype)) == f"Bytes an element of a matrix: {line}"


def test_a_machine_that_others_work_on_is_told() -> None:
    assert "shared" not in sheets.machine_line(Record({**FACTS, "load": 0.1}))
    assert "cores (32 KiB L1, 2 MiB L2, 32 MiB L3) shared with others (load 3.2 before)" in sheets.machine_line(
        Record({**FACTS, "load": 3.21})
    )


# ---- documents ----


@pytest.mark.parametrize(("results", "blocks"), BLOCKS.items(), ids=lambda value: getattr(value, "stem", ""))
def test_documents_are_filled_between_their_marks(results: Path, blocks: Mapping[str, Any], full: Record) -> None:
    template = "# Title\n" + "".join(f"<!-- {name} -->\nold\n<!-- /{name} -->\ntext of {name}\n" for name in blocks)
    text = filled(template + "<!-- other -->\nold\n<!-- /other -->\n", full, results)
    assert text.count("\nold\n") == 1
    for name in blocks:
        assert f"text of {name}\n" in text
    assert ("| 1M, step | 1.25 ms | 80 % |" if "table" in blocks else "| adamw | 0.2500 | ±0.0500 |") in text
    assert FACTS["cpu"] in text
    assert filled(text, full, results) == text


def test_a_block_has_one_name() -> None:
    names = [name for blocks in BLOCKS.values() for name in blocks]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("results", BLOCKS, ids=lambda path: path.stem)
def test_the_documents_have_the_figures_of_the_recorded_run(results: Path) -> None:
    if not (ROOT / results).exists():
        pytest.skip("no run is recorded yet")
    record = Record.load(ROOT / results)
    for document in DOCUMENTS:
        text = (ROOT / document).read_text(encoding="utf-8")
        fresh = filled(text, record, results)
        assert fresh == text, f"python -m {documents.__name__} makes the tables of {document} anew"


# ---- the figure ----


def test_the_figure_has_a_panel_for_everything(full: Record) -> None:
    pytest.importorskip("matplotlib")
    from fastopt.benchmark.plots import figure

    titles = [ax.get_title() for ax in figure(full).axes]
    assert titles == [
        "AdamW, float32: how close to the floor",
        "AdamW, float32: overhead, then a straight line",
        "AdamW, float32: rivals",
        "AdamW, float32: threads",
        "Training steps: what the optimizer takes",
        "digits, small, 100 steps",
        "adamw: digits, small, 100 steps",
        "fastopt train: perceptron",
    ]


def test_the_figure_draws_the_shares_that_were_measured(full: Record) -> None:
    pytest.importorskip("matplotlib")
    from fastopt.benchmark.plots import figure

    lines = {line.get_label(): line for line in figure(full).axes[0].get_lines()}
    assert np.asarray(lines["fastopt"].get_xdata()).tolist() == [100, 10_000, 1_000_000]
    assert np.allclose(np.asarray(lines["fastopt"].get_ydata()), 80)


def test_without_figures_there_is_no_figure() -> None:
    pytest.importorskip("matplotlib")
    from fastopt.benchmark.plots import figure

    with pytest.raises(ValueError, match="nothing was measured"):
        figure(Record(FACTS))


def test_facts_are_json() -> None:
    facts = machine.facts()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["libraries"]["numpy"] == np.__version__
