"""Folders that no source takes as they are, but whose names tell which files belong together: for a table of cases."""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from segkit.data.cases import DataError, spread
from segkit.data.formats import case_name, extension
from segkit.data.layouts.common import (
    SAMPLED,
    Layout,
    folders,
    has_mask_word,
    images_in,
    looks_like_mask,
    part_in,
)
from segkit.data.readers import read_image, stored_mask
from segkit.data.sources.manifest import SEPARATOR

COMMON = 0.8  # of the folders of cases have to hold a kind of file
PATIENTS = 10  # folders from which on they are taken for patients or places, whose cases stay together
IMAGE_WORDS = ("image", "img", "scan", "volume")
CHANNEL = re.compile(r"(.+)_(\d{4})")

Files = Mapping[Path, Sequence[Path]]  # the images of each folder that has some


@dataclass(frozen=True)
class Found:
    """A case. name: of the case, where its folder or files say so."""

    name: str
    images: tuple[Path, ...]
    mask: Path


def table(root: Path) -> Layout | None:
    """The arrangement that makes the most cases, as rows of a table; None without any."""
    files = {folder: found for folder in folders(root) if (found := images_in(folder))}
    best: list[Found] = []
    reason = ""
    for arrange, why in ARRANGEMENTS.items():
        found = arrange(root, files)
        masks = spread([case.mask for case in found], SAMPLED)
        if len(found) > max(1, len(best)) and all(map(looks_like_mask, masks)):
            best, reason = found, why
    if not best:
        return None
    rows, why = _rows(root, best)
    masks = [case.mask for case in best]
    reasons = [f"{len(best)} cases: {reason}, such as {_shown(root, best[0])}", *why]
    files_used = sum(len(case.images) + 1 for case in best)
    return Layout("manifest", {"root": root}, reasons, "split" in rows[0], masks=masks, files=files_used, rows=rows)


def _shown(root: Path, case: Found) -> str:
    return " and ".join(path.relative_to(root).as_posix() for path in (*case.images, case.mask))


def _rows(root: Path, cases: Sequence[Found]) -> tuple[list[dict[str, str]], list[str]]:
    """The table, and what is to be said of its columns."""
    short = len({case.name for case in cases}) == len(cases)
    places = [case.images[0].parent.relative_to(root).as_posix() for case in cases]
    parts = [named[0] if (named := part_in(place)) else None for place in places]
    divided = None not in parts and "train" in parts and len(set(parts)) > 1
    together = PATIENTS <= len(set(places)) < len(cases)
    rows = []
    for case, place, part in zip(cases, places, parts, strict=True):
        row = {"case": case.name if short else f"{place}/{case.name}"}
        row["image"] = SEPARATOR.join(path.relative_to(root).as_posix() for path in case.images)
        row["mask"] = case.mask.relative_to(root).as_posix()
        rows.append(row | ({"group": place} if together else {}) | ({"split": str(part)} if divided else {}))
    why = [f"cases of one of the {len(set(places))} folders stay together, as a group"] if together else []
    return rows, why + (["the parts of the split are those that the folders name"] if divided else [])


# --- arrangements: the cases of a folder, none where it is another one ------------------------------------------------


def _word_beside(_root: Path, files: Files) -> list[Found]:
    """`a.png` and `a_mask.png` in one folder, in each of several."""
    affixes: Counter[tuple[str, str]] = Counter()
    by_name = {folder: {case_name(path): path for path in images} for folder, images in files.items()}
    for names in by_name.values():
        for name in names:
            affixes.update(_affixes(name, names))
    found = []
    for (before, after), _number in affixes.most_common(1):
        for names in by_name.values():
            pairs = [(name, f"{before}{name}{after}") for name in names]
            found += [Found(name, (names[name],), names[mask]) for name, mask in pairs if mask in names]
    return found


def _affixes(name: str, known: Mapping[str, Path]) -> Iterator[tuple[str, str]]:
    """What a mask's name has before or after that of an image."""
    for cut in range(1, len(name)):
        if name[:cut] in known and has_mask_word(name[cut:]):
            yield "", name[cut:]
        if name[cut:] in known and has_mask_word(name[:cut]):
            yield name[:cut], ""


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
    fitting = [
        found
        for found in pairs.values()
        if all(looks_like_mask(mask) and not looks_like_mask(image) for image, mask in spread(found, SAMPLED))
    ]
    best = max(fitting, key=len, default=[])
    return [Found(case_name(image), (image,), mask) for image, mask in best]


