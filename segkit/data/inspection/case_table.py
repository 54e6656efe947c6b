"""Folders that no source reads directly, but whose file names show which files form a case: a table of cases."""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segkit.data.cases import spread
from segkit.data.formats import case_name, extension
from segkit.data.inspection.base import (
    SAMPLED,
    Layout,
    affixes,
    find_part,
    folders,
    has_mask_word,
    images_in,
    is_derived,
    is_manual,
    looks_like_mask,
)
from segkit.data.inspection.mask_classes import SURVEYED
from segkit.data.readers import read_image, stored_mask
from segkit.data.sources.manifest import SEPARATOR
from segkit.data.sources.pairs import find_numbered
from segkit.utils.errors import DataError

COMMON = 0.8  # share of the case folders that have to contain a type of file
MIN_GROUPS = 10  # with at least that many folders, they are taken for patients or sites, whose cases stay together
IMAGE_WORDS = ("image", "img", "scan", "volume")
MAX_CANDIDATES = 4  # affixes, or folders at the same level, that are tried where no name contains a word for masks
CHANNEL = re.compile(r"(.+)_(\d{4})")

Files = Mapping[Path, Sequence[Path]]  # folder -> its images; folders without images are omitted


@dataclass(frozen=True)
class CaseFiles:
    """The files of a case: one mask with all classes under the key "", or one mask per class name."""

    name: str
    images: tuple[Path, ...]
    masks: Mapping[str, Path]


def table(root: Path) -> Layout | None:
    """The arrangement of files that gives the most cases, as rows of a table; None if there is none."""
    files = {folder: images for folder in folders(root) if (images := images_in(folder))}
    best: list[CaseFiles] = []
    best_description = ""
    for arrangement, description in ARRANGEMENTS.items():
        cases = arrangement(root, files)
        masks = [mask for case in spread(cases, SAMPLED) for mask in case.masks.values()]
        if len(cases) > max(1, len(best)) and all(map(looks_like_mask, masks)):
            best, best_description = cases, description
    if not best:
        return None
    rows, notes = _rows(root, best)
    if not any(len(case.masks) > 1 for case in best):
        notes += _add_numbered(root, best, rows, files)
    reasons = [f"{len(best)} cases: {best_description}, such as {_file_names(root, best[0])}", *notes]
    classes = list(best[0].masks)
    if len(classes) > 1:
        reasons.append(
            f"the {len(classes)} masks of a case are assumed to be classes that may overlap; if they are versions of "
            "the same mask, keep one of them, in a column `mask` of the table"
        )
    return Layout(
        "manifest",
        {"root": root},
        reasons,
        "split" in rows[0],
        labels={"names": classes, "mode": "multilabel"} if len(classes) > 1 else None,
        masks=[mask for case in best for mask in case.masks.values()],
        file_count=sum(len(case.images) + len(case.masks) for case in best),
        rows=rows,
    )


def _add_numbered(root: Path, cases: Sequence[CaseFiles], rows: Sequence[dict[str, str]], files: Files) -> list[str]:
    """Add further masks, such as `a_mask_1.png` beside `a_mask.png`, to the rows, and return a note about them."""
    row_of = {case.masks[""]: row for case, row in zip(cases, rows, strict=True) if "" in case.masks}
    images = {image for case in cases for image in case.images}
    further: list[tuple[Path, list[Path]]] = []  # the mask of a case, and its further masks
    for folder in sorted({mask.parent for mask in row_of}):
        own = {case.name: case.masks[""] for case in cases if "" in case.masks and case.masks[""].parent == folder}
        numbered = find_numbered(own, [path for path in files.get(folder, ()) if path not in images])
        further += [(own[name], sorted(paths)) for name, paths in numbered.items()]
    found = [path for _mask, paths in further for path in paths]
    if not found:
        return []
    note = f"{len(found)} masks are named like another mask and a number, such as {found[0].name}"
    if not all(_is_binary(path) for path in spread([*row_of, *found], SURVEYED)):
        return [f"{note}: add them to the column mask, separated by {SEPARATOR}, if they belong together"]
    for mask, paths in further:
        names = [path.relative_to(root).as_posix() for path in paths]
        row_of[mask]["mask"] = SEPARATOR.join([row_of[mask]["mask"], *names])
    return [f"{note}: they are added to it"]


