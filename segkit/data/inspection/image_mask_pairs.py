"""Detecting folders of images and masks whose file names match."""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segkit.data.cases import spread
from segkit.data.formats import case_name
from segkit.data.inspection.base import (
    SAMPLED,
    Layout,
    affixes,
    count_values,
    describe_values,
    find_part,
    folders,
    has_mask_word,
    images_in,
    is_derived,
    is_manual,
    looks_like_mask,
)
from segkit.data.inspection.mask_classes import SURVEYED
from segkit.data.sources.pairs import find_numbered

MIN_SHARE = 0.8  # of the images that have to have a mask
MAX_TEMPLATES = 40  # folder templates with the most images; all pairs of them are compared
MAX_AFFIXES = 4  # most common affixes that are tried
MAX_NAMED = 4  # alternative masks named in the reasons

Affixes = tuple[str, str]  # what comes before and after the case name in a file name
Templates = dict[str, dict[str, Path]]  # folder, or template with {split}, -> part of the split or "" -> folder


@dataclass(frozen=True)
class _Pairing:
    """Folders of images and masks with matching file names.

    Attributes:
        images: Folder of the images below the root; with {split} for one folder per part of the split.
        masks: Folder of the masks, likewise.
        splits: For each part of the split what replaces {split}.
        patterns: The options `image_pattern` and `mask_pattern`.
        files: Pairs of image and mask.
        share: Share of the images that have a mask.
        numbered: Masks that are named like the mask of a case and a number.
    """

    images: str
    masks: str
    splits: dict[str, str]
    patterns: dict[str, str]
    files: list[tuple[Path, Path]]
    share: float
    numbered: list[Path]


def pairs(root: Path) -> Layout | None:
    """The most plausible pair of image and mask folders below the root."""
    best, plausible = _best_pairing(root)
    if best is None:
        return None
    options: dict[str, Any] = {"images": root / best.images, "masks": root / best.masks, **best.patterns}
    if best.splits:
        options["splits"] = best.splits
    reasons = [f"{len(best.files)} images in {best.images or '.'} have a mask of the same name in {best.masks or '.'}"]
    if best.patterns:
        reasons.append(f"file names match by the patterns {', '.join(best.patterns.values())}")
    if best.share < 1:
        options["unpaired"] = "skip"
        missing = round(len(best.files) / best.share) - len(best.files)
        reasons.append(f"{missing} images have no mask and are left out")
    if alternatives := _alternative_masks(best, plausible):
        reasons.append(
            f"there are other masks of the same images, choose the ones you need: {', '.join(alternatives[:MAX_NAMED])}"
        )
    masks = [mask for _image, mask in best.files]
    if best.numbered:
        # other values than two would have to be united class by class, which only the user can judge
        is_binary = all(count_values(path) <= 2 for path in spread([*masks, *best.numbered], SURVEYED))
        options["numbered_masks"] = "unite" if is_binary else "refuse"
        reasons.append(
            f"{len(best.numbered)} masks are named like another mask and a number, such as {best.numbered[0].name}: "
            + ("they are added to it" if is_binary else "choose whether to unite or to skip them")
        )
    return Layout(
        "pairs", options, reasons, "train" in best.splits, masks=masks, file_count=2 * len(masks) + len(best.numbered)
    )


def why_no_pairs(root: Path) -> str | None:
    """What is wrong with the masks of the images whose names match best; None if no names match."""
    pairings = _ranked_pairings(root)
    best = next((pairing for pairing in pairings if _name_score(pairing) > 0), next(iter(pairings), None))
    if best is None:
        return None
    bad = next((mask for _image, mask in best.files if not looks_like_mask(mask)), None)
    reason = None if bad is None else describe_values(bad)
    return (
        f"{len(best.files)} names match in {best.images or '.'} and {best.masks or '.'}, but {reason}"
        if reason
        else None
    )


