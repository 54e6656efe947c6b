"""Which layout a folder has, told from what lies in it, and which classes its masks hold."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from segkit.data.cases import Case, DataError, spread
from segkit.data.formats import case_name, extension, is_image
from segkit.data.mask_code import packed_colours
from segkit.data.readers import stored_mask
from segkit.data.sources.manifest import read_rows
from segkit.data.sources.public import CITYSCAPES_CLASSES

DEPTH, MOST_FOLDERS = 4, 5000  # of folders that are looked into
SAMPLED = 3  # masks read to see whether they are any
SURVEYED = 2000  # masks read for their values
SMOOTHED = 16  # values between 0 and 255 from which on they are edges and no classes
MOST_VALUES, MOST_COLOURS = 64, 64  # of a mask
PAIRED = 0.8  # of the images have to have a mask
MASK_WORDS = ("mask", "label", "annot", "seg", "gt", "manual", "truth", "target", "lesion")
PARTS = {
    "train": ("training", "train"),
    "validation": ("validation", "valid", "val"),
    "test": ("testing", "test"),
}
CITYSCAPES_NAMES = (
    *("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation"),
    *("terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"),
)
VOC_NAMES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


@dataclass(frozen=True)
class Layout:
    """A source with its options; why it is thought to be there; whether its cases come split.

    labels: the section, where the layout says what it is. masks: files whose values tell it otherwise.
    """

    source: str
    options: dict[str, Any]
    why: list[str]
    split: bool = False
    labels: dict[str, Any] | None = None
    masks: list[Path] = field(default_factory=list)


def find_layout(root: Path) -> Layout:
    """The layout of a folder. Raises DataError, with what was found instead, if it is none that is known."""
    if not root.is_dir():
        raise DataError(f"expected a folder of data at {root}, found none")
    for detect in DETECTORS:
        layout = detect(root)
        if layout is not None:
            return layout
    found = Counter(extension(path) for folder in _folders(root) for path in _images(folder))
    shown = ", ".join(f"{number} {ending or 'DICOM series'}" for ending, number in found.most_common())
    raise DataError(
        f"{root} has none of the known layouts; it holds {shown or 'no image of a known format'}, but no masks that "
        "pair with images by name. List the files of each case in a table with the columns image and mask, and write "
        "`data: {name: manifest, file: cases.csv}`"
    )


# --- layouts with names of their own ----------------------------------------------------------------------------------


def _dataset_json(root: Path) -> Layout | None:
    content = _json(root / "dataset.json")
    if not isinstance(content, dict):
        return None
    name = "nnunet" if "file_ending" in content else "msd" if isinstance(content.get("training"), list) else None
    if name is None:
        return None
    why = [f"dataset.json is that of {'nnU-Net' if name == 'nnunet' else 'the Medical Segmentation Decathlon'}"]
    return Layout(name, {"root": root}, why, labels=_labels_of_listing(content.get("labels")))


def _labels_of_listing(named: Any) -> dict[str, Any] | None:
    if not isinstance(named, dict) or not named:
        return None
    digits = all(str(key).isdigit() for key in named)
    numbers = {str(value): int(key) for key, value in named.items()} if digits else dict(named)
    labels: dict[str, Any] = {}
    if "ignore" in numbers:
        labels["ignore_index"] = int(numbers.pop("ignore"))
    if any(isinstance(value, list) for value in numbers.values()):
        regions = {
            name: list(value) if isinstance(value, list) else [int(value)]
            for name, value in numbers.items()
            if value not in (0, [0])
        }
        return {"names": list(regions), "mode": "multilabel", "regions": regions, **labels}
    return {"names": sorted(numbers, key=lambda name: numbers[name]), **labels}


def _coco(root: Path) -> Layout | None:
    for file in sorted([*root.glob("*.json"), *root.glob("annotations/*.json")]):
        content = _json(file)
        if isinstance(content, dict) and all(
            isinstance(content.get(key), list) for key in ("images", "annotations", "categories")
        ):
            images = _folder_of(root, [str(one.get("file_name")) for one in content["images"][:SAMPLED]])
            if images is None:
                continue
            used = {one.get("category_id") for one in content["annotations"]}
            names = [str(one["name"]) for one in content["categories"] if one["id"] in used]
            labels = {"names": ["background", *(name for name in names if name != "background")], "ignore_index": 255}
            why = [f"{file.relative_to(root)} lists images, annotations and categories, as COCO does"]
            return Layout("coco", {"images": images, "annotations": file}, why, labels=labels)
    return None


def _folder_of(root: Path, names: Sequence[str]) -> Path | None:
    """The folder that holds files of these names."""
    return next(
        (folder for folder in _folders(root) if names and all((folder / name).is_file() for name in names)), None
    )


def _voc(root: Path) -> Layout | None:
    if not (root / "JPEGImages").is_dir() or not (root / "SegmentationClass").is_dir():
        return None
    lists = root / "ImageSets" / "Segmentation"
    sets = {
        part: name for part, name in (("train", "train"), ("validation", "val")) if (lists / f"{name}.txt").is_file()
    }
    options: dict[str, Any] = {"root": root, **({"sets": sets} if sets else {})}
    why = ["JPEGImages and SegmentationClass are those of PASCAL VOC"]
    labels = {"names": list(VOC_NAMES), "ignore_index": 255}
    return Layout("voc", options, why, bool(sets), labels)


def _cityscapes(root: Path) -> Layout | None:
    if not (root / "leftImg8bit").is_dir() or not (root / "gtFine").is_dir():
        return None
    sets = {
        part: name for part, name in (("train", "train"), ("validation", "val")) if (root / "gtFine" / name).is_dir()
    }
    assert len(CITYSCAPES_NAMES) == len(CITYSCAPES_CLASSES)
    labels = {"names": list(CITYSCAPES_NAMES), "ignore_index": 255}
    why = ["leftImg8bit and gtFine are those of Cityscapes"]
    return Layout("cityscapes", {"root": root, "sets": sets}, why, True, labels=labels)


def _ade(root: Path) -> Layout | None:
    images, masks = root / "images", root / "annotations"
    if not images.is_dir() or not masks.is_dir():
        return None
    sets = {
        part: name
        for part, name in (("train", "training"), ("validation", "validation"))
        if (images / name).is_dir() and (masks / name).is_dir()
    }
    files = [path for name in (sets.values() or ("",)) for path in _images(masks / name)]
    if not files or not all(path.name.startswith("ADE_") for path in files[:SAMPLED]):
        return None
    # which numbers a few masks hold says little of 150 classes
    highest = max(150, *(int(stored_mask(path)[0].max()) for path in files[:SURVEYED]))
    labels = {"names": [f"class_{number}" for number in range(1, highest + 1)], "ignore_index": 255}
    why = ["images and annotations whose files begin with ADE_ are those of ADE20K, where 0 is to be ignored"]
    return Layout("ade", {"root": root, **({"sets": sets} if sets else {})}, why, bool(sets), labels=labels)


def _manifest(root: Path) -> Layout | None:
    for file in sorted([*root.glob("*.csv"), *root.glob("*.json")]):
        try:
            rows = read_rows(file)
        except DataError:
            continue
        keys = {key for row in rows for key in row}
        classes = {key.removeprefix("mask:") for key in keys if key.startswith("mask:")}
        classes |= {str(name) for row in rows if isinstance(row.get("mask"), dict) for name in row["mask"]}
        if "image" in keys and ("mask" in keys or classes):
            files = [] if classes else [root / str(row["mask"]) for row in rows if isinstance(row.get("mask"), str)]
            return Layout(
                "manifest",
                {"file": file},
                [f"{file.name} is a table with the columns {', '.join(sorted(keys))}"],
                all(row.get("split") for row in rows),
                {"names": ["background", *sorted(classes - {"background"})]} if classes else None,
                [path for path in files if path.is_file()],
            )
    return None


def _instances(root: Path) -> Layout | None:
    """Folders that each have a folder with one image and one with several masks."""
    cases = [folder for folder in _subfolders(root) if (folder / "images").is_dir() and (folder / "masks").is_dir()]
    if {folder.name.lower() for folder in cases} <= {word for words in PARTS.values() for word in words}:
        return None  # parts of a split, and no cases
    if len(cases) < 2 or not any(len(_images(folder / "masks")) > 1 for folder in cases[:SURVEYED]):
        return None
    why = [f"{len(cases)} folders have an image in images and a file an object in masks"]
    labels = {"names": ["background", "object"]}
    return Layout("instances", {"root": root, "masks": {"object": "masks/*"}}, why, labels=labels)


# --- pairs by name ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Pairing:
    images: str  # folders below the root, with {split} where there is one for each part
    masks: str
    splits: dict[str, str]
    patterns: dict[str, str]
    files: list[tuple[Path, Path]]
    share: float


def _pairs(root: Path) -> Layout | None:
    templates = _templates(root)
    found = [
        pairing
        for first, second in itertools.product(templates, repeat=2)
        for pairing in _paired(root, first, templates[first], second, templates[second])
    ]
    found.sort(key=lambda one: (-_likeness(one), -len(one.files), one.masks))
    best = next(
        (one for one in found if all(map(_looks_like_mask, spread([mask for _image, mask in one.files], SAMPLED)))),
        None,
    )
    if best is None:
        return None
    options: dict[str, Any] = {"images": root / best.images, "masks": root / best.masks, **best.patterns}
    if best.splits:
        options["splits"] = best.splits
    why = [f"{len(best.files)} images in {best.images or '.'} have a mask of their name in {best.masks or '.'}"]
    if best.patterns:
        why.append(f"by the patterns {', '.join(best.patterns.values())}")
    if best.share < 1:
        options["unpaired"] = "skip"
        why.append(f"{100 * (1 - best.share):.0f} % of the images have no mask and are left out")
    chosen = {mask for _image, mask in best.files}
    alike = [
        one
        for one in found
        if (one.images, one.masks) == (best.images, best.masks) and {mask for _image, mask in one.files} != chosen
    ]
    others = sorted({one.patterns.get("mask_pattern", "") for one in alike if len(one.files) == len(best.files)} - {""})
    if others:
        why.append(f"there are other masks of the same images, of another annotator perhaps: {', '.join(others)}")
    return Layout("pairs", options, why, "train" in best.splits, masks=[mask for _image, mask in best.files])


def _likeness(pairing: _Pairing) -> int:
    """How much the names say that these are masks, and those are not."""
    words = (pairing.masks + pairing.patterns.get("mask_pattern", "")).lower()
    others = (pairing.images + pairing.patterns.get("image_pattern", "")).lower()
    return any(word in words for word in MASK_WORDS) - any(word in others for word in MASK_WORDS)


def _templates(root: Path) -> dict[str, dict[str, Path]]:
    """The folders of images, those that differ by the name of a part of the split alone under one template with
    {split}: part, or an empty name, and the folder."""
    found: dict[str, dict[str, Path]] = defaultdict(dict)
    for folder in _folders(root):
        if not _images(folder):
            continue
        text = folder.relative_to(root).as_posix()
        text = "" if text == "." else text
        found[text][""] = folder
        for part, names in PARTS.items():
            for name in names:
                where = re.search(rf"(?:^|(?<=/)){name}(?![a-z]*ing\b)", text)
                if where:
                    found[text[: where.start()] + "{split}" + text[where.end() :]].setdefault(part, folder)
                    break
    return {key: folders for key, folders in found.items() if "{split}" not in key or len(folders) > 1}


def _paired(
    root: Path, first: str, images: Mapping[str, Path], second: str, masks: Mapping[str, Path]
) -> Iterator[_Pairing]:
    if ("{split}" in first) != ("{split}" in second):
        return
    parts = [part for part in images if part in masks]
    if not parts:
        return
    of_images = {part: {case_name(path): path for path in _images(images[part])} for part in parts}
    of_masks = {part: {case_name(path): path for path in _images(masks[part])} for part in parts}
    everything = (
        [name for part in parts for name in of_images[part]],
        [name for part in parts for name in of_masks[part]],
    )
    for image_form, mask_form in _forms(*everything, same=first == second):
        files, total = [], 0
        for part in parts:
            by_case = {
                _stripped(name, mask_form): path for name, path in of_masks[part].items() if _fits(name, mask_form)
            }
            chosen = {
                _stripped(name, image_form): path
                for name, path in of_images[part].items()
                if _fits(name, image_form) and path not in by_case.values()
            }
            files += [(path, by_case[case]) for case, path in chosen.items() if case in by_case]
            total += len(chosen)
        if files and len(files) >= PAIRED * total:
            given = {"image_pattern": image_form, "mask_pattern": mask_form}
            patterns = {key: "{case}".join(form) + ".*" for key, form in given.items() if form != ("", "")}
            splits = {part: _part_name(first, root, images[part]) for part in parts if part}
            yield _Pairing(first, second, splits, patterns, files, len(files) / total)


Form = tuple[str, str]  # what stands before and after the name of the case


def _forms(images: Sequence[str], masks: Sequence[str], *, same: bool) -> Iterator[tuple[Form, Form]]:
    """How names of images and of masks may be made of that of the case: the same, by a prefix or suffix of the masks,
    or by what all of each have in common at their ends."""
    if not same:
        yield ("", ""), ("", "")
        yield _ends(images), _ends(masks)
    known = set(images)
    affixes: Counter[Form] = Counter()
    for name in masks:
        for cut in range(1, len(name)):
            if name[:cut] in known:
                affixes["", name[cut:]] += 1
            if name[cut:] in known:
                affixes[name[:cut], ""] += 1
    for form, _number in affixes.most_common(4):
        yield ("", ""), form
    if same:
        words = Counter(
            word
            for name in masks
            for word in re.findall(r"[_\-. ]?[a-zA-Z]+$", name)
            if word.lower().strip("_-. ") != ""
        )
        for mask_word, image_word in itertools.permutations([word for word, _number in words.most_common(4)], 2):
            yield ("", image_word), ("", mask_word)


def _ends(names: Sequence[str]) -> Form:
    """What all names begin and end with, without cutting numbers apart."""
    first = _common(names).rstrip("0123456789")
    last = _common([name[len(first) :][::-1] for name in names])[::-1].lstrip("0123456789")
    return first, last


def _common(names: Sequence[str]) -> str:
    """The letters with which all begin."""
    alike = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    return "".join(letters[0] for letters in alike)


def _fits(name: str, form: Form) -> bool:
    return name.startswith(form[0]) and name.endswith(form[1]) and len(name) > len(form[0]) + len(form[1])


def _stripped(name: str, form: Form) -> str:
    return name[len(form[0]) : len(name) - len(form[1])]


def _part_name(template: str, root: Path, folder: Path) -> str:
    """What stands in a folder's name for the part."""
    before, _split, after = template.partition("{split}")
    text = folder.relative_to(root).as_posix()
    return text[len(before) : len(text) - len(after)]


