"""A headless Chromium to open pages in, and what it had to say."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")

from selenium.webdriver.chrome.webdriver import WebDriver  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
IN_BROWSER = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="Chromium or chromedriver is not installed"),
]

QUIET = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]
SOFTWARE_WEBGL = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
NO_WEBGL = ["--disable-3d-apis"]
DESKTOP, PHONE = (1280, 900), (360, 740)


@contextmanager
def chromium(profile: Path, flags: list[str], size: tuple[int, int] = DESKTOP, **media: str) -> Iterator[WebDriver]:
    """Start a browser with a window of so many pixels; `media` are features such as ``prefers_color_scheme="dark"``."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in [*QUIET, *flags, f"--user-data-dir={profile}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        width, height = size
        driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500},
        )
        features = [{"name": name.replace("_", "-"), "value": value} for name, value in media.items()]
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        driver.get("about:blank")
        requested(driver)  # what the browser's own first page asked for
        yield driver
    finally:
        driver.quit()


def errors(driver: WebDriver) -> list[dict[str, Any]]:
    """Return what the console has shown in red since the last call."""
    return [entry for entry in _log(driver, "browser") if entry["level"] == "SEVERE"]


def requested(driver: WebDriver) -> list[str]:
    """Return the addresses that were asked for since the last call, without those inside the page itself."""
    events = [json.loads(entry["message"])["message"] for entry in _log(driver, "performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    return [address for address in asked if not address.startswith(("data:", "blob:"))]


def _log(driver: WebDriver, kind: str) -> list[dict[str, Any]]:
    return list(driver.get_log(kind))  # type: ignore[no-untyped-call]