def _file_names(root: Path, case: CaseFiles) -> str:
    return " and ".join(path.relative_to(root).as_posix() for path in (*case.images, *case.masks.values()))


def _rows(root: Path, cases: Sequence[CaseFiles]) -> tuple[list[dict[str, str]], list[str]]:
    """The rows of the table, and notes on its columns `group` and `split`."""
    has_unique_names = len({case.name for case in cases}) == len(cases)
    parents = [case.images[0].parent.relative_to(root).as_posix() for case in cases]
    parts = [match[0] if (match := find_part(parent)) else None for parent in parents]
    has_split = None not in parts and "train" in parts and len(set(parts)) > 1
    groups = _group_folders(parents)
    has_groups = MIN_GROUPS <= len(set(groups)) < len(cases)
    rows = []
    for case, parent, group, part in zip(cases, parents, groups, parts, strict=True):
        row = {"case": case.name if has_unique_names else f"{parent}/{case.name}"}
        row["image"] = SEPARATOR.join(path.relative_to(root).as_posix() for path in case.images)
        for name, mask in case.masks.items():
            row[f"mask:{name}" if name else "mask"] = mask.relative_to(root).as_posix()
        rows.append(row | ({"group": group} if has_groups else {}) | ({"split": str(part)} if has_split else {}))
    notes = []
    if has_groups:
        notes.append(f"each of the {len(set(groups))} folders, such as {groups[0]}, is a group, which is never split")
    elif 1 < len({_without_parts(group) for group in groups}) < len(cases):
        notes.append(
            f"the files are in {len(set(groups))} folders: if these are patients, add a column `group` to the table"
        )
    if has_split:
        notes.append("the folder names define the parts of the split")
    return rows, notes


def _without_parts(folder: str) -> tuple[str, ...]:
    """The names in a path that do not name a part of the split."""
    return tuple(name for name in folder.split("/") if not find_part(name))


def _group_folders(parents: Sequence[str]) -> list[str]:
    """The path of each case's folder up to the first name that differs between cases and is not a part of the split."""
    paths = [parent.split("/") for parent in parents]
    depth = 0
    while all(len(names) > depth + 1 for names in paths) and (
        len({names[depth] for names in paths}) == 1 or all(find_part(names[depth]) for names in paths)
    ):
        depth += 1
    return ["/".join(names[: depth + 1]) for names in paths]


# --- arrangements: each returns the cases below a folder, or an empty list if the files are arranged differently ------


def _mask_affix(_root: Path, files: Files) -> list[CaseFiles]:
    """`a.png` and `a_mask.png` in the same folder, in one or several folders.

    An affix without a word for masks is accepted only if the files look like images and masks.
    """
    by_name = {folder: {case_name(path): path for path in images} for folder, images in files.items()}
    counts = Counter(affix for names in by_name.values() for name in names for affix in affixes(name, names))
    with_mask_word = [affix for affix, _count in counts.most_common() if has_mask_word("".join(affix))]
    for prefix, suffix in with_mask_word[:1] or [affix for affix, _count in counts.most_common(MAX_CANDIDATES)]:
        cases = []
        for names in by_name.values():
            pairs = [(name, f"{prefix}{name}{suffix}") for name in names]
            cases += [CaseFiles(name, (names[name],), {"": names[mask]}) for name, mask in pairs if mask in names]
        if with_mask_word or _sample_fits(cases, _are_image_and_mask):
            return cases
    return []


def _word_in_both(_root: Path, files: Files) -> list[CaseFiles]:
    """`a_image.nii` and `a_label.nii`, or `volume-1.nii` and `segmentation-1.nii`, in the same folder."""
    cases = []
    for images in files.values():
        by_case: dict[str, list[Path]] = defaultdict(list)
        for path in images:
            by_case[_bare_name(case_name(path))].append(path)
        for name, paths in by_case.items():
            masks = [path for path in paths if has_mask_word(case_name(path))]
            if len(paths) == 2 and len(masks) == 1:
                image = next(path for path in paths if path not in masks)
                cases.append(CaseFiles(name, (image,), {"": masks[0]}))
    return cases


