"""Every page as axe sees it: light and dark, on a phone and on a desk, empty and with content.

axe-core comes with a package of the dev install; nothing of it is part of the product.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from pilltrack.edge.settings import Settings
from tests.drawn import pill_photo
from tests.edge.conftest import noise, png, red
from tests.edge.server import serving

pytestmark = pytest.mark.browser
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""
AXE = importlib.util.find_spec("axe_playwright_python")
TOKEN = "correct horse battery staple"
READY = {"gallery": "article", "history": "article", "device": "dl"}  # what comes last

if not CHROMIUM:
    pytest.skip("no chromium", allow_module_level=True)
if AXE is None or AXE.origin is None:
    pytest.skip("axe-playwright-python is not installed", allow_module_level=True)

SCRIPT = Path(AXE.origin).with_name("axe.min.js").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("photos")
    (directory / "noise.png").write_bytes(png(noise()))
    (directory / "tablet.png").write_bytes(png(pill_photo()))
    (directory / "broken.png").write_bytes(b"no photo")
    return directory


@pytest.fixture(scope="module")
def device(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A device with an enrolled pill and two checked trays, one of them rejected."""
    home = tmp_path_factory.mktemp("home")
    settings = Settings(bundle=bundle, home=home, burst=100_000, requests_per_s=1e5)
    with serving(settings) as address, httpx.Client(base_url=f"{address}/api/v1") as client:
        files = [("photos", (f"{seed}.png", png(noise(seed)))) for seed in (1, 2, 3)]
        form = {"name": "noise", "override_reason": "drawn by a test"}
        client.post("gallery", data=form, files=files).raise_for_status()
        files = [("photos", ("tablet.png", png(pill_photo())))]
        client.post("gallery", data={**form, "name": "tablet"}, files=files).raise_for_status()
        for photo, expected in (
            (noise(9), "2 red-pill"),
            (red(), "1 noise"),
            (red(), "1 red-pill"),
        ):
            tray = {"image": ("tray.png", png(photo))}
            check = client.post("check", data={"expected": expected}, files=tray).json()
        action = {"action": "rejected", "note": "another tray"}
        client.post(f"history/{check['number']}/actions", data=action).raise_for_status()
        yield address


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(params=["light", "dark"])
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[360, 1920])
def page(
    chromium: Browser, device: str, scheme: Any, request: pytest.FixtureRequest
) -> Iterator[Page]:
    context = chromium.new_context(
        base_url=device,
        color_scheme=scheme,
        viewport={"width": request.param, "height": 800},
        reduced_motion="reduce",
    )
    context.set_default_timeout(30_000)
    yield context.new_page()
    context.close()


def test_no_page_has_a_violation(page: Page) -> None:
    for name in ("identify", "enrol", "gallery", "check", "history", "device"):
        open_page(page, name)
        assert violations(page) == [], name
        fits(page, name)


def test_no_violation_in_what_is_found(page: Page, photos: Path) -> None:
    open_page(page, "identify")
    page.set_input_files("input[type=file]", str(photos / "noise.png"))
    page.locator("ul.pills summary").first.click()
    assert violations(page) == []
    page.set_input_files("input[type=file]", str(photos / "broken.png"))
    page.get_by_role("alert").wait_for()
    assert violations(page) == []
    open_page(page, "check")
    page.get_by_label("Expected pills, one a line").fill("2 red-pill")
    page.set_input_files("input[accept='image/*']", str(photos / "noise.png"))
    page.locator("table").wait_for()
    page.get_by_text("on the tray", exact=False).last.click()
    page.get_by_role("button", name="Wrong: do not").click()
    page.get_by_text("Kept on record").first.wait_for()
    assert violations(page) == []
    fits(page, "check")


def test_no_violation_in_what_is_refused(page: Page, photos: Path) -> None:
    open_page(page, "enrol")
    page.get_by_label("Name of the pill").fill("another tablet")
    names = [str(photos / name) for name in ("noise.png", "tablet.png")]
    page.set_input_files("input[type=file]", names)
    page.get_by_role("button", name="Enrol", exact=True).click()
    page.get_by_text("Enrolled as tablet").wait_for()
    page.get_by_role("button", name="Enrol all the same").click()
    page.get_by_text("Give a reason first.").wait_for()
    assert violations(page) == []
    fits(page, "enrol")


def test_no_violation_when_asked_whether_to_forget(page: Page) -> None:
    open_page(page, "gallery")
    page.get_by_role("button", name="Forget").first.click()
    page.get_by_role("dialog").wait_for()
    assert violations(page) == []


def test_no_violation_on_the_way_in(
    chromium: Browser, scheme: Any, bundle: Path, tmp_path: Path
) -> None:
    settings = Settings(bundle=bundle, home=tmp_path / "home", token=TOKEN)
    with serving(settings) as address:
        context = chromium.new_context(base_url=address, color_scheme=scheme)
        page = context.new_page()
        page.goto("/")
        page.get_by_label("Token").fill("a guess of mine")
        page.get_by_role("button", name="Sign in").click()
        page.get_by_role("alert").wait_for()
        assert violations(page) == []
        context.close()


def test_a_violation_is_noticed(page: Page) -> None:
    open_page(page, "device")
    page.evaluate("document.querySelector('h1').style.color = '#888888'")
    page.evaluate("document.querySelector('h1').style.background = '#777777'")
    assert [found.split()[0] for found in violations(page)] == ["color-contrast"]


def open_page(page: Page, name: str) -> None:
    page.goto(f"/?{name}#/{name}")  # another address: another document
    page.locator(READY.get(name, "h1")).first.wait_for()


def violations(page: Page) -> list[str]:
    """What axe finds against any of its rules, and where."""
    page.evaluate(SCRIPT)
    found = page.evaluate("axe.run({ resultTypes: ['violations'] })")
    return [
        f"{rule['id']} {[node['target'] for node in rule['nodes']]}" for rule in found["violations"]
    ]


def fits(page: Page, name: str) -> None:
    assert page.viewport_size is not None
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= page.viewport_size["width"], name
