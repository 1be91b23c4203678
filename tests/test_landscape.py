"""Landscapes without a browser: the runs, the scales, the picture, the page's data and the command."""

import builtins
import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import MAKERS

pytest.importorskip("matplotlib")
pytest.importorskip("plotly")
typer = pytest.importorskip("typer")

from typer.testing import CliRunner  # noqa: E402

from fastopt import landscape, optimizers, surfaces  # noqa: E402
from fastopt.landscape.command import landscape as command  # noqa: E402
from fastopt.landscape.curves import Curves  # noqa: E402
from fastopt.landscape.relief import Relief  # noqa: E402
from fastopt.landscape.styles import styles  # noqa: E402
from fastopt.trajectories import trajectory  # noqa: E402

NAMES = ["gd", "momentum", "nesterov", "rmsprop", "adam"]


@pytest.fixture(scope="module")
def runs() -> list[landscape.Run]:
    both = [surfaces.rosenbrock(), surfaces.parabola()]
    return landscape.run(both, NAMES, lrs=[1e-3, 1e-1], steps=20)


# ---- Runs ----


def test_every_combination_is_run_in_order(runs: list[landscape.Run]) -> None:
    assert [(run.surface.name, run.optimizer, run.lr) for run in runs] == [
        (surface, name, lr) for surface in ("rosenbrock", "parabola") for name in NAMES for lr in (1e-3, 1e-1)
    ]
    for run in runs:
        np.testing.assert_array_equal(run.path.points[0], run.surface.starts[0])


def test_all_optimizers_of_the_library_are_known_and_the_momenta_are_sgd() -> None:
    assert set(landscape.optimizer_names()) == {"gd", "momentum", "nesterov"} | {name.lower() for name in MAKERS}
    bowl = surfaces.bowl()
    run = landscape.run([bowl], ["nesterov"], [0.05], 10)[0]
    expected = trajectory(bowl, optimizers.SGD, bowl.starts[0], 10, lr=0.05, momentum=0.9, nesterov=True)
    np.testing.assert_array_equal(run.path.points, expected.points)


def test_the_best_run_of_an_optimizer_ends_lowest_and_has_not_diverged(runs: list[landscape.Run]) -> None:
    winners = {(run.surface.name, run.optimizer): run for run in landscape.best(runs)}
    assert len(winners) == 10
    # With 0.1, gradient descent leaves the Rosenbrock valley at once; on the parabola it is much faster.
    assert winners["rosenbrock", "gd"].lr == 1e-3
    assert winners["parabola", "gd"].lr == 1e-1
    for (surface, name), winner in winners.items():
        rivals = [run.path for run in runs if (run.surface.name, run.optimizer) == (surface, name)]
        assert winner.path.loss[-1] == min(path.loss[-1] for path in rivals if not path.diverged)


def test_where_there_is_no_minimum_the_best_run_goes_down_first() -> None:
    runs = landscape.run([surfaces.saddle()], ["gd", "momentum"], [0.01, 0.1], 200)
    gd, momentum = landscape.best(runs)
    assert gd.left_downhill
    assert momentum.left_downhill
    assert momentum.path.steps < gd.path.steps
    assert momentum.ending == f"left downhill after step {momentum.path.steps}"
    [upwards] = landscape.run([surfaces.bowl()], ["gd"], [1.0], 200)
    assert upwards.ending == f"diverged after step {upwards.path.steps}"


def test_noise_is_the_same_for_all_but_gd_which_has_the_exact_gradient() -> None:
    bowl = surfaces.bowl()
    gd, sgd, adam = landscape.run([bowl], ["gd", "sgd", "adam"], [0.1], 20, start=[1.0, -1.0], noise=0.5)
    exact = trajectory(bowl, optimizers.SGD, [1.0, -1.0], 20, lr=0.1)
    noisy = trajectory(bowl, optimizers.SGD, [1.0, -1.0], 20, 0.5, lr=0.1)
    np.testing.assert_array_equal(gd.path.points, exact.points)
    np.testing.assert_array_equal(sgd.path.points, noisy.points)
    np.testing.assert_array_equal(
        adam.path.points, trajectory(bowl, optimizers.Adam, [1.0, -1.0], 20, 0.5, lr=0.1).points
    )