def _two_endings(_root: Path, files: Files) -> list[CaseFiles]:
    """`a.jpg` and `a.png` in the same folder, one of them the mask."""
    pairs: dict[tuple[str, str], list[tuple[Path, Path]]] = defaultdict(list)
    for images in files.values():
        by_case: dict[str, list[Path]] = defaultdict(list)
        for path in images:
            by_case[case_name(path)].append(path)
        for paths in by_case.values():
            if len(paths) == 2:
                for image, mask in itertools.permutations(paths):
                    pairs[extension(image), extension(mask)].append((image, mask))
    candidates = [
        [CaseFiles(case_name(image), (image,), {"": mask}) for image, mask in matched]
        for matched in sorted(pairs.values(), key=len, reverse=True)
    ]
    return next((cases for cases in candidates if _sample_fits(cases, _are_image_and_mask)), [])


Check = Callable[[Path, Path], bool]  # of an image and its mask


def _sample_fits(cases: Sequence[CaseFiles], check: Check) -> bool:
    """Whether a check holds for image and mask of some of the cases."""
    return all(check(case.images[0], case.masks[""]) for case in spread(cases, SAMPLED))


def _has_mask(_image: Path, mask: Path) -> bool:
    return looks_like_mask(mask)


def _are_image_and_mask(image: Path, mask: Path) -> bool:
    return looks_like_mask(mask) and not looks_like_mask(image)


FolderPairs = dict[tuple[str, str], list[tuple[Path, Path]]]  # folders of images and masks by the names that differ


@dataclass(frozen=True)
class _Sibling:
    """A folder, one of several whose paths differ in a single name.

    Attributes:
        folder: The folder.
        part: The part of the split in that name, if there is one.
        word: The rest of that name: `masks_` of `masks_train`.
    """

    folder: Path
    part: str | None
    word: str


def _parallel_folders(root: Path, files: Files) -> list[CaseFiles]:
    """`images/p0/a.png` and `masks/p0/a.png`, or `p0/images/a.png` and `p0/masks/a.png`.

    The paths of image and mask differ in the name of one folder, and may differ in a word of the file name. Folders
    with a word for masks are preferred; without any, the files decide which folder holds the masks.
    """
    with_mask_word: FolderPairs = defaultdict(list)
    without_mask_word: FolderPairs = defaultdict(list)
    for siblings in _siblings(root, files):
        masks = [sibling for sibling in siblings if has_mask_word(sibling.word)]
        images = [sibling for sibling in siblings if not has_mask_word(sibling.word)]
        candidates = itertools.product(images, masks) if masks else itertools.permutations(images[:MAX_CANDIDATES], 2)
        pairs = with_mask_word if masks else without_mask_word
        for image, mask in candidates:
            if image.part == mask.part:
                pairs[image.word, mask.word].append((image.folder, mask.folder))
    attempts = (
        (with_mask_word, _are_image_and_mask),
        (with_mask_word, _has_mask),
        (without_mask_word, _are_image_and_mask),
    )
    for pairs, check in attempts:
        for cases in _most_cases_first(pairs, files):
            if cases and _sample_fits(cases, check):
                return cases
    return []


def _siblings(root: Path, files: Files) -> list[list[_Sibling]]:
    """The folders grouped by their path with one name left out, once for every name in their path."""
    groups: dict[tuple[str, ...], list[_Sibling]] = defaultdict(list)
    for folder in files:
        names = folder.relative_to(root).parts
        for level, name in enumerate(names):
            groups[(*names[:level], "*", *names[level + 1 :])].append(_Sibling(folder, *_split_part(name)))
    return list(groups.values())


def _split_part(name: str) -> tuple[str | None, str]:
    """The part of the split in a folder name, and the rest of the name: `train` and `masks_` for `masks_train`."""
    match = find_part(name)
    if match is None:
        return None, name
    part, start, end = match
    return part, name[:start] + name[end:]


