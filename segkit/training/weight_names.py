"""Which set of weights in a file belongs to a network, and which prefixes of names differ between the two.

Tools save weights under different keys (`state_dict`, `network_weights`, `model`), and wrappers put their own name
before those of the weights (`module.`, `model.`). One prefix is removed from the names in the file and one from those
of the network, so that as many names and shapes as possible agree.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

LEVELS = 4  # of keys that lead to a set of weights
LEAST_SHARE = 0.25  # of the weights of file or network that must fit, where a prefix is not that of all names
AVERAGES = frozenset(("ema", "teacher", "averaged", "swa"))
USUAL = ("model", "state_dict", "network_weights", "model_state_dict", "net", "")  # keys, the first ones preferred
# what torch.compile, FSDP and activation checkpointing put into the names of any module
INNER_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


@dataclass(frozen=True)
class Match:
    """How the names of one set of weights in a file belong to those of a network.

    key: The keys that lead to the weights in the file, joined by dots; empty for the file itself.
    state: These weights by their names in the file.
    file_prefix, network_prefix: What is removed from the names of the file and of the network.
    names: From the name in the network to that in the file, where they agree.
    fitting: The number of these weights that agree in shape, too, without scalars.
    rivals: Other sets of weights of the file that fit equally well, in words.
    """

    key: str
    state: Mapping[str, Tensor]
    file_prefix: str
    network_prefix: str
    names: Mapping[str, str]
    fitting: int
    rivals: tuple[str, ...] = ()

    @property
    def is_average(self) -> bool:
        """Whether the names say that the weights are a moving average of those in training."""
        return not AVERAGES.isdisjoint(re.split(r"[._]", f"{self.key}.{self.file_prefix}".lower()))

    @property
    def place(self) -> str:
        """Where the weights lie in the file, in words; empty if nothing is to be said."""
        parts = [self.key] if self.key else []
        parts += [f"{self.file_prefix}*"] if self.file_prefix else []
        return ", ".join(parts)

    @property
    def where(self) -> str:
        """The same, also for weights that are the whole file."""
        return self.place or "the weights at the top of the file"

    @property
    def rank(self) -> tuple[int, ...]:
        """Of several matches, the one with the highest rank is taken."""
        usual = USUAL.index(self.key) if self.key in USUAL else len(USUAL)
        dots = (self.network_prefix.count("."), self.file_prefix.count("."))
        return self.fitting, len(self.names), self.is_average, -usual, -dots[0], -dots[1]


def weight_sets(content: Any) -> dict[str, dict[str, Tensor]]:
    """The mappings from names to tensors in the content of a file, by the keys that lead to them."""
    found = dict(_weight_sets(content, "", LEVELS))
    meta = content.get("meta") if isinstance(content, dict) else None
    if isinstance(meta, dict) and "mmengine_version" in meta:  # it exchanges the two: the average is in state_dict
        found.pop("ema_state_dict", None)
    return found


def _weight_sets(content: Any, key: str, levels: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
    if not isinstance(content, dict):
        return
    state = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if state:
        yield key, state
    for name, value in content.items():
        if levels and isinstance(name, str):
            yield from _weight_sets(value, f"{key}.{name}".lstrip("."), levels - 1)


def best_match(sets: Mapping[str, Mapping[str, Tensor]], network: Mapping[str, Tensor]) -> Match | None:
    """The set of weights, and the prefixes, under which most names and shapes agree with those of a network.

    Of several that fit equally well, a moving average is taken, which is what tools evaluate, then the set with the
    most usual key. Returns None if no weight agrees in name and shape.
    """
    matches: list[Match] = []
    for key, state in sets.items():
        least = max((match.fitting for match in matches), default=1)
        matches += _matches(key, state, network, least)
    if not matches:
        return None
    best = max(matches, key=lambda match: match.rank)
    equal = [match for match in matches if match.rank[:2] == best.rank[:2]]
    others = dict.fromkeys(match.where for match in equal if _sources(match).isdisjoint(_sources(best)))
    return replace(best, rivals=tuple(others))


def _sources(match: Match) -> set[tuple[str, str]]:
    return {(match.key, name) for name in match.names.values()}


def _matches(key: str, state: Mapping[str, Tensor], network: Mapping[str, Tensor], least: int) -> Iterator[Match]:
    """The pairs of prefixes under which at least `least` weights agree in name and shape, and no earlier one has more.

    A prefix that is not that of all names leads to a part of a network. To take two convolutions of the same size for
    the same part would be chance, so a quarter of the weights of the file or of the network must fit there.
    """
    least_of_part = LEAST_SHARE * min(len(state), len(network))
    ours = by_prefix(network)
    for file_prefix, in_file in by_prefix(state).items():
        for network_prefix, in_network in ours.items():
            are_whole = len(in_file) == len(state) and len(in_network) == len(network)
            needed = least if are_whole else max(least, least_of_part)
            if min(len(in_file), len(in_network)) < needed:
                continue
            names = {name: in_file[rest] for rest, name in in_network.items() if rest in in_file}
            fitting = sum(_agree(network[name], state[source]) for name, source in names.items())
            if fitting >= needed:
                yield Match(key, state, file_prefix, network_prefix, names, fitting)
                least = max(least, fitting)


def _agree(one: Tensor, other: Tensor) -> bool:
    """Whether two weights have the same shape. Scalars, such as counters of batches, always do, and tell nothing."""
    return one.shape == other.shape and one.ndim > 0


def by_prefix(state: Mapping[str, Tensor]) -> dict[str, dict[str, str]]:
    """For each prefix of the names, that is each module: from the rest of a name to the whole name in the state."""
    prefixes: dict[str, dict[str, str]] = {}
    for name in state:
        plain = INNER_WRAPPERS.sub("", name)
        ends = [0, *(dot.end() for dot in re.finditer(r"\.", plain))]
        for end in ends:
            prefixes.setdefault(plain[:end], {})[plain[end:]] = name
    return prefixes
