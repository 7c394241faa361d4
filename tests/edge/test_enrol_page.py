"""The Enrol page in a real browser: faults beside their photos, both pictures, and a reason."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from pilltrack.edge.audit import AuditLog
from pilltrack.edge.settings import Settings
from tests.drawn import BLUE, RED, Photo, empty_table, pill_photo, saved
from tests.edge.server import serving
from tests.tiny_bundle import COLOURED, tiny_bundle

pytestmark = pytest.mark.browser
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""
NEXT_SIDE = "Side shown by the photos that come next"
WHY = "Why it is right all the same"

if not CHROMIUM:
    pytest.skip("no chromium", allow_module_level=True)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture(params=[1280, 360])
def page(
    chromium: Browser, home: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Page]:
    """The page of a device that finds what is coloured, on a desk and on a phone."""
    crop = pill_photo(RED)[40:200, 80:240]
    bundle = tiny_bundle(tmp_path, "red-pill", crop, locator=COLOURED)
    with serving(Settings(bundle=bundle, home=home)) as address:
        context = chromium.new_context(
            base_url=address, viewport={"width": request.param, "height": 800}
        )
        context.set_default_timeout(20_000)
        page = context.new_page()
        troubles: list[str] = []
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.goto("/#/enrol")
        page.locator("h1").wait_for()
        yield page
        assert page.evaluate("document.documentElement.scrollWidth") <= request.param
        assert troubles == []
        context.close()


def test_photos_of_both_sides_are_enrolled(page: Page, home: Path, tmp_path: Path) -> None:
    choose(page, tmp_path, "front", pill_photo(), pill_photo(at=(140, 118)))
    choose(page, tmp_path, "back", pill_photo(length_px=130))
    enrol(page, "green")
    page.get_by_text("green is enrolled with 3 photos").wait_for()
    assert page.locator("ul.photos li").count() == 0
    assert not (home / "audit.sqlite").exists()


def test_each_fault_stands_beside_its_photo(page: Page, tmp_path: Path) -> None:
    choose(page, tmp_path, "front", pill_photo(), pill_photo(blur_px=6), pill_photo(light=0.4))
    enrol(page, "green")
    page.get_by_role("alert").get_by_text("Not enrolled").wait_for()
    sharp, soft, dark = (item.inner_text() for item in page.locator("ul.photos > li").all())
    assert "✕" not in sharp
    assert "✕ Blurred" in soft
    assert "expected at most 2.0%" in soft
    assert "hold it still" in soft
    assert "✕ Too dark" in dark
    assert "✕ One side only" in page.locator("form > div").last.inner_text()
    heard = page.locator("#announcer[aria-live=polite]")
    assert heard.inner_text() == "3 things are wrong with the photos."


def test_a_mended_enrolment_needs_no_reason(page: Page, home: Path, tmp_path: Path) -> None:
    choose(page, tmp_path, "front", pill_photo(), pill_photo(blur_px=6))
    choose(page, tmp_path, "front", pill_photo(at=(140, 118)))
    enrol(page, "green")
    page.get_by_label(WHY).wait_for()
    page.get_by_role("button", name="Remove photo 2").click()
    assert page.get_by_label(WHY).count() == 0  # what was said of other photos counts no more
    enrol(page, "green")
    page.get_by_label(WHY).wait_for()
    page.get_by_label("Name of the pill").fill("red")
    assert page.get_by_label(WHY).count() == 0  # nor does what was said of another name
    page.get_by_label("Side shown by photo 2").select_option("back")
    enrol(page, "green")
    page.get_by_text("green is enrolled with 2 photos").wait_for()
    assert not (home / "audit.sqlite").exists()


def test_enrolling_all_the_same_needs_a_reason_that_is_kept(
    page: Page, home: Path, tmp_path: Path
) -> None:
    choose(page, tmp_path, "front", pill_photo(blur_px=6))
    enrol(page, "green")
    page.get_by_role("button", name="Enrol all the same").click()
    page.get_by_text("Give a reason first.").wait_for()
    assert page.evaluate("document.activeElement.tagName") == "TEXTAREA"
    assert page.get_by_label(WHY).get_attribute("aria-invalid") == "true"
    assert not home.exists()
    page.get_by_label(WHY).fill("the last one left")
    page.get_by_role("button", name="Enrol all the same").click()
    page.get_by_text("The reason is on record.").wait_for()
    with AuditLog(home, create=False) as log:
        [(_, override)] = log.overrides()
    assert (override.pill, override.reason) == ("green", "the last one left")
    assert [fault.kind for fault in override.faults] == ["blurred", "one side"]


def test_a_collision_shows_both_pictures(page: Page, tmp_path: Path) -> None:
    for side, photo in (("front", pill_photo()), ("back", pill_photo(BLUE))):
        choose(page, tmp_path, side, photo)
    enrol(page, "green")
    page.get_by_text("green is enrolled").wait_for()
    for side, photo in (("front", pill_photo(at=(140, 118))), ("back", pill_photo(BLUE))):
        choose(page, tmp_path, side, photo)
    enrol(page, "copy")
    page.get_by_text("Enrolled as green").wait_for()
    assert "✕ Looks like another pill" in page.locator("ul.photos").inner_text()
    # No wait_for_function: the page forbids eval, with which it looks again.
    loaded = "async img => { await img.decode(); return img.naturalWidth; }"
    assert page.locator(".pair img").evaluate(loaded) > 0
    new, enrolled = (middle_colour(page, f".pair {kind}") for kind in ("canvas", "img"))
    assert new == pytest.approx(enrolled, abs=8)
    new_box, enrolled_box = (
        page.get_by_role("img", name=name).bounding_box() for name in ("The new pill", "green")
    )
    assert new_box is not None
    assert enrolled_box is not None
    assert new_box["y"] == enrolled_box["y"]  # side by side
    assert new_box["width"] == pytest.approx(enrolled_box["width"], abs=1)
    assert new_box["width"] > 100


def test_a_pill_of_the_bundle_has_no_picture_and_that_is_said(page: Page, tmp_path: Path) -> None:
    choose(page, tmp_path, "front", pill_photo(RED))
    enrol(page, "rosy")
    page.get_by_text("Enrolled as red-pill").wait_for()
    assert page.locator(".pair").get_by_text("no picture").is_visible()


def test_without_a_pill_no_reason_is_asked_for(page: Page, tmp_path: Path) -> None:
    choose(page, tmp_path, "front", empty_table())
    enrol(page, "green")
    page.get_by_text("there is nothing to enrol, whatever the reason").wait_for()
    assert page.get_by_role("button", name="Enrol all the same").count() == 0


def choose(page: Page, directory: Path, side: str, *photos: Photo) -> None:
    """Add photos of a side from files."""
    before = page.locator("ul.photos > li").count()
    names = [saved(photo, directory / f"{before + n}.png") for n, photo in enumerate(photos)]
    page.get_by_label(NEXT_SIDE).select_option(side)
    page.set_input_files("input[type=file]", names)
    page.locator("ul.photos > li").nth(before + len(photos) - 1).wait_for()


def enrol(page: Page, pill: str) -> None:
    page.get_by_label("Name of the pill").fill(pill)
    page.get_by_role("button", name="Enrol", exact=True).click()


def middle_colour(page: Page, selector: str) -> list[int]:
    """Red, green and blue in the middle of a picture."""
    found: list[int] = page.evaluate(
        """selector => {
            const shown = document.querySelector(selector);
            const copy = Object.assign(document.createElement("canvas"), { width: 9, height: 9 });
            const brush = copy.getContext("2d");
            brush.drawImage(shown, 0, 0, 9, 9);
            return [...brush.getImageData(4, 4, 1, 1).data].slice(0, 3);
        }""",
        selector,
    )
    return found