def _most_cases_first(pairs: FolderPairs, files: Files) -> list[list[CaseFiles]]:
    """The cases of each pair of names, those with the most cases first; among equals, manual before derived masks."""
    ranked = [
        (_match_names(folder_pairs, files), is_manual(mask_word) - is_derived(mask_word))
        for (_image_word, mask_word), folder_pairs in pairs.items()
    ]
    ranked.sort(key=lambda entry: (len(entry[0]), entry[1]), reverse=True)
    return [cases for cases, _preference in ranked]


def _match_names(folder_pairs: Sequence[tuple[Path, Path]], files: Files) -> list[CaseFiles]:
    """The cases whose images and masks have matching names in folders of images and of masks."""
    cases = []
    for image_folder, mask_folder in folder_pairs:
        images = _files_of_cases(files[image_folder])
        for normalise in (_bare_name, str, _bare_number):
            masks = {normalise(case_name(path)): path for path in files[mask_folder]}
            names = {normalise(name) for name in images}
            # full names where several files have the same bare name; bare numbers where `7` is the mask of `007`
            if len(masks) == len(files[mask_folder]) and len(names) == len(images) and names & masks.keys():
                break
        cases += [
            CaseFiles(name, images[name], {"": masks[normalise(name)]}) for name in images if normalise(name) in masks
        ]
    return cases


def _files_of_cases(images: Sequence[Path]) -> dict[str, tuple[Path, ...]]:
    """The image files of each case: several if all names end in a channel number, as `a_0000` and `a_0001`.

    Cases whose number of channels differs from the most common one are left out.
    """
    names = [case_name(path) for path in images]
    matches = [CHANNEL.fullmatch(name) for name in names]
    channels: dict[str, list[Path]] = defaultdict(list)
    for match, path in zip(matches, images, strict=True):
        if match is None:
            return {name: (path,) for name, path in zip(names, images, strict=True)}
        channels[match[1]].append(path)
    usual = Counter(len(paths) for paths in channels.values()).most_common(1)[0][0] if channels else 0
    return {name: tuple(sorted(paths)) for name, paths in channels.items() if len(paths) == usual}


def _bare_name(name: str) -> str:
    """A name without words for images, masks and parts of the split: `a` for `a_mask`, `img-a` and `train_a`."""
    words = [word for word in re.split(r"[_\-. ]", name) if word]
    remaining = [word for word in words if not (has_mask_word(word) or word.lower() in IMAGE_WORDS or find_part(word))]
    return "_".join(remaining or words)


def _bare_number(name: str) -> str:
    """A bare name without leading zeros in its numbers: `7` for `007`."""
    return re.sub(r"\d+", lambda match: str(int(match[0])), _bare_name(name))


def _derivatives(root: Path, files: Files) -> list[CaseFiles]:
    """BIDS: `sub-01/anat/sub-01_T1w.nii.gz`, and its mask below `derivatives` with more words in its name, such as
    `derivatives/labels/sub-01/anat/sub-01_T1w_seg-manual.nii.gz`."""
    masks: dict[str, list[tuple[str, Path]]] = defaultdict(list)
    below = root / "derivatives"
    images = {case_name(path): path for folder in files if not folder.is_relative_to(below) for path in files[folder]}
    for folder in files:
        for path in files[folder] if folder.is_relative_to(below) else []:
            name = case_name(path)
            owner = _bids_image(name, images)
            words = "_".join(word for word in name.split("_") if owner is None or word not in owner.split("_"))
            if owner is not None and has_mask_word(words):
                masks[words].append((owner, path))
    if not masks:
        return []
    words = max(masks, key=lambda words: (len(masks[words]), is_manual(words)))
    return [CaseFiles(owner, (images[owner],), {"": mask}) for owner, mask in sorted(masks[words])]


def _bids_image(mask: str, images: Collection[str]) -> str | None:
    """The image whose entities, such as `sub-01_ses-2`, a mask shares, with its suffix `T1w` or as the only one."""
    entities = set(mask.split("_"))
    with_suffix = [image for image in images if set(image.split("_")) <= entities]
    candidates = with_suffix or [image for image in images if "_" in image and set(image.split("_")[:-1]) <= entities]
    return candidates[0] if len(candidates) == 1 else None


