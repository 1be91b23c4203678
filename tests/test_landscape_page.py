"""The page in a real headless Chromium: keys, buttons, numbers, no errors and no requests."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import DESKTOP, IN_BROWSER, NO_WEBGL, PHONE, SOFTWARE_WEBGL, chromium, errors, requested

from fastopt import landscape, surfaces

pytest.importorskip("plotly")

from selenium.webdriver import ActionChains
from selenium.webdriver.chrome.webdriver import WebDriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait

pytestmark = IN_BROWSER

STEPS = 40
NAMES = ["gd", "momentum", "adam"]


@pytest.fixture(scope="module")
def runs() -> list[landscape.Run]:
    return landscape.run(
        [surfaces.himmelblau(), surfaces.saddle(), surfaces.parabola()], NAMES, lrs=[0.01, 0.1], steps=STEPS
    )


@pytest.fixture(scope="module")
def url(runs: list[landscape.Run], tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("page") / "page.html"
    file.write_text(landscape.page(runs), encoding="utf-8")
    return file.as_uri()


@pytest.fixture(scope="module")
def opened(url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebDriver]:
    """One browser without WebGL, which is the fastest, for all the tests that need none."""
    with chromium(tmp_path_factory.mktemp("profile"), NO_WEBGL) as driver:
        driver.get(url)
        yield driver


@pytest.fixture
def page(opened: WebDriver, url: str) -> Iterator[WebDriver]:
    opened.execute_script("document.activeElement.blur(); scrollTo(0, 0)")
    yield opened
    opened.get("about:blank")  # or what was chosen would stay in the address
    opened.get(url)


def step_of(page: WebDriver) -> int:
    word, step, slash, steps = page.find_element(By.ID, "counter").text.split()
    assert (word, slash, int(steps)) == ("step", "/", STEPS)
    return int(step)


def press(page: WebDriver, key: str) -> None:
    ActionChains(page).send_keys(key).perform()


def play_button(page: WebDriver) -> WebElement:
    return page.find_element(By.ID, "play")


def wait(page: WebDriver, condition: Callable[[], object]) -> None:
    WebDriverWait(page, 20, poll_frequency=0.05).until(lambda _: condition())


def set_speed(page: WebDriver, speed: int) -> None:
    Select(page.find_element(By.ID, "speed")).select_by_value(str(speed))
    page.execute_script("document.activeElement.blur()")


def shown_steps(page: WebDriver, panel: str) -> list[int]:
    """Number of steps behind the head of every path in a panel, as plotted."""
    steps: list[int] = page.execute_script(
        "return document.getElementById(arguments[0]).data.filter(t => t.mode === 'lines' && t.hoverinfo === 'skip'"
        " && t.line.dash).map(t => t.x.length - 1)",
        panel,
    )
    return steps


def numbers(page: WebDriver) -> dict[str, list[float]]:
    rows = page.find_elements(By.CSS_SELECTOR, "#numbers tr")
    return {
        row.find_element(By.CLASS_NAME, "name").text: [
            float(cell.text) for cell in row.find_elements(By.TAG_NAME, "td") if cell.text
        ]
        for row in rows
    }


def run_of(runs: list[landscape.Run], surface: str, optimizer: str, lr: float) -> landscape.Run:
    return next(run for run in runs if (run.surface.name, run.optimizer, run.lr) == (surface, optimizer, lr))


# ---- Loading ----


@pytest.mark.parametrize("flags", [SOFTWARE_WEBGL, NO_WEBGL], ids=["webgl", "no-webgl"])
def test_it_loads_and_plays_without_errors_and_without_requests(url: str, tmp_path: Path, flags: list[str]) -> None:
    with chromium(tmp_path, flags) as driver:
        driver.get(url)
        wait(driver, lambda: driver.find_elements(By.CSS_SELECTOR, "#curves .scatterlayer path"))
        press(driver, Keys.ARROW_RIGHT)
        wait(driver, lambda: shown_steps(driver, "map") == [1, 1, 1])
        has_relief = bool(driver.find_elements(By.CSS_SELECTOR, "#relief canvas"))
        assert has_relief == (flags is SOFTWARE_WEBGL)
        assert driver.find_element(By.ID, "no-relief").is_displayed() != has_relief
        if has_relief:
            wait(driver, lambda: shown_steps(driver, "relief") == [1, 1, 1])
        else:
            assert "WebGL" in driver.find_element(By.ID, "no-relief").text

        assert errors(driver) == []
        assert requested(driver) == [url]


# ---- Stepping and playing ----


def test_arrows_home_and_end_step(page: WebDriver) -> None:
    assert step_of(page) == 0
    for _ in range(3):
        press(page, Keys.ARROW_RIGHT)
    assert step_of(page) == 3
    press(page, Keys.ARROW_LEFT)
    assert step_of(page) == 2
    press(page, Keys.END)
    assert step_of(page) == STEPS
    press(page, Keys.ARROW_RIGHT)
    assert step_of(page) == STEPS
    press(page, Keys.HOME)
    press(page, Keys.ARROW_LEFT)
    assert step_of(page) == 0


def test_the_paths_and_the_loss_curves_move_along(page: WebDriver) -> None:
    for _ in range(5):
        press(page, Keys.ARROW_RIGHT)
    wait(page, lambda: shown_steps(page, "map") == shown_steps(page, "curves") == [5, 5, 5])
    assert page.find_elements(By.CSS_SELECTOR, "#map .contour"), "the contours stay"


def test_space_plays_and_pauses(page: WebDriver) -> None:
    set_speed(page, 10)
    press(page, Keys.SPACE)
    assert play_button(page).get_attribute("aria-label") == "Pause"
    wait(page, lambda: step_of(page) >= 3)
    press(page, Keys.SPACE)
    assert play_button(page).get_attribute("aria-label") == "Play"
    stopped = step_of(page)
    assert stopped < STEPS
    page.execute_async_script("setTimeout(arguments[0], 400)")
    assert step_of(page) == stopped


def test_it_stops_at_the_end_and_plays_again_from_the_start(page: WebDriver) -> None:
    set_speed(page, 500)
    press(page, Keys.SPACE)
    wait(page, lambda: step_of(page) == STEPS)
    assert play_button(page).get_attribute("aria-label") == "Play"
    set_speed(page, 1)
    press(page, Keys.SPACE)
    wait(page, lambda: step_of(page) < STEPS)


@pytest.mark.parametrize("id", ["play", "map", "curves"])
def test_a_click_plays_and_pauses(page: WebDriver, id: str) -> None:
    set_speed(page, 1)
    for expected in ("Pause", "Play"):
        page.find_element(By.ID, id).click()
        assert play_button(page).get_attribute("aria-label") == expected


def test_stepping_pauses(page: WebDriver) -> None:
    set_speed(page, 1)
    press(page, Keys.SPACE)
    press(page, Keys.ARROW_RIGHT)
    assert play_button(page).get_attribute("aria-label") == "Play"


def test_the_buttons_and_the_scrubber(page: WebDriver) -> None:
    for button, expected in [("forth", 1), ("last", STEPS), ("back", STEPS - 1), ("first", 0)]:
        page.find_element(By.ID, button).click()
        assert step_of(page) == expected
    scrubber = page.find_element(By.ID, "scrubber")
    ActionChains(page).move_to_element(scrubber).click().perform()
    assert abs(step_of(page) - STEPS // 2) <= 1
    assert scrubber.get_attribute("aria-valuetext") == f"step {step_of(page)} of {STEPS}"
    before = step_of(page)
    press(page, Keys.ARROW_RIGHT)  # the focus is on the scrubber, which moves by itself
    assert step_of(page) == before + 1
    press(page, Keys.SPACE)
    assert play_button(page).get_attribute("aria-label") == "Pause"


def test_the_counter_is_read_out_unless_it_plays(page: WebDriver) -> None:
    set_speed(page, 1)
    counter = page.find_element(By.ID, "counter")
    assert counter.get_attribute("aria-live") == "polite"
    press(page, Keys.SPACE)
    assert counter.get_attribute("aria-live") == "off"


# ---- Choices and numbers ----


def test_the_table_says_the_numbers_of_the_step(page: WebDriver, runs: list[landscape.Run]) -> None:
    for _ in range(7):
        press(page, Keys.ARROW_RIGHT)
    table = numbers(page)
    assert list(table) == NAMES
    for run in landscape.best(run for run in runs if run.surface.name == "himmelblau"):
        path = run.path
        expected = [run.lr, *path.points[7], path.loss[7], path.grad_norm[7]]
        np.testing.assert_allclose(table[run.optimizer], expected, rtol=1e-3)


def test_surface_and_learning_rate_can_be_chosen(page: WebDriver, runs: list[landscape.Run]) -> None:
    Select(page.find_element(By.ID, "surface")).select_by_visible_text("saddle")
    Select(page.find_element(By.ID, "lr")).select_by_visible_text("0.1")
    assert "x² - y²" in page.find_element(By.ID, "formula").text
    page.find_element(By.ID, "last").click()
    table = numbers(page)
    for name in NAMES:
        path = run_of(runs, "saddle", name, 0.1).path
        np.testing.assert_allclose(table[name], [0.1, *path.points[-1], path.loss[-1], path.grad_norm[-1]], rtol=1e-3)
    assert page.execute_script("return document.getElementById('map').data[0].z.flat().every(Number.isFinite)")


def test_a_surface_of_one_coordinate(page: WebDriver, runs: list[landscape.Run]) -> None:
    Select(page.find_element(By.ID, "surface")).select_by_visible_text("parabola")
    page.find_element(By.ID, "last").click()
    wait(page, lambda: shown_steps(page, "map") == [STEPS] * 3)
    path = run_of(runs, "parabola", "gd", 0.1).path
    np.testing.assert_allclose(
        numbers(page)["gd"], [0.1, path.points[-1, 0], path.loss[-1], path.grad_norm[-1]], rtol=1e-3
    )
    assert "one coordinate" in page.find_element(By.ID, "no-relief").text


def test_a_run_that_diverged_says_so_when_it_is_over(page: WebDriver, runs: list[landscape.Run]) -> None:
    path = run_of(runs, "himmelblau", "gd", 0.1).path
    assert path.diverged
    Select(page.find_element(By.ID, "lr")).select_by_visible_text("0.1")
    page.execute_script("document.activeElement.blur()")
    note = page.find_element(By.CSS_SELECTOR, "#numbers .end")
    assert note.text == ""
    press(page, Keys.END)
    assert note.text == f"diverged after step {path.steps}"


def test_a_link_chooses_surface_and_rate_and_choices_make_a_link(page: WebDriver, url: str) -> None:
    page.get(f"{url}#surface=saddle&lr=0.1")
    chosen = [Select(page.find_element(By.ID, id)).first_selected_option.text for id in ("surface", "lr")]
    assert chosen == ["saddle", "0.1"]
    assert surfaces.saddle().look_for == page.find_element(By.ID, "look-for").text
    assert not page.find_element(By.ID, "missing").is_displayed()
    Select(page.find_element(By.ID, "surface")).select_by_visible_text("parabola")
    assert page.current_url == f"{url}#surface=parabola&lr=0.1"
    page.get(f"{url}#surface=volcano&lr=7")
    assert page.find_element(By.ID, "missing").text == (
        'This page has no surface "volcano" and no learning rate "7"; it shows another.'
    )


def test_all_rates_can_be_compared(page: WebDriver, runs: list[landscape.Run]) -> None:
    Select(page.find_element(By.ID, "lr")).select_by_value("all")
    wait(page, lambda: len(shown_steps(page, "map")) == len(NAMES) * 2)
    box = page.find_element(By.CSS_SELECTOR, "#numbers input")
    box.send_keys(Keys.SPACE)  # one path of the optimizer, not both
    wait(page, lambda: len(shown_steps(page, "map")) == len(NAMES) * 2 - 1)


def test_a_run_that_leaves_does_not_change_the_axes(url: str, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text(landscape.page(landscape.run([surfaces.parabola()], ["gd"], [1.1], STEPS)), encoding="utf-8")
    with chromium(tmp_path / "profile", NO_WEBGL) as driver:
        driver.get(file.as_uri())
        press(driver, Keys.END)
        low, high = driver.execute_script("return document.getElementById('map').layout.yaxis.range")
        assert -1 < low < 0
        assert 4 < high < 5


def test_optimizers_can_be_hidden(page: WebDriver) -> None:
    box = page.find_element(By.CSS_SELECTOR, "#numbers input")
    box.send_keys(Keys.SPACE)  # Space belongs to the box while it has the focus
    assert play_button(page).get_attribute("aria-label") == "Play"
    wait(page, lambda: len(shown_steps(page, "map")) == 2)
    box.send_keys(Keys.SPACE)
    wait(page, lambda: len(shown_steps(page, "map")) == 3)


def test_hovering_tells_the_numbers(page: WebDriver) -> None:
    page.find_element(By.ID, "last").click()
    wait(page, lambda: shown_steps(page, "curves") == [STEPS] * 3)
    head = page.find_elements(By.CSS_SELECTOR, "#curves .scatterlayer .point")[0]
    ActionChains(page).move_to_element(head).perform()
    wait(page, lambda: page.find_elements(By.CSS_SELECTOR, "#curves .hovertext"))
    text = page.find_element(By.CSS_SELECTOR, "#curves .hovertext").text
    for part in ("learning rate", f"step {STEPS}", "loss", "|gradient|"):
        assert part in text


# ---- Readable for everybody ----


def test_everything_can_be_reached_with_the_keyboard_and_shows_the_focus(page: WebDriver) -> None:
    reached = []
    for _ in range(20):
        press(page, Keys.TAB)
        reached.append(
            page.execute_script(
                "const e = document.activeElement; const s = getComputedStyle(e);"
                "return [e.id || e.type, e.matches(':focus-visible') && s.outlineStyle !== 'none']"
            )
        )
    ids = {id for id, _ in reached}
    assert {"surface", "lr", "speed", "checkbox", "first", "back", "play", "forth", "last", "scrubber"} <= ids
    assert all(outlined for id, outlined in reached if id)


def test_every_control_has_a_name(page: WebDriver) -> None:
    for control in page.find_elements(By.CSS_SELECTOR, "button, select, input"):
        assert control.accessible_name


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_nothing_sticks_out_sideways(url: str, tmp_path: Path, size: tuple[int, int]) -> None:
    with chromium(tmp_path, NO_WEBGL, size) as driver:
        driver.get(url)
        driver.find_element(By.ID, "last").click()
        Select(driver.find_element(By.ID, "lr")).select_by_visible_text("0.1")
        assert driver.execute_script("return document.documentElement.scrollWidth") <= size[0]
        play = driver.find_element(By.ID, "play").rect
        assert play["width"] >= 44
        assert play["height"] >= 44
        assert play["y"] + play["height"] <= size[1], "the transport is always in sight"


def test_dark_mode_and_reduced_motion(url: str, tmp_path: Path) -> None:
    with chromium(tmp_path, NO_WEBGL, prefers_color_scheme="dark", prefers_reduced_motion="reduce") as driver:
        driver.get(url)
        wait(driver, lambda: shown_steps(driver, "map"))
        assert (
            driver.find_element(By.TAG_NAME, "body").value_of_css_property("background-color") == "rgba(20, 23, 27, 1)"
        )
        assert driver.execute_script("return document.getElementById('map').layout.paper_bgcolor") == "#14171b"
        assert Select(driver.find_element(By.ID, "speed")).first_selected_option.text in ("1 steps/s", "2 steps/s")
        assert step_of(driver) == 0, "nothing moves by itself"
