"""Folders that no source takes as they are, but whose names tell which files belong together: for a table of cases."""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segkit.data.cases import spread
from segkit.data.formats import case_name, extension
from segkit.data.inspection.base import (
    SAMPLED,
    Layout,
    affixes,
    folders,
    has_mask_word,
    images_in,
    is_derived,
    is_drawn,
    looks_like_mask,
    part_in,
)
from segkit.data.readers import read_image, stored_mask
from segkit.data.sources.manifest import SEPARATOR
from segkit.utils.errors import DataError

COMMON = 0.8  # of the folders of cases have to hold a kind of file
PATIENTS = 10  # folders from which on they are taken for patients or places, whose cases stay together
IMAGE_WORDS = ("image", "img", "scan", "volume")
FEW_NAMES = 4  # folders beside each other, up to which each is held against each
CHANNEL = re.compile(r"(.+)_(\d{4})")

Files = Mapping[Path, Sequence[Path]]  # the images of each folder that has some


@dataclass(frozen=True)
class Found:
    """A case, with one mask of all classes, named by an empty text, or one for each class."""

    name: str
    images: tuple[Path, ...]
    masks: Mapping[str, Path]


def table(root: Path) -> Layout | None:
    """The arrangement that makes the most cases, as rows of a table; None without any."""
    files = {folder: found for folder in folders(root) if (found := images_in(folder))}
    best: list[Found] = []
    reason = ""
    for arrange, why in ARRANGEMENTS.items():
        found = arrange(root, files)
        masks = [mask for case in spread(found, SAMPLED) for mask in case.masks.values()]
        if len(found) > max(1, len(best)) and all(map(looks_like_mask, masks)):
            best, reason = found, why
    if not best:
        return None
    rows, why = _rows(root, best)
    reasons = [f"{len(best)} cases: {reason}, such as {_shown(root, best[0])}", *why]
    classes = list(best[0].masks)
    if len(classes) > 1:
        reasons.append(
            f"the {len(classes)} masks of a case are taken for classes that may overlap; if they are versions of one, "
            "keep one of them, in a column `mask` of the table"
        )
    return Layout(
        "manifest",
        {"root": root},
        reasons,
        "split" in rows[0],
        labels={"names": classes, "mode": "multilabel"} if len(classes) > 1 else None,
        masks=[mask for case in best for mask in case.masks.values()],
        files=sum(len(case.images) + len(case.masks) for case in best),
        rows=rows,
    )


def _shown(root: Path, case: Found) -> str:
    return " and ".join(path.relative_to(root).as_posix() for path in (*case.images, *case.masks.values()))


def _rows(root: Path, cases: Sequence[Found]) -> tuple[list[dict[str, str]], list[str]]:
    """The table, and what is to be said of its columns."""
    short = len({case.name for case in cases}) == len(cases)
    places = [case.images[0].parent.relative_to(root).as_posix() for case in cases]
    parts = [named[0] if (named := part_in(place)) else None for place in places]
    divided = None not in parts and "train" in parts and len(set(parts)) > 1
    groups = _first_folders(places)
    together = PATIENTS <= len(set(groups)) < len(cases)
    rows = []
    for case, place, group, part in zip(cases, places, groups, parts, strict=True):
        row = {"case": case.name if short else f"{place}/{case.name}"}
        row["image"] = SEPARATOR.join(path.relative_to(root).as_posix() for path in case.images)
        for name, mask in case.masks.items():
            row[f"mask:{name}" if name else "mask"] = mask.relative_to(root).as_posix()
        rows.append(row | ({"group": group} if together else {}) | ({"split": str(part)} if divided else {}))
    why = []
    if together:
        why.append(f"cases of one of the {len(set(groups))} folders, such as {groups[0]}, stay together, as a group")
    elif 1 < len({_without_parts(group) for group in groups}) < len(cases):
        why.append(
            f"the files lie in {len(set(groups))} folders: if these are patients, say so in a column `group` of the "
            "table"
        )
    return rows, why + (["the parts of the split are those that the folders name"] if divided else [])


def _without_parts(place: str) -> tuple[str, ...]:
    return tuple(name for name in place.split("/") if not part_in(name))


def _first_folders(places: Sequence[str]) -> list[str]:
    """Of the folders of cases the part up to the first that is not the same for all, nor a part of the split."""
    split = [place.split("/") for place in places]
    shared = 0
    while all(len(parts) > shared + 1 for parts in split) and (
        len({parts[shared] for parts in split}) == 1 or all(part_in(parts[shared]) for parts in split)
    ):
        shared += 1
    return ["/".join(parts[: shared + 1]) for parts in split]


# --- arrangements: the cases of a folder, none where it is another one ------------------------------------------------