def _folder_per_case(root: Path, files: Files) -> list[CaseFiles]:
    """One folder per case with one file per channel and the mask: `b1/b1_t1.nii.gz` and `b1/b1_seg.nii.gz`, or
    `case_1/imaging.nii.gz` and `case_1/segmentation.nii.gz`."""
    masks_below: dict[Path, list[Path]] = defaultdict(list)  # in subfolders, as in `segmentations` of TotalSegmentator
    for folder, images in files.items():
        if has_mask_word(folder.name):
            masks_below[folder.parent] += images
    by_depth: dict[int, dict[Path, dict[str, Path]]] = defaultdict(dict)
    for folder, images in files.items():
        case_files = [*images, *masks_below[folder]]
        if folder != root and len(case_files) > 1 and not has_mask_word(folder.name):
            by_depth[len(folder.parts)][folder] = _by_type(folder, case_files)
    return max(map(_cases_of_folders, by_depth.values()), key=len, default=[])


def _cases_of_folders(files_by_type: Mapping[Path, Mapping[str, Path]]) -> list[CaseFiles]:
    """The cases of folders, with the types of file that most folders contain."""
    counts = Counter(file_type for files in files_by_type.values() for file_type in files)
    common = [file_type for file_type, count in counts.items() if count >= max(2, COMMON * len(files_by_type))]
    masks = [file_type for file_type in common if has_mask_word(file_type)]
    complete = {folder: files for folder, files in files_by_type.items() if set(common) <= files.keys()}
    if not masks or len(masks) == len(common) or not complete:
        return []
    first = next(iter(complete.values()))
    channels = _of_mask_size(first, masks[0], sorted(set(common) - set(masks)))
    classes = {_bare_name(file_type.rpartition("/")[2]): file_type for file_type in masks}
    if len(masks) == 1 or not all(_is_binary(first[file_type]) for file_type in masks):
        classes, masks = {"": min(masks, key=lambda file_type: (is_derived(file_type), file_type))}, masks[:1]
    are_numbers = any(name.isdigit() for name in classes)  # of patients or slices, not classes
    if not channels or len(classes) < len(masks) or are_numbers:
        return []
    return [
        CaseFiles(
            folder.name,
            tuple(files[file_type] for file_type in channels),
            {name: files[file_type] for name, file_type in sorted(classes.items())},
        )
        for folder, files in complete.items()
    ]


def _is_binary(mask: Path) -> bool:
    """Whether a mask has at most two values."""
    try:
        return len(np.unique(stored_mask(mask)[0])) <= 2
    except DataError:
        return True  # `segkit data check` reports the error


def _by_type(folder: Path, images: Sequence[Path]) -> dict[str, Path]:
    """The files of a case by their type, which is the file name without the words that all names begin with, or without
    the name of the folder: `t1` and `seg` for `b1/b1_t1.nii.gz` and `b1/b1_seg.nii.gz`."""
    names = [re.split(r"(?<=[_\-. ])", case_name(path)) for path in images]
    shared = 0
    while all(len(words) > shared + 1 for words in names) and len({words[shared] for words in names}) == 1:
        shared += 1
    by_type = {}
    for words, path in zip(names, images, strict=True):
        file_type = "".join(words[shared:]).removeprefix(folder.name).lower()
        by_type[file_type if path.parent == folder else f"{path.parent.name}/{file_type}".lower()] = path
    return by_type


def _of_mask_size(files: Mapping[str, Path], mask: str, file_types: Sequence[str]) -> list[str]:
    """The types of file that have the size of the mask, which excludes previews and the like."""
    try:
        size = stored_mask(files[mask])[0].shape[-2:]
        return [file_type for file_type in file_types if read_image(files[file_type])[0].shape[-2:] == size]
    except DataError:
        return list(file_types)  # `segkit data check` reports the error


ARRANGEMENTS: dict[Callable[[Path, Files], list[CaseFiles]], str] = {
    _mask_affix: "masks next to their images, with an additional word in the name",
    _word_in_both: "masks next to their images, with another word in the name",
    _two_endings: "masks next to their images, with another file name ending",
    _parallel_folders: "masks in folders parallel to those of the images",
    _derivatives: "BIDS, with masks below derivatives",
    _folder_per_case: "one folder per case, with a mask and one file per channel",
}
