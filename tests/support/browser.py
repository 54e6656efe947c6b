"""A Chromium of the system, in which pages are looked at."""

import os
import shutil
from contextlib import contextmanager
from importlib.util import find_spec

import pytest

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def browser():
    """A browser of Playwright. Without one, tests are skipped; with SEGKIT_BROWSER=required they fail."""
    path = next((found for name in CHROMIUM if (found := shutil.which(name))), None)
    lacking = "Chromium (apt-get install chromium)" if path is None else None
    lacking = lacking or next((name for name in ("playwright", "axe_playwright_python") if not find_spec(name)), None)
    if lacking is not None:
        stop = pytest.fail if os.environ.get("SEGKIT_BROWSER") == "required" else pytest.skip
        stop(f"needs {lacking}")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        opened = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


class Visit:
    """A page in a window, with what it has asked for and complained of."""

    def __init__(self, opened, file, width=1280, scheme="light"):
        self.page = opened.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.asked, self.complaints = [], []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        self.page.goto(f"file://{file}")

    def check(self):
        """Nothing was loaded or complained of, and the page is no wider than its window."""
        assert [url for url in self.asked if not url.startswith(("file:", "data:"))] == []
        assert self.complaints == []
        assert self.page.evaluate("document.documentElement.scrollWidth") <= self.page.viewport_size["width"]

    def violations(self):
        """What axe-core finds: rule, impact, and the places."""
        from axe_playwright_python.sync_playwright import Axe

        found = Axe().run(self.page).response["violations"]
        return [(rule["id"], rule["impact"], [node["html"][:100] for node in rule["nodes"]][:3]) for rule in found]
