"""Images and masks that share the names of their cases."""

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
    folders,
    has_mask_word,
    images_in,
    is_derived,
    is_drawn,
    looks_like_mask,
    part_in,
)

PAIRED = 0.8  # of the images have to have a mask
MOST_TEMPLATES = 40  # folders with the most images, which are held against each other
SHOWN = 4  # other masks that are named


@dataclass(frozen=True)
class _Pairing:
    images: str  # folders below the root, with {split} where there is one for each part
    masks: str
    splits: dict[str, str]
    patterns: dict[str, str]
    files: list[tuple[Path, Path]]
    share: float


def pairs(root: Path) -> Layout | None:
    templates = _templates(root)
    found = [
        pairing
        for first, second in itertools.product(templates, repeat=2)
        for pairing in _paired(root, first, templates[first], second, templates[second])
    ]
    found.sort(key=lambda one: (-_likeness(one), -len(one.files), one.masks))
    likely = [one for one in found if all(looks_like_mask(mask) for _image, mask in spread(one.files, SAMPLED))]
    pictures = (one for one in likely if not all(looks_like_mask(image) for image, _mask in spread(one.files, SAMPLED)))
    best = next(pictures, None) or next((one for one in likely if _likeness(one) >= 1), None)
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
    if others := _other_masks(best, likely):
        why.append(f"there are other masks of the same images, which is for you to know: {', '.join(others[:SHOWN])}")
    masks = [mask for _image, mask in best.files]
    return Layout("pairs", options, why, "train" in best.splits, masks=masks, files=2 * len(masks))


def _other_masks(best: _Pairing, likely: Sequence[_Pairing]) -> list[str]:
    """Where other masks of the same images lie."""
    images, masks = ({pair[place] for pair in best.files} for place in (0, 1))
    found = set()
    for one in likely:
        own = {mask for _image, mask in one.files}
        if {image for image, _mask in one.files} == images and own.isdisjoint(masks) and own.isdisjoint(images):
            found.add("/".join(part for part in (one.masks, one.patterns.get("mask_pattern", "")) if part))
    return sorted(found)


def _likeness(pairing: _Pairing) -> float:
    """How much the names say that these are masks, and those are not."""
    words = pairing.masks + pairing.patterns.get("mask_pattern", "")
    others = pairing.images + pairing.patterns.get("image_pattern", "")
    return has_mask_word(words) - has_mask_word(others) + (is_drawn(words) - is_derived(words)) / 2


def _templates(root: Path) -> dict[str, dict[str, Path]]:
    """The folders of images, those that differ by the name of a part of the split alone under one template with
    {split}: part, or an empty name, and the folder."""
    found: dict[str, dict[str, Path]] = defaultdict(dict)
    for folder in folders(root):
        if not images_in(folder):
            continue
        text = folder.relative_to(root).as_posix()
        text = "" if text == "." else text
        found[text][""] = folder
        if named := part_in(text):
            part, start, end = named
            found[text[:start] + "{split}" + text[end:]].setdefault(part, folder)
    several = {key: folders for key, folders in found.items() if "{split}" not in key or len(folders) > 1}
    largest = sorted(several, key=lambda key: -sum(len(images_in(folder)) for folder in several[key].values()))
    return {key: several[key] for key in largest[:MOST_TEMPLATES]}


def _paired(
    root: Path, first: str, images: Mapping[str, Path], second: str, masks: Mapping[str, Path]
) -> Iterator[_Pairing]:
    if ("{split}" in first) != ("{split}" in second):
        return
    parts = [part for part in images if part in masks]
    if not parts:
        return
    of_images = {part: {case_name(path): path for path in images_in(images[part])} for part in parts}
    of_masks = {part: {case_name(path): path for path in images_in(masks[part])} for part in parts}
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
    number = Counter(form for name in masks for form in affixes(name, known))
    for form, _times in number.most_common(4):
        yield ("", ""), form
    if same:
        words = Counter(word for name in masks for word in re.findall(r"[_\-. ]?[a-zA-Z]+$", name))
        for mask_word, image_word in itertools.permutations([word for word, _number in words.most_common(4)], 2):
            yield ("", image_word), ("", mask_word)
        words = Counter(word for name in masks for word in re.findall(r"^[a-zA-Z]+[_\-. ]?(?=.)", name))
        for mask_word, image_word in itertools.permutations([word for word, _number in words.most_common(4)], 2):
            yield (image_word, ""), (mask_word, "")


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