def _word_beside(_root: Path, files: Files) -> list[Found]:
    """`a.png` and `a_mask.png` in one folder, in each of several; by another ending than a word of masks only where the
    files look like it."""
    by_name = {folder: {case_name(path): path for path in images} for folder, images in files.items()}
    number = Counter(affix for names in by_name.values() for name in names for affix in affixes(name, names))
    named = [affix for affix, _times in number.most_common() if has_mask_word("".join(affix))]
    for before, after in named[:1] or [affix for affix, _times in number.most_common(FEW_NAMES)]:
        found = []
        for names in by_name.values():
            pairs = [(name, f"{before}{name}{after}") for name in names]
            found += [Found(name, (names[name],), {"": names[mask]}) for name, mask in pairs if mask in names]
        if named or all(_image_with_mask((case.images[0], case.masks[""])) for case in spread(found, SAMPLED)):
            return found
    return []


def _other_word(_root: Path, files: Files) -> list[Found]:
    """`a_image.nii` and `a_label.nii`, or `volume-1.nii` and `segmentation-1.nii` in one folder, in each of several."""
    found = []
    for images in files.values():
        by_case: dict[str, list[Path]] = defaultdict(list)
        for path in images:
            by_case[_bare(case_name(path))].append(path)
        for name, one in by_case.items():
            masks = [path for path in one if has_mask_word(case_name(path))]
            if len(one) == 2 and len(masks) == 1:
                image = next(path for path in one if path not in masks)
                found.append(Found(name, (image,), {"": masks[0]}))
    return found


def _two_endings(_root: Path, files: Files) -> list[Found]:
    """`a.jpg` and `a.png` in one folder, the second of them the mask."""
    pairs: dict[tuple[str, str], list[tuple[Path, Path]]] = defaultdict(list)
    for images in files.values():
        by_case: dict[str, list[Path]] = defaultdict(list)
        for path in images:
            by_case[case_name(path)].append(path)
        for one in by_case.values():
            if len(one) == 2:
                pairs[extension(one[0]), extension(one[1])].append((one[0], one[1]))
                pairs[extension(one[1]), extension(one[0])].append((one[1], one[0]))
    ordered = sorted(pairs.values(), key=len, reverse=True)
    best = next((found for found in ordered if all(map(_image_with_mask, spread(found, SAMPLED)))), [])
    return [Found(case_name(image), (image,), {"": mask}) for image, mask in best]


def _with_mask(pair: tuple[Path, Path]) -> bool:
    return looks_like_mask(pair[1])


def _image_with_mask(pair: tuple[Path, Path]) -> bool:
    return looks_like_mask(pair[1]) and not looks_like_mask(pair[0])


def _beside_folders(root: Path, files: Files) -> list[Found]:
    """`images/p0/a.png` and `masks/p0/a.png`, or `p0/images/a.png` and `p0/masks/a.png`: paths that differ by one
    folder, and perhaps by a word in the name."""
    # by the path with one folder left open: its part of a split, the rest of its name, and itself
    alike: dict[tuple[str, ...], list[tuple[str | None, str, Path]]] = defaultdict(list)
    for folder in files:
        parts = folder.relative_to(root).parts
        for place, word in enumerate(parts):
            alike[(*parts[:place], "*", *parts[place + 1 :])].append((*_without_part(word), folder))
    named: dict[tuple[str, str], list[tuple[Path, Path]]] = defaultdict(list)
    # where no name says which are the masks
    nameless: dict[tuple[str, str], list[tuple[Path, Path]]] = defaultdict(list)
    for those in alike.values():
        masks = [one for one in those if has_mask_word(one[1])]
        images = [one for one in those if not has_mask_word(one[1])]
        couples = itertools.product(images, masks) if masks else itertools.permutations(images[:FEW_NAMES], 2)
        for (part, word, folder), (other_part, other, mask_folder) in couples:
            if part == other_part:
                (named if masks else nameless)[word, other].append((folder, mask_folder))
    for pairs, fits in ((named, _image_with_mask), (named, _with_mask), (nameless, _image_with_mask)):
        found = [
            (_paired_by_name(both, files), is_drawn(masks) - is_derived(masks))
            for (_images, masks), both in pairs.items()
        ]
        for cases, _drawn in sorted(found, key=lambda one: (len(one[0]), one[1]), reverse=True):
            if cases and all(fits((case.images[0], case.masks[""])) for case in spread(cases, SAMPLED)):
                return cases
    return []


def _without_part(word: str) -> tuple[str | None, str]:
    """The part of a split that a folder's name tells of, and the rest of the name: `masks_` of `masks_train`."""
    named = part_in(word)
    return (None, word) if named is None else (named[0], word[: named[1]] + word[named[2] :])


def _paired_by_name(pairs: Sequence[tuple[Path, Path]], files: Files) -> list[Found]:
    found = []
    for image_folder, mask_folder in pairs:
        cases = _by_case(files[image_folder])
        for plain in (_bare, str):  # names as they are where bare ones are those of several files
            masks = {plain(case_name(path)): path for path in files[mask_folder]}
            if len(masks) == len(files[mask_folder]) and len({plain(name) for name in cases}) == len(cases):
                break
        found += [Found(name, cases[name], {"": masks[plain(name)]}) for name in cases if plain(name) in masks]
    return found


