"""Makes docs/screenshots/app-light.png, app-dark.png and app-narrow.png of a page that runs, with phantoms only.

Start the page first (`make app`), then `python scripts/screenshots_app.py http://127.0.0.1:8501 malignant 5`. Needs
Chromium on the PATH.
"""

import argparse
import shutil
import sys
from pathlib import Path
from typing import Literal

from playwright.sync_api import sync_playwright

from ultrasound.app import words
from ultrasound.images.sources.phantom import CLASSES

FOLDER = Path(__file__).parents[1] / "docs/screenshots"
VIEWS: dict[str, tuple[int, Literal["light", "dark"]]] = {  # width in pixels, what the browser prefers
    "light": (1280, "light"), "dark": (1280, "dark"), "narrow": (390, "light"),
}  # fmt: skip


def main() -> None:
    """Take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", help="address of the page")
    parser.add_argument("label", choices=CLASSES, help="what the phantom shows")
    parser.add_argument("number", type=int, help="number of the phantom, 1 to 999")
    given = parser.parse_args()
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        sys.exit("no Chromium on the PATH: install it (apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        for name, (width, scheme) in VIEWS.items():
            tab = browser.new_page(
                viewport={"width": width, "height": 800}, color_scheme=scheme, reduced_motion="reduce"
            )
            tab.goto(given.url)
            tab.get_by_text(words.PHANTOM, exact=True).click()
            number = tab.get_by_label(words.PHANTOM_NUMBER)
            number.fill(str(given.number))
            number.press("Enter")
            box = tab.get_by_role("combobox", name=words.PHANTOM_CLASS)
            box.click()
            tab.get_by_role("option", name=given.label, exact=True).click()
            tab.get_by_role("heading", name=f"synthetic phantom, {given.label} {given.number}").wait_for()
            tab.get_by_role("button", name=words.SHEET).wait_for()
            tab.locator("[data-testid=stApp][data-test-script-state=notRunning]").wait_for()
            scrolled = tab.get_by_test_id("stMain").evaluate("main => main.scrollTop")
            end = tab.get_by_text(words.NO_PHYSICIAN).evaluate("line => line.getBoundingClientRect().bottom")
            tab.set_viewport_size({"width": width, "height": int(scrolled + end) + 32})
            tab.wait_for_timeout(500)  # images are laid out anew
            tab.mouse.move(0, 0)
            tab.screenshot(path=FOLDER / f"app-{name}.png")
            print(FOLDER / f"app-{name}.png")
            tab.close()
        browser.close()


if __name__ == "__main__":
    main()
