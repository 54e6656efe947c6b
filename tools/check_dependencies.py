"""List the lowest allowed versions of the dependencies, or their licences.

python tools/check_dependencies.py floors --without torch torchvision > floors.txt
python tools/check_dependencies.py licences

`floors` prints a constraints file with the lowest version that pyproject.toml allows of each dependency of segkit and
its extras. `licences` prints a Markdown table of all packages that are installed for segkit and its extras; install
`segkit-trainer[all]` first. A licence that asks more than naming the authors is marked.
"""

import argparse
import re
import tomllib
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
DEVELOPMENT = {"test", "docs", "dev"}
COPYLEFT = re.compile(r"GPL|MPL|Mozilla|EPL|Eclipse|CDDL|CeCILL|EUPL|CC-BY-SA", re.IGNORECASE)
OPEN = re.compile(r"Apache|BSD|MIT|ISC|PSF|Python|HPND|Unlicense|Zlib|Boost|Public Domain|CC0", re.IGNORECASE)
MIT_TEXT = "Permission is hereby granted, free of charge"
COPYLEFT_TEXTS = {  # how the text of a licence begins; a mere mention has no version on the title
    "AGPL": r"GNU AFFERO GENERAL PUBLIC LICENSE\s+Version \d",
    "GPL": r"GNU GENERAL PUBLIC LICENSE\s+Version \d",
    "LGPL": r"GNU (LESSER|LIBRARY) GENERAL PUBLIC LICENSE\s+Version \d",
    "MPL": r"Mozilla Public License Version \d",
}


def runtime_requirements() -> dict[str, list[Requirement]]:
    """The requirements of a plain install (under "") and of each extra that a user may want."""
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    extras = {name: lines for name, lines in project["optional-dependencies"].items() if name not in DEVELOPMENT}
    groups = {
        name: [Requirement(line) for line in lines] for name, lines in {"": project["dependencies"], **extras}.items()
    }
    return {name: [line for line in lines if line.name != project["name"]] for name, lines in groups.items()}


def floors(without: list[str]) -> list[str]:
    """A line `name==version` for each requirement with a lowest version, but those that are left out."""
    lines = []
    for requirement in (each for group in runtime_requirements().values() for each in group):
        lowest = [bound.version for bound in requirement.specifier if bound.operator == ">="]
        if lowest and requirement.name not in without:
            lines.append(f"{requirement.name}=={lowest[0]}")
    return lines


def licence(package: Distribution) -> str:
    """The licence that a package states: its SPDX expression, else its classifiers, else the first line of the text."""
    metadata = package.metadata
    stated = [line.split(" :: ")[-1] for line in metadata.get_all("Classifier") or [] if line.startswith("License ::")]
    classifiers = ", ".join(name for name in stated if name != "OSI Approved")
    expression, text = ((metadata.get_all(name) or [""])[0].strip() for name in ("License-Expression", "License"))
    by_text = "MIT (by its licence file)" if MIT_TEXT in licence_files(package) else "not stated"
    return expression or classifiers or text.split("\n")[0] or by_text


def licence_files(package: Distribution) -> str:
    """The text of all licence files that a package brings."""
    files = [file for file in package.files or [] if re.match(r"(LICEN[CS]E|COPYING|NOTICE)", file.name, re.IGNORECASE)]
    return "\n".join(Path(str(file.locate())).read_text(encoding="utf-8", errors="replace") for file in files)


def bundled(package: Distribution) -> list[str]:
    """The copyleft licences whose text is among the licence files of a package: those of libraries that it brings."""
    text = licence_files(package)
    return [name for name, title in COPYLEFT_TEXTS.items() if re.search(title, text, re.IGNORECASE)]


def note(package: Distribution, text: str) -> str:
    """Copyleft, parts under copyleft, not open, or nothing to note."""
    if COPYLEFT.search(text):
        return "copyleft"
    if not OPEN.search(text):
        return "not open source, or not stated"
    return f"brings {', '.join(parts)}" if (parts := bundled(package)) else ""


def installed() -> tuple[dict[str, Distribution], dict[str, list[str]]]:
    """All packages that are installed for segkit, by name, and for each what needs it ("direct": segkit itself)."""
    packages: dict[str, Distribution] = {}
    needed_by: dict[str, list[str]] = {}
    queue: list[tuple[Requirement, str]] = []
    for extra, group in runtime_requirements().items():
        queue += [(requirement, f"direct, `{extra}`" if extra else "direct") for requirement in group]
    followed = set()
    for requirement, parent in queue:  # grows while it is read
        name = canonicalize_name(requirement.name)
        try:
            packages[name] = package = distribution(name)
        except PackageNotFoundError:
            if parent.startswith("direct"):
                raise SystemExit(f"{name} is not installed: pip install 'segkit-trainer[all]' first") from None
            continue
        parents = needed_by.setdefault(name, [])
        parents += [parent] if parent not in parents else []
        queue += [(line, name) for line in follow(package, requirement.extras, followed)]
    return packages, needed_by


def follow(package: Distribution, extras: set[str], followed: set[tuple[str, str]]) -> list[Requirement]:
    """The requirements of a package and of these extras on this platform, each extra once."""
    name = canonicalize_name(package.metadata["Name"])
    lines = [Requirement(line) for line in package.requires or []]
    new = [extra for extra in ("", *sorted(extras)) if (name, extra) not in followed]
    followed.update((name, extra) for extra in new)
    return [line for extra in new for line in lines if line.marker is None or line.marker.evaluate({"extra": extra})]


def licences() -> list[str]:
    """The table of licences; what segkit needs itself comes first."""
    packages, needed_by = installed()
    rows = []
    for name, package in packages.items():
        direct = [parent for parent in needed_by[name] if parent.startswith("direct")]
        parents = direct or needed_by[name]
        by = ", ".join(parents[:3]) + (f" and {len(parents) - 3} more" if len(parents) > 3 else "")
        text = licence(package)
        rows.append((not direct, name, f"| {name} | {text} | {by} | {note(package, text)} |"))
    return ["| package | licence | needed by | note |", "|---|---|---|---|", *(row for _, _, row in sorted(rows))]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("licences", help="print a table of the licences of what is installed")
    lowest = commands.add_parser("floors", help="print the lowest allowed versions as a constraints file")
    lowest.add_argument("--without", nargs="*", default=[], metavar="NAME", help="leave these packages out")
    arguments = parser.parse_args()
    print("\n".join(floors(arguments.without) if arguments.command == "floors" else licences()))


if __name__ == "__main__":
    main()