def test_momentum_and_betas_can_be_chosen() -> None:
    bowl = surfaces.bowl()
    momentum, adam = landscape.run([bowl], ["momentum", "adam"], [0.05], 10, momentum=0.5, betas=(0.5, 0.6))
    expected_paths: list[tuple[landscape.Run, Any, dict[str, Any]]] = [
        (momentum, optimizers.SGD, {"momentum": 0.5}),
        (adam, optimizers.Adam, {"betas": (0.5, 0.6)}),
    ]
    for run, optimizer, options in expected_paths:
        expected = trajectory(bowl, optimizer, bowl.starts[0], 10, lr=0.05, **options)
        np.testing.assert_array_equal(run.path.points, expected.points)


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (["gd", "sgd"], {}, "gd and sgd take the same path without noise"),
        (["gd"], {"noise": 1.0}, "noise makes no difference to gd"),
        (["gd", "adam"], {"momentum": 0.5}, "momentum makes no difference to gd, adam"),
        (["gd", "rmsprop"], {"betas": (0.9, 0.9)}, "betas make no difference to gd, rmsprop"),
        (["adam"], {"start": [1.0]}, r"start must have shape \(2,\) for bowl"),
    ],
)
def test_what_would_make_no_difference_is_refused(names: list[str], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        landscape.run([surfaces.bowl()], names, [0.1], 1, **options)


def test_an_unknown_optimizer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"optimizers must be out of gd, momentum, .* got 'newton'"):
        landscape.run([surfaces.bowl()], ["newton"], [0.1], 1)


# ---- Scales ----


@pytest.mark.parametrize("name", surfaces.registry())
def test_heights_rise_with_the_values_and_ticks_say_them(name: str) -> None:
    relief = Relief.of(surfaces.registry()[name](), lines=41)
    heights = relief.height(relief.values)
    order = np.argsort(relief.values, axis=None)
    assert np.all(np.diff(heights.ravel()[order]) >= 0)
    for height, label in relief.ticks():
        assert heights.min() <= height <= heights.max()
        assert relief.floor + relief.scale * np.sinh(height) == pytest.approx(float(label), rel=1e-12, abs=1e-12)


def test_the_grid_is_an_image_with_rows_along_y() -> None:
    relief = Relief.of(surfaces.sharp_and_flat(), lines=11)
    x, y = relief.axes
    assert relief.values[2, 7] == surfaces.sharp_and_flat().value([x[7], y[2]])


def test_more_than_two_coordinates_cannot_be_drawn() -> None:
    with pytest.raises(ValueError, match="only surfaces with one or two coordinates can be drawn; bowl has 3"):
        Relief.of(surfaces.bowl(n=3), lines=5)


def test_loss_curves_are_logarithmic_above_a_known_minimum() -> None:
    surface = surfaces.styblinski_tang()
    runs = landscape.run([surface], ["gd", "adam"], [0.01], 10)
    curves = Curves.of(Relief.of(surface, lines=11), runs)
    assert curves.logarithmic
    for run, values in zip(runs, curves.values, strict=True):
        np.testing.assert_array_equal(values, run.path.loss - surface.value(surface.minima[0]))


def test_loss_curves_without_a_minimum_stay_within_what_the_map_shows() -> None:
    surface = surfaces.saddle()
    curves = Curves.of(Relief.of(surface, lines=11), landscape.run([surface], ["gd"], [0.3], 100))
    assert not curves.logarithmic
    assert min(curves.values[0]) < -1e5
    assert curves.limits[0] > -5


def test_42_styles_differ() -> None:
    looks = styles(str(i) for i in range(42))
    assert len(set(looks.values())) == 42
    assert styles(["a", "b", "a"])["b"] == looks["1"]


# ---- The picture ----