def _best_pairing(root: Path) -> tuple[_Pairing | None, list[_Pairing]]:
    """The best pairing, and all pairings whose masks look like masks, in order of preference.

    Pairings whose images do not look like masks come first. Where all images look like masks, the folder names have to
    tell them apart.
    """
    pairings = _ranked_pairings(root)
    plausible = [
        pairing for pairing in pairings if all(looks_like_mask(mask) for _image, mask in spread(pairing.files, SAMPLED))
    ]
    for pairing in plausible:
        if not all(looks_like_mask(image) for image, _mask in spread(pairing.files, SAMPLED)):
            return pairing, plausible
    return next((pairing for pairing in plausible if _name_score(pairing) >= 1), None), plausible


def _ranked_pairings(root: Path) -> list[_Pairing]:
    """All ways to pair the files below a folder by name, those first whose names say best which are the masks."""
    templates = _folder_templates(root)
    pairings = [
        pairing
        for image_template, mask_template in itertools.product(templates, repeat=2)
        for pairing in _pairings(
            root, image_template, templates[image_template], mask_template, templates[mask_template]
        )
    ]
    return sorted(pairings, key=lambda pairing: (-_name_score(pairing), -len(pairing.files), pairing.masks))


def _alternative_masks(best: _Pairing, plausible: Sequence[_Pairing]) -> list[str]:
    """Folders and patterns of other masks of the same images."""
    images, masks = ({pair[position] for pair in best.files} for position in (0, 1))
    alternatives = set()
    for pairing in plausible:
        own_masks = {mask for _image, mask in pairing.files}
        has_same_images = {image for image, _mask in pairing.files} == images
        if has_same_images and own_masks.isdisjoint(masks) and own_masks.isdisjoint(images):
            location = (pairing.masks, pairing.patterns.get("mask_pattern", ""))
            alternatives.add("/".join(name for name in location if name))
    return sorted(alternatives)


def _name_score(pairing: _Pairing) -> float:
    """How clearly folder names and patterns distinguish masks from images; higher is clearer, between -1.5 and 1.5."""
    mask_words = pairing.masks + pairing.patterns.get("mask_pattern", "")
    image_words = pairing.images + pairing.patterns.get("image_pattern", "")
    preference = is_manual(mask_words) - is_derived(mask_words)
    return has_mask_word(mask_words) - has_mask_word(image_words) + preference / 2


def _folder_templates(root: Path) -> Templates:
    """The folders that contain images, by their path below the root.

    Folders whose paths differ only in the part of the split are listed once more under one template, with {split} in
    place of the part. Only the MAX_TEMPLATES with the most images are returned.
    """
    templates: Templates = defaultdict(dict)
    for folder in folders(root):
        if not images_in(folder):
            continue
        text = folder.relative_to(root).as_posix()
        text = "" if text == "." else text
        templates[text][""] = folder
        if match := find_part(text):
            part, start, end = match
            templates[text[:start] + "{split}" + text[end:]].setdefault(part, folder)
    usable = {key: by_part for key, by_part in templates.items() if "{split}" not in key or len(by_part) > 1}
    largest = sorted(usable, key=lambda key: -sum(len(images_in(folder)) for folder in usable[key].values()))
    return {key: usable[key] for key in largest[:MAX_TEMPLATES]}


