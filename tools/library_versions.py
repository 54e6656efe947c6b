"""Measure for which versions of other libraries `like` gives their values and gradients.

    python tools/library_versions.py FOLDER --markdown docs/reference/library_versions.md

Installs each version without its dependencies into a subfolder of FOLDER (1 GB in all, kept for the next call) and runs
the cases of tests/losses/test_library_presets.py with it: random logits and masks, with absent classes, ignored pixels
and volumes. Of nnU-Net and mmsegmentation the loss functions themselves are run, where the tests of a checkout without
them run loops over their definitions. Prints a table for each library; ends with exit code 1 if it contradicts
segkit.losses.library_versions.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from packaging.version import Version

from segkit.losses.library_presets import EVERY_MODE, PRESETS
from segkit.losses.library_versions import IGNORED_PIXELS, SINCE, holds

ROOT = Path(__file__).parents[1]
BATTERY = "tests/losses/test_library_presets.py::test_value_and_gradient_equal_the_library"
DISTRIBUTIONS = {
    "monai": "monai",
    "smp": "segmentation-models-pytorch",
    "kornia": "kornia",
    "nnunet": "nnunetv2",
    "mmseg": "mmsegmentation",
}
VERSIONS = {  # oldest first
    "monai": ["1.0.1", "1.1.0", "1.2.0", "1.3.0", "1.3.2", "1.4.0", "1.5.2", "1.6.0", "1.6.1"],
    "smp": ["0.3.0", "0.3.4", "0.4.0", "0.5.0", "0.6.0"],
    "kornia": ["0.6.12", "0.7.4", "0.8.0", "0.8.3", "0.9.0"],
    "nnunet": ["2.0", "2.5.1", "2.6.2", "2.8.1"],
    "mmseg": ["1.0.0", "1.1.0", "1.1.1", "1.1.2", "1.2.0", "1.2.1", "1.2.2"],
}
# Files that are replaced so that the losses can be imported without the networks and what those need.
REGISTRY = """class Registry:
    def register_module(self):
        return lambda cls: cls


MODELS = Registry()
"""
IS_LIST_OF = """def is_list_of(items, kind):
    return isinstance(items, list) and all(isinstance(item, kind) for item in items)
