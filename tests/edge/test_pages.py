"""The pages in a real browser, with a camera that plays a rendered clip."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

pytestmark = pytest.mark.browser
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""
PAGES = ("identify", "enrol", "gallery", "check", "history", "device")

if not CHROMIUM:
    pytest.skip("no chromium", allow_module_level=True)


def tray() -> np.ndarray:
    """A green capsule on a grey table, 640 x 480."""
    frame = np.full((480, 640, 3), 150, np.uint8)
    cv2.ellipse(frame, (320, 240), (180, 80), 25, 0, 360, (40, 150, 80), -1, cv2.LINE_AA)
    return frame


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    written = io.BytesIO()
    Image.fromarray(tray()).save(written, "jpeg", quality=95)
    path = tmp_path_factory.mktemp("clip") / "tray.mjpeg"
    path.write_bytes(written.getvalue() * 30)
    return path


@pytest.fixture
def address(bundle: Path, tmp_path: Path) -> Iterator[str]:
    """A running `pilltrack serve`."""
    command = [str(Path(sys.executable).with_name("pilltrack")), "serve", "--port=0"]
    command += [f"--bundle={bundle}", f"--home={tmp_path / 'home'}"]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                break
        else:
            pytest.fail("the service did not start")
        yield found[0]
        process.terminate()
        process.wait(timeout=20)


@pytest.fixture(scope="module")
def browser(clip: Path) -> Iterator[Browser]:
    arguments = [
        "--no-sandbox", "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-video-capture={clip}",
    ]  # fmt: skip
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    context = browser.new_context(
        base_url=address, permissions=["camera"], viewport={"width": 1280, "height": 800}
    )
    context.set_default_timeout(30_000)
    page = context.new_page()
    troubles: list[str] = []
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("console", lambda m: troubles.append(m.text) if m.type == "error" else None)
    yield page
    context.close()
    assert [t for t in troubles if "422" not in t] == []


def test_an_unknown_pill_is_enrolled_recognised_and_checked(page: Page) -> None:
    page.goto("/#/identify")
    page.get_by_role("button", name="Start this browser's camera").click()
    page.locator("ul.pills li.unknown").wait_for()
    page.get_by_text("pictures a second").wait_for()
    page.get_by_role("button", name="Stop").click()

    page.get_by_role("link", name="Enrol").click()
    page.get_by_role("button", name="Start this browser's camera").click()
    for number in (1, 2, 3):
        page.get_by_role("button", name="Take a photo").click()
        page.get_by_text(f"{number} photo", exact=False).first.wait_for()
    page.get_by_label("Name of the pill").fill("green capsule")
    page.get_by_role("button", name="Enrol", exact=True).click()
    page.get_by_label("Why it is right").fill("the locator takes the frame for a pill")
    page.get_by_role("button", name="Enrol all the same").click()
    page.get_by_text("green capsule is enrolled").wait_for()

    page.get_by_role("link", name="Identify").click()
    page.get_by_role("button", name="Start this browser's camera").click()
    page.locator("ul.pills li.known", has_text="green capsule").wait_for()

    page.get_by_role("link", name="Check").click()
    page.get_by_label("Expected pills, one a line").fill("1 red-pill")
    page.get_by_role("button", name="Start this browser's camera").click()
    page.get_by_role("button", name="Take a photo and check").click()
    page.locator("tr", has_text="red-pill").get_by_text("missing").wait_for()
    page.locator("tr", has_text="green capsule").get_by_text("not listed").wait_for()
    page.get_by_role("button", name="Wrong: do not").click()
    page.get_by_text("Kept on record").first.wait_for()

    page.get_by_role("link", name="History").click()
    page.get_by_text("rejected").first.wait_for()
    page.get_by_role("link", name="Gallery").click()
    page.get_by_role("button", name="Forget").click()
    page.get_by_role("button", name="Yes, forget it").click()
    page.get_by_text("green capsule is forgotten").first.wait_for()


# getUserMedia answers when the test lets it, as when a person is asked for leave.
ASKING = """
const media = navigator.mediaDevices, use = media.getUserMedia.bind(media);
window.streams = [];
media.getUserMedia = async (wanted) => {
  const stream = await use(wanted);
  await new Promise((resolve) => { window.allow = resolve; });
  window.streams.push(stream);
  return stream;
};
"""
ENDED = """() => window.streams.length === 1
  && window.streams[0].getTracks().every((track) => track.readyState === "ended")"""


@pytest.mark.parametrize("name", ["identify", "enrol", "check"])
def test_a_camera_that_is_allowed_after_leaving_is_not_left_on(page: Page, name: str) -> None:
    page.add_init_script(ASKING)
    page.goto(f"/#/{name}")
    page.get_by_role("button", name="Start this browser's camera").click()
    page.wait_for_function("() => window.allow")
    page.get_by_role("link", name="Device").click()
    page.get_by_role("heading", name="Device").wait_for()
    page.evaluate("window.allow()")
    page.wait_for_function(ENDED)


@pytest.mark.parametrize("width", [360, 1920])
@pytest.mark.parametrize("name", PAGES)
def test_every_page_fits_its_window(page: Page, name: str, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(f"/#/{name}")
    page.locator("h1").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_refused_photo_says_why_and_what_to_do(page: Page, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no photo")
    page.goto("/#/identify")
    page.locator("h1").wait_for()
    page.set_input_files("input[type=file]", str(tmp_path / "broken.jpg"))
    alert = page.get_by_role("alert")
    alert.wait_for()
    assert "broken.jpg" in alert.inner_text()
    assert "Replace" in alert.inner_text()


def test_all_can_be_reached_by_keyboard(page: Page) -> None:
    page.goto("/#/identify")
    page.locator("h1").wait_for()
    reached = set()
    for _ in range(14):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.textContent.trim()"))
    assert {"Skip to the page", "Enrol", "History", "Start this browser's camera"} <= reached