def _pairings(
    root: Path,
    image_template: str,
    image_folders: Mapping[str, Path],
    mask_template: str,
    mask_folders: Mapping[str, Path],
) -> Iterator[_Pairing]:
    """The ways to pair the files of two templates by name, with a mask for at least MIN_SHARE of the images."""
    if ("{split}" in image_template) != ("{split}" in mask_template):
        return
    parts = [part for part in image_folders if part in mask_folders]
    if not parts or _are_of_different_parts(image_template, mask_template):
        return
    images_by_name = {part: {case_name(path): path for path in images_in(image_folders[part])} for part in parts}
    masks_by_name = {part: {case_name(path): path for path in images_in(mask_folders[part])} for part in parts}
    image_names = [name for part in parts for name in images_by_name[part]]
    mask_names = [name for part in parts for name in masks_by_name[part]]
    for image_affixes, mask_affixes in _candidate_affixes(
        image_names, mask_names, same_folder=image_template == mask_template
    ):
        files, numbered, image_count = [], [], 0
        for part in parts:
            masks = {
                _without_affixes(name, mask_affixes): path
                for name, path in masks_by_name[part].items()
                if _has_affixes(name, mask_affixes)
            }
            images = {
                _without_affixes(name, image_affixes): path
                for name, path in images_by_name[part].items()
                if _has_affixes(name, image_affixes) and path not in masks.values()
            }
            own = {case: masks[case] for case in images if case in masks}
            same_folder = mask_folders[part] == image_folders[part]
            candidates = [
                path for name, path in masks_by_name[part].items() if same_folder or name not in images_by_name[part]
            ]
            further = {path for found in find_numbered(own, candidates).values() for path in found}
            images = {case: path for case, path in images.items() if path not in further}
            numbered += sorted(further)
            files += [(path, masks[case]) for case, path in images.items() if case in masks]
            image_count += len(images)
        if files and len(files) >= MIN_SHARE * image_count:
            by_option = {"image_pattern": image_affixes, "mask_pattern": mask_affixes}
            patterns = {option: "{case}".join(both) + ".*" for option, both in by_option.items() if both != ("", "")}
            splits = {part: _split_name(image_template, root, image_folders[part]) for part in parts if part}
            yield _Pairing(image_template, mask_template, splits, patterns, files, len(files) / image_count, numbered)


def _are_of_different_parts(images: str, masks: str) -> bool:
    """Whether two folders belong to different parts of a split: images of `test` have no masks in `train`."""
    named = [find_part(template) for template in (images, masks)]
    return None not in named and named[0][0] != named[1][0]  # pyright: ignore[reportOptionalSubscript]


def _candidate_affixes(
    images: Sequence[str], masks: Sequence[str], *, same_folder: bool
) -> Iterator[tuple[Affixes, Affixes]]:
    """Affixes of image names and of mask names that may surround the case name.

    In different folders: none, or what all names of a folder have in common. Everywhere: a prefix or suffix of the
    masks only. In the same folder: a word of the images and another one of the masks, at the end or at the start.
    """
    if not same_folder:
        yield ("", ""), ("", "")
        yield _common_affixes(images), _common_affixes(masks)
    image_names = set(images)
    counts = Counter(affix for name in masks for affix in affixes(name, image_names))
    for mask_affixes, _count in counts.most_common(MAX_AFFIXES):
        yield ("", ""), mask_affixes
    if same_folder:
        for mask_word, image_word in _word_pairs(r"[_\-. ]?[a-zA-Z]+$", masks):
            yield ("", image_word), ("", mask_word)
        for mask_word, image_word in _word_pairs(r"^[a-zA-Z]+[_\-. ]?(?=.)", masks):
            yield (image_word, ""), (mask_word, "")


def _word_pairs(pattern: str, names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """All ordered pairs of the most common words that match a pattern."""
    counts = Counter(word for name in names for word in re.findall(pattern, name))
    yield from itertools.permutations([word for word, _count in counts.most_common(MAX_AFFIXES)], 2)


def _common_affixes(names: Sequence[str]) -> Affixes:
    """The prefix and suffix that all names share, without cutting numbers apart."""
    prefix = _common_prefix(names).rstrip("0123456789")
    suffix = _common_prefix([name[len(prefix) :][::-1] for name in names])[::-1].lstrip("0123456789")
    return prefix, suffix


def _common_prefix(names: Sequence[str]) -> str:
    columns = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    return "".join(letters[0] for letters in columns)


def _has_affixes(name: str, affixes: Affixes) -> bool:
    prefix, suffix = affixes
    return name.startswith(prefix) and name.endswith(suffix) and len(name) > len(prefix) + len(suffix)


def _without_affixes(name: str, affixes: Affixes) -> str:
    prefix, suffix = affixes
    return name[len(prefix) : len(name) - len(suffix)]


def _split_name(template: str, root: Path, folder: Path) -> str:
    """What replaces {split} in a template to give the path of a folder below the root."""
    before, _split, after = template.partition("{split}")
    text = folder.relative_to(root).as_posix()
    return text[len(before) : len(text) - len(after)]