def _looks_like_mask(path: Path) -> bool:
    try:
        stored, colours = stored_mask(path)
    except DataError:
        return True  # the check says what is wrong with it
    if extension(path) in (".jpg", ".jpeg"):
        grey = stored.max(0) if colours else stored
        return bool(np.mean((grey < 32) | (grey > 223)) > 0.95 and grey.std() > 0)
    if colours:
        return len(np.unique(packed_colours(stored))) <= MOST_COLOURS
    return len(np.unique(stored)) <= MOST_VALUES


# --- classes ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Classes:
    """The section `labels`, options of the source that turn what is stored into class numbers, and why."""

    labels: dict[str, Any]
    options: dict[str, Any]
    why: list[str]


def unused(root: Path, cases: Sequence[Case]) -> list[Path]:
    """Images and masks below a folder that no case has."""
    used = {file.resolve() for case in cases for file in case.files}
    inside = {file for file in used if file.is_dir()}
    return [
        path
        for folder in _folders(root)
        if folder.resolve() not in inside
        for path in _images(folder)
        if path.is_file() and path.resolve() not in used
    ]


def survey(masks: Sequence[Path]) -> Classes:
    """The classes of masks, by the values of some of them. Raises DataError if none can be read."""
    values: Counter[int] = Counter()
    colours: Counter[int] = Counter()
    read = 0
    jpeg = bool(masks) and extension(masks[0]) in (".jpg", ".jpeg")
    for path in spread(masks, SURVEYED):
        try:
            stored, coloured = stored_mask(path)
        except DataError:
            continue
        read += 1
        if coloured and not (stored == stored[:1]).all():
            colours.update(np.unique(packed_colours(stored)).tolist())
        else:
            plane = stored[0] if coloured else stored
            values.update(np.unique(np.rint(plane)).astype(np.int64).tolist())
    if not read:
        raise DataError(f"none of the masks can be read, such as {masks[0] if masks else 'of none'}")
    why = [f"{read} of {len(masks)} masks were looked at"]
    if jpeg:
        return Classes(
            {"names": ["background", "foreground"]},
            {"threshold": 128},
            [*why, "JPEG does not keep values: a pixel is foreground from 128 on"],
        )
    return _of_colours(colours, why) if colours else _of_values(sorted(values), why)