def _beside_folders(root: Path, files: Files) -> list[Found]:
    """`images/p0/a.png` and `masks/p0/a.png`, or `p0/images/a.png` and `p0/masks/a.png`: paths that differ by one
    folder, and perhaps by a word in the name."""
    alike: dict[tuple[str, ...], list[tuple[str, Path]]] = defaultdict(list)  # by the path with one folder left open
    for folder in files:
        parts = folder.relative_to(root).parts
        for place, word in enumerate(parts):
            alike[(*parts[:place], "*", *parts[place + 1 :])].append((word, folder))
    pairs: dict[tuple[str, str], list[tuple[Path, Path]]] = defaultdict(list)
    for those in alike.values():
        for (first, images), (second, masks) in itertools.permutations(those, 2):
            (part, word), (other_part, other) = _without_part(first), _without_part(second)
            if has_mask_word(other) and not has_mask_word(word) and part == other_part:
                pairs[word, other].append((images, masks))
    found = [_paired_by_name(both, files) for both in pairs.values()]
    return max(found, key=len, default=[])


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
            if len(masks) == len(files[mask_folder]):
                break
        found += [Found(name, cases[name], masks[plain(name)]) for name in cases if plain(name) in masks]
    return found


def _by_case(images: Sequence[Path]) -> dict[str, tuple[Path, ...]]:
    """The files of each case: several where all names end in a channel's number, `a_0000`, `a_0001`."""
    names = [case_name(path) for path in images]
    matches = [CHANNEL.fullmatch(name) for name in names]
    channels: dict[str, list[Path]] = defaultdict(list)
    for match, path in zip(matches, images, strict=True):
        if match is None:
            return {name: (path,) for name, path in zip(names, images, strict=True)}
        channels[match[1]].append(path)
    if len({len(one) for one in channels.values()}) > 1:
        return {name: (path,) for name, path in zip(names, images, strict=True)}
    return {name: tuple(sorted(one)) for name, one in channels.items()}


def _bare(name: str) -> str:
    """A name without the word that says that it is a mask or an image, as in `a_mask` or `img-a`."""
    words = [word for word in re.split(r"[_\-. ]", name) if word]
    left = [word for word in words if not has_mask_word(word) and word.lower() not in IMAGE_WORDS]
    return "_".join(left or words)


def _folder_each(root: Path, files: Files) -> list[Found]:
    """A folder for each case, with a file for each channel and one for the mask: `b1/b1_t1.nii.gz`, `b1/b1_seg.nii.gz`,
    or `case_1/imaging.nii.gz`, `case_1/segmentation.nii.gz`."""
    kinds = {folder: _kinds(images) for folder, images in files.items() if len(images) > 1 and folder != root}
    number = Counter(kind for found in kinds.values() for kind in found)
    common = [kind for kind, times in number.items() if times >= max(2, COMMON * len(kinds))]
    masks = [kind for kind in common if has_mask_word(kind)]
    whole = {folder: found for folder, found in kinds.items() if set(common) <= found.keys()}
    if not masks or len(masks) == len(common) or not whole:
        return []
    mask = min(masks, key=lambda kind: (len(kind), kind))
    channels = _on_one_grid(next(iter(whole.values())), mask, sorted(set(common) - set(masks)))
    return [
        Found(folder.name, tuple(found[kind] for kind in channels), found[mask])
        for folder, found in whole.items()
        if channels
    ]


def _kinds(images: Sequence[Path]) -> dict[str, Path]:
    """What is left of the names of a folder's files without the words that all of them begin with."""
    names = [re.split(r"(?<=[_\-. ])", case_name(path)) for path in images]
    shared = 0
    while all(len(words) > shared + 1 for words in names) and len({words[shared] for words in names}) == 1:
        shared += 1
    return {"".join(words[shared:]).lower(): path for words, path in zip(names, images, strict=True)}


def _on_one_grid(files: Mapping[str, Path], mask: str, kinds: Sequence[str]) -> list[str]:
    """The kinds of file that have the size of the mask, and are no previews or the like."""
    try:
        size = stored_mask(files[mask])[0].shape[-2:]
        return [kind for kind in kinds if read_image(files[kind])[0].shape[-2:] == size]
    except DataError:
        return list(kinds)  # the check says what is wrong with them


ARRANGEMENTS: dict[Callable[[Path, Files], list[Found]], str] = {
    _word_beside: "a mask beside its image, with a word more in its name",
    _two_endings: "a mask beside its image, with another ending",
    _beside_folders: "masks in folders beside those of the images",
    _folder_each: "a folder for each case, with a mask and a file for each channel",
}
