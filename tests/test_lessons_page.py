"""The site of the lessons in a real headless Chromium: it opens offline, on a telephone and in the dark."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
from browser import DESKTOP, IN_BROWSER, NO_WEBGL, PHONE, chromium, errors, requested
from selenium.webdriver.chrome.webdriver import WebDriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from fastopt.lessons import registry
from fastopt.lessons.site import pages

pytestmark = IN_BROWSER

LESSONS = [registry()[name] for name in ("gradient-descent", "momentum")]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    findings = {lesson: [claim.check() for claim in lesson.claims] for lesson in LESSONS}
    for name, content in islice(pages(findings), 1 + len(LESSONS)):  # the landscape has tests of its own
        (folder / name).write_text(content, encoding="utf-8")
    return folder


def shown_figures(driver: WebDriver) -> list[str | None]:
    drawings = driver.find_elements(By.CSS_SELECTOR, "figure > svg")
    return [drawing.get_attribute("class") for drawing in drawings if drawing.is_displayed()]


@pytest.mark.parametrize(("size", "look"), [(DESKTOP, "wide"), (PHONE, "narrow")], ids=["desktop", "phone"])
def test_it_is_read_from_page_to_page_offline(site: Path, tmp_path: Path, size: tuple[int, int], look: str) -> None:
    index, first, second = (site / name for name in ("index.html", "gradient-descent.html", "momentum.html"))
    with chromium(tmp_path, NO_WEBGL, size) as driver:
        driver.get(index.as_uri())
        visited = [index]
        for link, page in (("Gradient descent", first), ("Momentum →", second), ("All lessons", index)):
            assert driver.execute_script("return document.documentElement.scrollWidth") <= size[0]
            driver.find_element(By.LINK_TEXT, link).click()
            assert driver.current_url == page.as_uri()
            assert shown_figures(driver) == ([None] if page is index else [look])  # the walk's has but one look
            visited.append(page)
        assert requested(driver) == [page.as_uri() for page in visited]
        assert errors(driver) == []


def test_dark_mode(site: Path, tmp_path: Path) -> None:
    with chromium(tmp_path, NO_WEBGL, prefers_color_scheme="dark") as driver:
        driver.get((site / "momentum.html").as_uri())
        body = driver.find_element(By.TAG_NAME, "body")
        assert body.value_of_css_property("background-color") == "rgba(20, 23, 27, 1)"
        assert body.value_of_css_property("color") == "rgba(236, 239, 242, 1)"
        words = driver.find_element(By.CSS_SELECTOR, "figure svg.wide")
        assert words.value_of_css_property("color") == "rgba(236, 239, 242, 1)"


def test_numbers_are_beside_what_was_expected(site: Path, tmp_path: Path) -> None:
    with chromium(tmp_path, NO_WEBGL) as driver:
        driver.get((site / "gradient-descent.html").as_uri())
        row = driver.find_elements(By.CSS_SELECTOR, "tbody tr")[1]
        numbers, expected = (
            [span.rect["y"] for span in row.find_elements(By.CSS_SELECTOR, f"td[data-label={label}] span")]
            for label in ("number", "expected")
        )
        assert len(numbers) == 2
        assert numbers == expected


# --- The walk -------------------------------------------------------------------------------------------------------


def press(driver: WebDriver, *keys: str) -> None:
    for key in keys:
        ActionChains(driver).send_keys(key).perform()


def here(driver: WebDriver) -> str:
    [shown] = [station for station in driver.find_elements(By.CLASS_NAME, "station") if station.is_displayed()]
    return shown.find_element(By.CLASS_NAME, "count").text


def film_step(driver: WebDriver) -> int:
    return int(driver.find_element(By.CSS_SELECTOR, ".here .step").text.split(" / ")[0])


def walker(driver: WebDriver) -> str | None:
    return driver.find_element(By.CSS_SELECTOR, ".here .walker").get_attribute("cx")


def wait(driver: WebDriver, condition: Callable[[], object]) -> None:
    WebDriverWait(driver, 30, poll_frequency=0.05).until(lambda _: condition())


def test_walk_by_keyboard(site: Path, tmp_path: Path) -> None:
    with chromium(tmp_path, NO_WEBGL) as driver:
        driver.get((site / "index.html").as_uri())
        assert here(driver) == "step 1 of 8"
        assert film_step(driver) == 0, "nothing moves by itself"
        start = walker(driver)
        press(driver, Keys.SPACE)
        wait(driver, lambda: film_step(driver) >= 2 and walker(driver) != start)
        press(driver, Keys.SPACE)
        stopped = walker(driver)
        driver.execute_async_script("setTimeout(arguments[0], 300)")
        assert walker(driver) == stopped
        press(driver, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT)
        assert here(driver) == "step 2 of 8"
        assert driver.switch_to.active_element.text.endswith("The learning rate"), "screen readers follow"
        press(driver, *[Keys.ARROW_RIGHT] * 8)
        assert here(driver) == "step 8 of 8"
        assert not driver.find_element(By.ID, "next").is_enabled()
        driver.back()
        assert here(driver) == "step 7 of 8"
        answer = driver.find_element(By.CSS_SELECTOR, ".here details p")
        assert not answer.is_displayed()
        driver.execute_script("document.querySelector('.here summary').focus()")
        press(driver, Keys.SPACE)
        assert answer.is_displayed()
        assert film_step(driver) == 0, "Space was the summary's"
        assert errors(driver) == []


def test_walk_plays_to_the_end_on_a_click_and_again(site: Path, tmp_path: Path) -> None:
    with chromium(tmp_path, NO_WEBGL) as driver:
        driver.get((site / "index.html#station-4").as_uri().replace("%23", "#"))
        assert here(driver) == "step 4 of 8"
        driver.find_element(By.CSS_SELECTOR, ".here .film > svg").click()
        wait(driver, lambda: film_step(driver) == 127)
        button = driver.find_element(By.CSS_SELECTOR, ".here .play")
        assert button.text == "Again"
        button.click()
        wait(driver, lambda: 0 < film_step(driver) < 127)
        assert driver.find_element(By.CSS_SELECTOR, ".here figcaption output").text.startswith("loss ")


def test_space_scrolls_where_the_walk_is_out_of_sight(site: Path, tmp_path: Path) -> None:
    with chromium(tmp_path, NO_WEBGL) as driver:
        driver.get((site / "index.html").as_uri())
        driver.execute_script("scrollTo(0, document.getElementById('walk').getBoundingClientRect().bottom)")
        before = driver.execute_script("return scrollY")
        press(driver, Keys.SPACE)
        wait(driver, lambda: driver.execute_script("return scrollY") > before)
        assert film_step(driver) == 0


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_walk_fits_and_its_links_lead_somewhere(site: Path, tmp_path: Path, size: tuple[int, int]) -> None:
    with chromium(tmp_path, NO_WEBGL, size) as driver:
        driver.get((site / "index.html").as_uri())
        for number in range(1, 9):
            assert here(driver) == f"step {number} of 8"
            assert driver.execute_script("return document.documentElement.scrollWidth") <= size[0]
            links = driver.find_elements(By.CSS_SELECTOR, ".here .links a")
            assert "landscape.html#surface=" in str(links[0].get_attribute("href"))
            for link in links[1:]:
                file = str(link.get_attribute("href")).rpartition("/")[2]
                assert (site / file).is_file()
            driver.find_element(By.CSS_SELECTOR, "#next").click()


def test_walk_without_motion_shows_the_end_at_once(site: Path, tmp_path: Path) -> None:
    with chromium(tmp_path, NO_WEBGL, prefers_reduced_motion="reduce", prefers_color_scheme="dark") as driver:
        driver.get((site / "index.html").as_uri())
        press(driver, Keys.SPACE)
        assert film_step(driver) == 30
        paper = driver.find_element(By.CSS_SELECTOR, ".here .paper")
        assert paper.value_of_css_property("fill") == "rgb(20, 23, 27)"


def test_walk_without_scripts_shows_every_station(site: Path, tmp_path: Path) -> None:
    with chromium(tmp_path, NO_WEBGL) as driver:
        driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
        driver.get((site / "index.html").as_uri())
        stations = driver.find_elements(By.CLASS_NAME, "station")
        assert len(stations) == 8
        assert all(station.is_displayed() for station in stations)
        assert not driver.find_element(By.CSS_SELECTOR, ".play").is_displayed()
