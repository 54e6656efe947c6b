"""What the wheel and the sdist contain, and what is said of the dependencies in several places."""

import email
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path, PurePosixPath

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
ROOT_FILES = ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")
BUILD = "from setuptools import build_meta as b; b.build_sdist('dist'); b.build_wheel('dist')"
PAGE = (ROOT / "docs" / "reference" / "dependencies.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """Wheel and sdist, built from a copy of the checkout in which caches, data and runs lie about."""
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("segkit", "configs", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.pt"))
    for name in ROOT_FILES:
        shutil.copy(ROOT / name, folder)
    for name in ("segkit/__pycache__/a.pyc", "segkit/.cache/a.png", "data/case.png", "runs/a/last.pt", "segkit/a.pt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    (folder / "dist").mkdir()
    done = subprocess.run([sys.executable, "-c", BUILD], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "dist"


@pytest.fixture(scope="module")
def wheel(dist):
    with zipfile.ZipFile(next(dist.glob("*.whl"))) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def stem(wheel):
    """Name and version, with which the folders of metadata and data in the wheel begin."""
    return next(name for name in wheel if name.endswith("/METADATA")).partition(".dist-info")[0]


def sources(*patterns):
    """The files of the package in the checkout, as paths from its root."""
    files = (file for pattern in patterns for file in ROOT.glob(pattern))
    return {file.relative_to(ROOT).as_posix() for file in files if "__pycache__" not in file.parts}


PACKAGE = sources("segkit/**/*.py", "segkit/py.typed", "segkit/report/templates/*.j2")
CONFIGS = sources("configs/*.yaml") | sources("configs/*.json")


def test_wheel_holds_the_package_its_templates_and_configurations_and_nothing_else(wheel, stem):
    info = f"{stem}.dist-info"
    data = {f"{stem}.data/data/share/segkit/{name}" for name in CONFIGS}
    listed = ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE", "top_level.txt")
    assert set(wheel) == PACKAGE | data | {f"{info}/{name}" for name in listed}
    assert "segkit/losses/build.py" in PACKAGE
    assert "segkit/report/templates/comparison.html.j2" in PACKAGE
    assert len(CONFIGS) >= 5
    assert wheel[f"{info}/licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()
    assert wheel[f"{info}/top_level.txt"].split() == [b"segkit"]


def test_metadata_names_licence_extras_and_command(wheel, stem):
    metadata = email.message_from_bytes(wheel[f"{stem}.dist-info/METADATA"])
    assert metadata["Name"] == "segkit-trainer"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata.get_all("License-File") == ["LICENSE"]
    assert metadata["Requires-Python"] == ">=3.11"
    assert set(metadata.get_all("Provides-Extra")) == set(EXTRAS)
    assert {"medical", "tiff", "coco", "ray", "tensorboard", "mlflow", "all"} <= set(EXTRAS)
    assert b"segkit = segkit.cli:main" in wheel[f"{stem}.dist-info/entry_points.txt"]


def test_sdist_holds_what_the_wheel_is_built_from_and_nothing_else(dist):
    with tarfile.open(next(dist.glob("*.tar.gz"))) as archive:
        members = [member for member in archive if member.isfile()]
    files = {
        PurePosixPath(member.name).relative_to(PurePosixPath(member.name).parts[0]).as_posix() for member in members
    }
    made = {"PKG-INFO", "setup.cfg"} | {name for name in files if name.startswith("segkit_trainer.egg-info/")}
    assert files == PACKAGE | CONFIGS | set(ROOT_FILES) | made


def requirements(*groups):
    """Requirements by name, without those on segkit's own extras."""
    read = [Requirement(line) for group in groups for line in group]
    return {canonicalize_name(each.name): each for each in read if each.name != PROJECT["name"]}


USERS = {name: lines for name, lines in EXTRAS.items() if name not in ("test", "docs", "dev")}
RUNTIME = requirements(PROJECT["dependencies"], *USERS.values())
INSTALLED_BY_CI = requirements(PROJECT["dependencies"], *(EXTRAS[name] for name in EXTRAS if name != "mlflow"))


def test_extras_for_users_are_all_in_the_extra_all():
    assert set(re.findall(r"\w+", EXTRAS["all"][0].partition("[")[2])) == set(USERS) - {"all"}


def test_ci_installs_exact_versions_that_the_project_allows():
    lines = (ROOT / ".ci" / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    assert not [pin for pin in pins if pin.url or not re.fullmatch(r"==[^,*]+", str(pin.specifier))]
    versions = {canonicalize_name(pin.name): str(pin.specifier)[2:] for pin in pins}
    assert len(versions) == len(pins)
    missing = set(INSTALLED_BY_CI) - set(versions)
    assert not missing
    refused = [name for name, each in INSTALLED_BY_CI.items() if not each.specifier.contains(versions[name])]
    assert not refused


def table(heading):
    """The rows of the table under a heading of the page on dependencies, by the package in the first column."""
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line.startswith("|")
    ]
    return {canonicalize_name(row[0]): row for row in rows[2:]}


def test_page_on_dependencies_lists_every_licence():
    rows = table("Licences")
    missing = set(RUNTIME) - set(rows)
    assert not missing, "run python tools/check_dependencies.py licences"
    assert all(rows[name][1] not in ("", "not stated") for name in RUNTIME)


def test_page_on_dependencies_lists_the_lowest_versions_that_were_run():
    rows = table("Lowest versions")
    for name, requirement in RUNTIME.items():
        lowest = [bound.version for bound in requirement.specifier if bound.operator == ">="]
        if lowest and name != "torch":
            assert rows[name][1] == lowest[0], name