def legend_of(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_the_picture_shows_every_path_and_its_losses(runs: list[landscape.Run]) -> None:
    figure = landscape.figure(landscape.best(runs))
    chart, losses, profile, _, *colorbars = figure.axes
    assert len(colorbars) == 1
    assert chart.get_title().startswith("rosenbrock\n")
    for axes in (chart, losses, profile):
        assert axes.get_xlabel()
        assert axes.get_ylabel()
    best = {run.optimizer: run.path for run in landscape.best(runs) if run.surface.name == "rosenbrock"}
    for axes, column in ((chart, 1), (losses, None)):
        lines = {str(line.get_label()).split(",")[0]: line for line in axes.get_lines()}
        for name, path in best.items():
            expected = path.loss if column is None else path.points[:, column]
            np.testing.assert_allclose(np.array(lines[name].get_ydata(), dtype=float), expected, rtol=1e-12)
    assert legend_of(losses)[0] == "gd, lr 0.001"


def test_the_picture_shows_every_rate_in_a_style_of_its_own() -> None:
    figure = landscape.figure(landscape.run([surfaces.parabola()], ["gd"], [0.001, 0.1, 1.1], 20))
    lines = figure.axes[1].get_lines()
    assert legend_of(figure.axes[1]) == ["gd, lr 0.001", "gd, lr 0.1", "gd, lr 1.1"]
    assert len({(line.get_color(), str(line.get_linestyle())) for line in lines}) == 3


def test_the_picture_says_what_diverged() -> None:
    figure = landscape.figure(landscape.run([surfaces.parabola()], ["gd"], [1.5], 50))
    assert legend_of(figure.axes[1])[0] == "gd, lr 1.5, diverged after step 11"


@pytest.mark.parametrize("draw", [landscape.figure, landscape.page])
def test_nothing_to_draw(draw: Callable[[list[landscape.Run]], object]) -> None:
    with pytest.raises(ValueError, match="runs must hold at least one run"):
        draw([])


# ---- The page's data ----


def data_of(page: str) -> Any:
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    return json.loads(data)


def test_the_page_holds_the_runs(runs: list[landscape.Run]) -> None:
    data = data_of(landscape.page(runs))
    assert data["steps"] == 20
    assert [surface["name"] for surface in data["surfaces"]] == ["rosenbrock", "parabola"]
    stored = data["surfaces"][0]["runs"]
    for run, kept in zip(runs, stored, strict=False):
        assert (kept["optimizer"], kept["lr"], kept["ending"]) == (run.optimizer, run.lr, run.ending)
        np.testing.assert_allclose(kept["points"], run.path.points, rtol=1e-5)
        np.testing.assert_allclose(kept["loss"], run.path.loss, rtol=1e-5)
        np.testing.assert_allclose(kept["gradNorm"], run.path.grad_norm, rtol=1e-5)
    assert sum(run["best"] for run in stored) == len(NAMES)
    assert len({json.dumps(run["style"]) for run in stored}) == len(NAMES)
    assert len({json.dumps(run["ownStyle"]) for run in stored}) == len(stored)
    assert data["surfaces"][0]["lookFor"] == surfaces.rosenbrock().look_for


def test_the_page_shows_what_is_left_by_rounding_as_zero() -> None:
    [run] = landscape.run([surfaces.parabola()], ["gd"], [0.45], 200)
    assert 0 < abs(run.path.points[-1, 0]) < 1e-100
    [stored] = data_of(landscape.page([run]))["surfaces"][0]["runs"]
    assert (stored["points"][-1], stored["loss"][-1], stored["gradNorm"][-1]) == ([0], 0, 0)


def test_names_cannot_break_out_of_the_page() -> None:
    bowl = surfaces.bowl()
    path = trajectory(bowl, optimizers.SGD, bowl.starts[0], 2, lr=0.1)
    evil = "</script><script>alert(1)</script>"
    page = landscape.page([landscape.Run(bowl, evil, 0.1, path)], title="<b>bold</b> & $style")
    assert evil not in page
    assert data_of(page)["surfaces"][0]["runs"][0]["optimizer"] == evil
    assert "<title>&lt;b&gt;bold&lt;/b&gt; &amp; $style</title>" in page


def test_the_page_may_fetch_nothing(runs: list[landscape.Run]) -> None:
    page = landscape.page(runs)
    assert "default-src 'none'" in page
    head = page[: page.index("<script>")]
    assert not re.search(r"""(src|href)=["'](?!data:)""", head)


# ---- The command ----


def run_command(*arguments: object) -> Any:
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "200"})


