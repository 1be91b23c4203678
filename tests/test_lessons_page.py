"""The site of the lessons in a real headless Chromium: it opens offline, on a telephone and in the dark."""

from itertools import islice
from pathlib import Path

import pytest
from browser import DESKTOP, IN_BROWSER, NO_WEBGL, PHONE, chromium, errors, requested
from selenium.webdriver.chrome.webdriver import WebDriver
from selenium.webdriver.common.by import By

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
            assert shown_figures(driver) == ([] if page is index else [look])
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