def _of_colours(colours: Counter[int], why: list[str]) -> Classes:
    triples = [[value >> 16, value >> 8 & 255, value & 255] for value in sorted(colours)]
    names = ["background" if triple == [0, 0, 0] else f"class_{number}" for number, triple in enumerate(triples)]
    shown = dict(zip(names, triples, strict=True))
    return Classes({"names": names}, {"colors": shown}, [*why, f"classes are told by {len(names)} colours"])


def _of_values(values: Sequence[int], why: list[str]) -> Classes:
    labels: dict[str, Any] = {}
    kept = list(values)
    why = [*why, f"they hold the values {', '.join(map(str, values[:12]))}{' ...' if len(values) > 12 else ''}"]
    if kept[0] == 0 and kept[-1] == 255 and len(kept) > SMOOTHED:
        why.append("so many between 0 and 255 are smoothed edges: a pixel is foreground from 128 on")
        return Classes({"names": ["background", "foreground"]}, {"threshold": 128}, why)
    few = kept[:-1]
    if len(few) > 1 and kept[-1] == 255 and few == list(range(few[0], few[0] + len(few))) and few[0] < 2:
        labels["ignore_index"] = 255
        kept = kept[:-1]
        why.append("255 usually marks pixels without a label")
    if kept == [255] or kept == [0]:
        kept = [0, 255] if kept == [255] else [0, 1]
    numbers = kept if kept[0] == 0 else [0, *kept]
    straight = numbers == list(range(len(numbers)))
    options = {} if straight else {"value_map": {value: place for place, value in enumerate(numbers) if value != place}}
    if options:
        why.append("which are counted from 0 here")
    names = ["background", *(["foreground"] if len(numbers) == 2 else [f"class_{value}" for value in numbers[1:]])]
    return Classes({"names": names, **labels}, options, why)


# --- files ------------------------------------------------------------------------------------------------------------


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _folders(root: Path) -> list[Path]:
    """The root and the folders below it that are no image themselves."""
    found, level = [root], [root]
    for _depth in range(DEPTH):
        level = [path for folder in level for path in _subfolders(folder) if not is_image(path)]
        found += level
        if len(found) > MOST_FOLDERS:
            raise DataError(f"{root} has more than {MOST_FOLDERS} folders; inspect one of them, or use a manifest")
    return found


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if is_image(path)) if folder.is_dir() else []


DETECTORS: tuple[Callable[[Path], Layout | None], ...] = (
    _dataset_json, _coco, _voc, _cityscapes, _ade, _manifest, _instances, _pairs,
)  # fmt: skip