def _by_case(images: Sequence[Path]) -> dict[str, tuple[Path, ...]]:
    """The files of each case: several where all names end in a channel's number, `a_0000`, `a_0001`. Cases with another
    number of channels than most are left out."""
    names = [case_name(path) for path in images]
    matches = [CHANNEL.fullmatch(name) for name in names]
    channels: dict[str, list[Path]] = defaultdict(list)
    for match, path in zip(matches, images, strict=True):
        if match is None:
            return {name: (path,) for name, path in zip(names, images, strict=True)}
        channels[match[1]].append(path)
    usual = Counter(len(one) for one in channels.values()).most_common(1)[0][0] if channels else 0
    return {name: tuple(sorted(one)) for name, one in channels.items() if len(one) == usual}


def _bare(name: str) -> str:
    """A name without the words that say that it is a mask or an image, or of which part, as in `a_mask` or `img-a`."""
    words = [word for word in re.split(r"[_\-. ]", name) if word]
    told = [word for word in words if has_mask_word(word) or word.lower() in IMAGE_WORDS or part_in(word)]
    left = [word for word in words if word not in told]
    return "_".join(left or words)


def _folder_each(root: Path, files: Files) -> list[Found]:
    """A folder for each case, with a file for each channel and one for the mask: `b1/b1_t1.nii.gz`, `b1/b1_seg.nii.gz`,
    or `case_1/imaging.nii.gz`, `case_1/segmentation.nii.gz`."""
    below: dict[Path, list[Path]] = defaultdict(list)  # in folders of masks, as `segmentations` of TotalSegmentator
    for folder, images in files.items():
        if has_mask_word(folder.name):
            below[folder.parent] += images
    by_depth: dict[int, dict[Path, dict[str, Path]]] = defaultdict(dict)
    for folder, images in files.items():
        own = [*images, *below[folder]]
        if folder != root and len(own) > 1 and not has_mask_word(folder.name):
            by_depth[len(folder.parts)][folder] = _kinds(folder, own)
    return max(map(_of_kinds, by_depth.values()), key=len, default=[])


def _of_kinds(kinds: Mapping[Path, Mapping[str, Path]]) -> list[Found]:
    """The cases of folders, by the kinds of file that most of them hold."""
    number = Counter(kind for found in kinds.values() for kind in found)
    common = [kind for kind, times in number.items() if times >= max(2, COMMON * len(kinds))]
    masks = [kind for kind in common if has_mask_word(kind)]
    whole = {folder: found for folder, found in kinds.items() if set(common) <= found.keys()}
    if not masks or len(masks) == len(common) or not whole:
        return []
    first = next(iter(whole.values()))
    channels = _on_one_grid(first, masks[0], sorted(set(common) - set(masks)))
    classes = {_bare(kind.rpartition("/")[2]): kind for kind in masks}
    if len(masks) == 1 or not all(_is_of_one_class(first[kind]) for kind in masks):
        classes, masks = {"": min(masks, key=lambda kind: (is_derived(kind), kind))}, masks[:1]
    numbers = any(name.isdigit() for name in classes)  # of patients or slices, and no classes
    if not channels or len(classes) < len(masks) or numbers:
        return []
    return [
        Found(
            folder.name,
            tuple(found[kind] for kind in channels),
            {name: found[kind] for name, kind in sorted(classes.items())},
        )
        for folder, found in whole.items()
    ]


def _is_of_one_class(mask: Path) -> bool:
    try:
        return len(np.unique(stored_mask(mask)[0])) <= 2
    except DataError:
        return True  # the check says what is wrong with it


def _kinds(folder: Path, images: Sequence[Path]) -> dict[str, Path]:
    """What is left of the names of a case's files without the words that all of them begin with, or the folder's."""
    names = [re.split(r"(?<=[_\-. ])", case_name(path)) for path in images]
    shared = 0
    while all(len(words) > shared + 1 for words in names) and len({words[shared] for words in names}) == 1:
        shared += 1
    kinds = {}
    for words, path in zip(names, images, strict=True):
        kind = "".join(words[shared:]).removeprefix(folder.name).lower()
        kinds[kind if path.parent == folder else f"{path.parent.name}/{kind}".lower()] = path
    return kinds


def _on_one_grid(files: Mapping[str, Path], mask: str, kinds: Sequence[str]) -> list[str]:
    """The kinds of file that have the size of the mask, and are no previews or the like."""
    try:
        size = stored_mask(files[mask])[0].shape[-2:]
        return [kind for kind in kinds if read_image(files[kind])[0].shape[-2:] == size]
    except DataError:
        return list(kinds)  # the check says what is wrong with them


ARRANGEMENTS: dict[Callable[[Path, Files], list[Found]], str] = {
    _word_beside: "a mask beside its image, with a word more in its name",
    _other_word: "a mask beside its image, with another word in its name",
    _two_endings: "a mask beside its image, with another ending",
    _beside_folders: "masks in folders beside those of the images",
    _folder_each: "a folder for each case, with a mask and a file for each channel",
}
