"""The documentation matches the code, and its links work."""

import json
import re
import runpy
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from segkit import __version__

from support.command_line import TINY
from support.pages import blocks

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
FILES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]


def test_loss_reference_is_up_to_date():
    written = runpy.run_path(str(ROOT / "tools" / "write_loss_reference.py"))["page"]()
    page = DOCS / "reference" / "losses.md"
    assert page.read_text(encoding="utf-8") == written, "run python tools/write_loss_reference.py"


@pytest.mark.parametrize("page", [*FILES, *PAGES], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_point_to_existing_files_and_headings(page):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text(encoding="utf-8"))):
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        if "://" in target or target.startswith("mailto:"):
            continue
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


def test_navigation_lists_every_page():
    navigation = YAML(typ="safe").load(ROOT / "mkdocs.yml")["nav"]
    assert sorted(pages_of(navigation)) == [page.relative_to(DOCS).as_posix() for page in PAGES]


def test_citation_names_the_current_version():
    assert YAML(typ="safe").load(ROOT / "CITATION.cff")["version"] == __version__


def test_paths_named_in_the_documentation_exist():
    # the lab notebook is dated and may name what is no longer there
    texts = {page: page.read_text(encoding="utf-8") for page in [*FILES, *PAGES] if page.name != "log.md"}
    named = {
        (str(page.relative_to(ROOT)), path)
        for page, text in texts.items()
        for path in re.findall(r"(?<![\w/.])(?:segkit|tests|tools|configs|docs)/[\w/.-]+\.(?:py|md|yaml)\b", text)
    }
    assert sorted(entry for entry in named if not (ROOT / entry[1]).exists()) == []


def test_scores_of_the_example_are_those_of_the_page(capsys):
    """docs/explanation/which_dice.md computes the same masks by all rules; its table lists what comes out."""
    file = DOCS / "explanation" / "which_dice.md"
    page = file.read_text(encoding="utf-8")
    (block,) = blocks(file, ["python"])
    exec(compile(block, "which_dice.md", "exec"), {})
    printed = {line.split()[0]: line.split()[1] for line in capsys.readouterr().out.splitlines()}
    rows = re.findall(r"^\| (`.*?`) \| (0\.\d{3}) \|", page, flags=re.MULTILINE)
    listed = {name: value for names, value in rows for name in re.findall(r"`(\w+)`", names)}
    assert printed == listed


def test_the_notebook_runs_and_shows_what_it_did(tmp_path, monkeypatch):
    """Its ten cells with a smaller configuration; what is stored in it was made by a run without errors."""
    cells = json.loads((DOCS / "getting_started" / "tour.ipynb").read_text(encoding="utf-8"))["cells"]
    assert len(cells) == 10
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    outputs = [output for cell in code for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"execute_result", "display_data"}
    assert sum("image/png" in output["data"] for output in outputs) >= 3
    (tmp_path / "tiny.yaml").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("matplotlib.pyplot.show", lambda: None)
    names = {}
    for cell in code:
        source = "".join(cell["source"])
        for written, small in (('"quickstart"', '"tiny.yaml"'), ("epochs=8", "epochs=1"), ("seeds=3", "seeds=1")):
            source = source.replace(written, small)
        exec(compile(source, "tour.ipynb", "exec"), names)
    assert len(names["comparison"].verdicts) == 1


def without_code(text: str) -> str:
    """Markdown without its code blocks, in which brackets are no links."""
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", without_code(page.read_text(encoding="utf-8")), flags=re.MULTILINE)
    return {re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}


def pages_of(nav: list) -> list[str]:
    """The files that a navigation names, at any depth."""
    files = []
    for entry in nav:
        for value in entry.values():
            files += pages_of(value) if isinstance(value, list) else [value]
    return files