@pytest.mark.parametrize("suffix", ["png", "svg", "html"])
def test_the_command_writes_the_file_and_says_who_was_best(tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"picture.{suffix}"
    result = run_command("bowl", "--optimizers", "gd,adam", "--lr", "0.1,0.01", "--steps", 10, "--out", out)
    assert result.exit_code == 0, result.output
    assert re.search(r"bowl\s+gd\s+0\.1 ", result.output)
    content = out.read_bytes()
    if suffix == "png":
        assert content.startswith(b"\x89PNG")
    elif suffix == "svg":
        assert ElementTree.fromstring(content).tag.endswith("svg")
    else:
        assert data_of(content.decode())["steps"] == 10
    assert list(tmp_path.iterdir()) == [out]


def test_the_command_draws_every_rate_that_is_asked_for_and_else_the_best(tmp_path: Path) -> None:
    asked = run_command("parabola", "--optimizers=gd", "--lr=0.001,0.1,1.1", "--out", tmp_path / "asked.html")
    assert re.findall(r"gd.* (\S+) +\S+ +\S+ *\n", asked.output) == ["0.001", "0.1", "1.1"]
    assert data_of((tmp_path / "asked.html").read_text())["rates"] == "all"
    tried = run_command("parabola", "--optimizers=gd", "--out", tmp_path / "tried.html")
    assert re.findall(r"gd.* (\S+) +\S+ +\S+ *\n", tried.output) == ["0.1"]
    assert data_of((tmp_path / "tried.html").read_text())["rates"] == "best"


def test_the_command_passes_on_start_noise_and_the_optimizers_options(tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    choices = ["--start=1,-0.5", "--noise=0.2", "--momentum=0.5", "--betas=0.8,0.9", "--condition=3"]
    result = run_command("bowl", "--optimizers=momentum,adam", "--lr=0.1", "--steps=5", *choices, "--out", out)
    assert result.exit_code == 0, result.output
    bowl = surfaces.bowl(condition=3)
    expected = landscape.run(
        [bowl], ["momentum", "adam"], [0.1], 5, start=[1, -0.5], noise=0.2, momentum=0.5, betas=(0.8, 0.9)
    )
    for stored, run in zip(data_of(out.read_text())["surfaces"][0]["runs"], expected, strict=True):
        np.testing.assert_allclose(stored["points"], run.path.points, rtol=1e-5)


@pytest.mark.parametrize("suffix", ["png", "svg", "html"])
def test_the_same_command_writes_the_same_bytes(tmp_path: Path, suffix: str) -> None:
    first, again = tmp_path / f"first.{suffix}", tmp_path / f"again.{suffix}"
    for out in (first, again):
        run_command("parabola", "--steps", 3, "--out", out)
    assert first.read_bytes() == again.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["volcano"], "SURFACE must be out of parabola, bowl,"),
        (["bowl", "--optimizers", "gd,newton"], "got 'newton'"),
        (["bowl", "--lr", "fast"], "--lr must be a number or several with commas between, got 'fast'"),
        (["bowl", "--start", "1,x"], "--start must be a number or several with commas between, got '1,x'"),
        (["bowl", "--betas", "0.9"], "--betas must be two numbers with a comma between, got '0.9'"),
        (["bowl", "--condition", "0.5"], "bowl: condition must be a finite number of at least 1, got 0.5"),
        (["saddle", "--condition", "5"], "--condition is for bowl, ravine, random_quadratic, not for saddle"),
        (["bowl", "--lr", "-1"], "Invalid learning rate: -1.0"),
        (["bowl", "--steps", "-5"], "error: --steps must be from 1 to 1000000, got -5"),
        (["bowl", "--steps", "9" * 14], "error: --steps must be from 1 to 1000000, got 99999999999999"),
        (["bowl", "--out", "picture.jpg"], "--out must end in .png, .svg, .html, got picture.jpg"),
        (["bowl", "--out", "no/such/place/picture.png"], "--out: there is no directory no/such/place"),
    ],
)
def test_mistakes_are_told_in_one_line_and_leave_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run_command("--out", "picture.png", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_plotly(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("plotly"):
            raise ModuleNotFoundError("No module named 'plotly'", name="plotly")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without_plotly)
    result = run_command("bowl", "--steps", 1, "--out", tmp_path / "page.html")
    assert result.exit_code == 2
    assert "error: .html files need plotly: pip install 'fastopt[cli]'" in result.stderr