"""
STAND_INS = {
    "smp": {"segmentation_models_pytorch/__init__.py": ""},
    "mmseg": {
        "mmseg/__init__.py": "",
        "mmseg/models/__init__.py": "",
        "mmseg/models/builder.py": "from mmseg.registry import MODELS\n\nLOSSES = MODELS\n",
        "mmseg/models/losses/__init__.py": "",
        "mmseg/registry/__init__.py": REGISTRY,
        "mmcv/__init__.py": "",
        "mmcv/ops.py": "sigmoid_focal_loss = None\n",
        "mmengine/__init__.py": "",
        "mmengine/fileio.py": "load = None\n",
        "mmengine/utils.py": IS_LIST_OF,
    },
}

# (loss, options) -> (mode, whether pixels are ignored) -> the results of its situations
Rows = dict[tuple[str, tuple[str, ...]], dict[tuple[str, bool], list[str]]]


def install(folder: Path, library: str, version: str) -> Path:
    """The folder of a version, which is installed there unless it already is."""
    target = folder / f"{library}-{version}"
    if not target.exists():
        part = folder / f"{target.name}.part"  # renamed when it is complete
        requirement = f"{DISTRIBUTIONS[library]}=={version}"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target", str(part)]
        subprocess.run([*command, requirement], check=True)
        for name, text in STAND_INS.get(library, {}).items():
            (part / name).parent.mkdir(parents=True, exist_ok=True)
            (part / name).write_text(text, encoding="utf-8")
        part.rename(target)
    return target


def measured(target: Path, library: str) -> Rows:
    """The result of every case of a library: `equal`, `differs`, `fails` if its loss raises an error, or `as noted` if
    it is equal to the options that the note has for this version."""
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.xml"
        environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(target), str(ROOT)]))
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", BATTERY]
        process = subprocess.run([*command, "-k", f"{library}-"], cwd=ROOT, env=environment, capture_output=True)
        if process.returncode not in (0, 1):  # 1: some cases differ
            raise RuntimeError(f"pytest ended with {process.returncode}:\n{process.stdout.decode()[-2000:]}")
        cases = list(ElementTree.parse(report).iter("testcase"))
    rows: Rows = defaultdict(lambda: defaultdict(list))
    for case in cases:
        _library, loss, mode, *options, situation = case.attrib["name"].split("[")[1].rstrip("]").split("-")
        if "loop" not in options:
            names = tuple(name for name in options if name != "as noted")
            word = "as noted" if "as noted" in options and _result(case) == "equal" else _result(case)
            rows[loss, names][mode, "ignored" in situation].append(word)
    return rows


def _result(case: ElementTree.Element) -> str:
    failure = case.find("failure")
    if case.find("skipped") is not None or case.find("error") is not None:
        raise RuntimeError(f"{case.attrib['name']} was not run: the library cannot be imported")
    if failure is None:
        return "equal"
    return "differs" if "are not close" in failure.attrib["message"] else "fails"


def cell(results: dict[tuple[str, bool], list[str]]) -> str:
    """The results of a row of the table in words."""
    modes: dict[str, list[str]] = defaultdict(list)
    for mode in EVERY_MODE:
        if (mode, False) in results:
            modes[_of_mode(results, mode)].append(mode)
    if set(modes) == {"equal", "equal without ignored pixels"} and not any(
        (mode, True) in results for mode in modes["equal"]
    ):
        return "equal without ignored pixels"
    if len(modes) == 1:
        return next(iter(modes))
    return "; ".join(f"{', '.join(names)}: {word}" for word, names in modes.items())


def _of_mode(results: dict[tuple[str, bool], list[str]], mode: str) -> str:
    plain, ignored = set(results[mode, False]), set(results.get((mode, True), []))
    if len(plain) > 1:
        return "differs"
    (word,) = plain
    return word if ignored <= plain or word in ("differs", "fails") else f"{word} without ignored pixels"


def table(library: str, results: dict[str, Rows]) -> Iterator[str]:
    """The Markdown table of a library: a row for each loss with certain options, a column for each version."""
    yield f"| loss | options | {' | '.join(results)} |"
    yield "|---|---|" + "---|" * len(results)
    order = list(PRESETS[library])
    rows = sorted(next(iter(results.values())), key=lambda row: (order.index(row[0]), len(row[1]), row[1]))
    for name, options in rows:
        cells = [cell(of_version[name, options]) for of_version in results.values()]
        yield f"| `{name}` | {', '.join(options) or 'those of `like`'} | {' | '.join(cells)} |"


def contradictions(library: str, results: dict[str, Rows]) -> Iterator[str]:
    """Where the measured results differ from the versions in `SINCE`, or those begin later than they need to."""
    too_late = {(name, key) for name, since in SINCE[library].items() for key in since}
    for version, rows in results.items():
        for (name, options), outcomes in rows.items():
            since = SINCE[library][name]
            for (mode, ignored), words in outcomes.items():
                expected, equal = holds(since, version, mode, options, ignored), set(words) == {"equal"}
                if expected and not equal:
                    yield f"{library} {version} {name} {mode} {options}, ignored pixels {ignored}: {words}"
                if not equal:  # the versions that exclude this case are needed
                    keys = {"", mode, *options, *([IGNORED_PIXELS] if ignored else [])} & since.keys()
                    too_late -= {(name, key) for key in keys if Version(version) < Version(since[key])}
    oldest = Version(next(iter(results)))
    for name, key in sorted(too_late):
        if Version(SINCE[library][name][key]) > oldest:
            yield f"{library} {name} {key}: no older version differs from {SINCE[library][name][key]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--markdown", type=Path, help="write the tables into this file")
    parser.add_argument("--library", choices=VERSIONS, action="append", help="only this library; may be repeated")
    arguments = parser.parse_args()
    parts, wrong = [HEADER], []
    for library in arguments.library or VERSIONS:
        results = {}
        for version in VERSIONS[library]:
            results[version] = measured(install(arguments.folder.absolute(), library, version), library)
        wrong += contradictions(library, results)
        parts += [f"## {library}\n", *table(library, results), ""]
        print("\n".join(parts[-len(list(table(library, results))) - 2 :]), flush=True)
    if arguments.markdown:
        arguments.markdown.write_text("\n".join(parts), encoding="utf-8")
    print(*wrong, sep="\n", file=sys.stderr)
    return 1 if wrong else 0


HEADER = """# Versions of other libraries

*Written by `python tools/library_versions.py FOLDER --markdown docs/reference/library_versions.md`.*

For which versions of a library [`like`](losses.md#coming-from-another-library) gives its value and gradient. Each
version was installed and run beside segkit on random logits and masks, with and without absent classes and ignored
pixels; of nnU-Net and mmsegmentation, the loss functions alone. *Options* are those set beside `like`.

- `equal`: in every mode that the row supports.
- `as noted`: equal to the options that the [note](losses.md#coming-from-another-library) gives for this version.
- `fails`: the library's loss raises an error, mostly since it has no such option yet.
"""

if __name__ == "__main__":
    sys.exit(main())
