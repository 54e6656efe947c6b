"""The documentation says what the code does."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_page_of_the_losses_is_that_of_the_code():
    written = runpy.run_path(str(ROOT / "docs" / "losses.py"))["page"]()
    assert (ROOT / "docs" / "losses.md").read_text(encoding="utf-8") == written, "run python docs/losses.py"


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda page: page.name
)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    targets = [target for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text) if "://" not in target]
    assert [target for target in targets if not (page.parent / target).exists()] == []
