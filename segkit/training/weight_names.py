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
    names: From the name in the network to that in the file, where they agree, with `.` and `_` taken for the same.
    named: The number of these weights without scalars, such as counters of batches, which some files lack.
    fitting: The number of those that agree in shape, too.
    rivals: Other sets of weights of the file that fit equally well, in words.
    """

    key: str
    state: Mapping[str, Tensor]
    file_prefix: str
    network_prefix: str
    names: Mapping[str, str]
    named: int
    fitting: int
    rivals: tuple[str, ...] = ()

    @property
    def is_average(self) -> bool:
        """Whether the names say that the weights are a moving average of those in training."""
        return names_average(f"{self.key}.{self.file_prefix}")

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
        dots = (self.network_prefix.count("."), self.file_prefix.count("."))
        return self.fitting, self.named, self.is_average, -_usual(self.key), -dots[0], -dots[1]

    @property
    def choice(self) -> tuple[str, ...]:
        """A note if other weights of the file would fit as well."""
        if not self.rivals:
            return ()
        why = "the moving average" if self.is_average else "by the order of the usual names"
        return (f"several sets of weights fit equally; took {self.where} ({why}), not {', '.join(self.rivals)}",)


def names_average(names: str) -> bool:
    """Whether keys and prefixes, joined by dots, say that weights are a moving average of those in training."""
    return not AVERAGES.isdisjoint(re.split(r"[._]", names.lower()))


def by_preference(sets: Mapping[str, Mapping[str, Tensor]]) -> list[str]:
    """The keys of sets of weights, in the order in which equal sets are taken: averages, then the usual keys."""
    return sorted(sets, key=lambda key: (not names_average(key), _usual(key)))


def _usual(key: str) -> int:
    return USUAL.index(key) if key in USUAL else len(USUAL)


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
            weights = [(network[name], state[source]) for name, source in names.items() if network[name].ndim]
            fitting = sum(here.shape == there.shape for here, there in weights)
            if fitting >= needed:
                yield Match(key, state, file_prefix, network_prefix, names, len(weights), fitting)
                least = max(least, fitting)


def by_prefix(state: Mapping[str, Tensor]) -> dict[str, dict[str, str]]:
    """For each prefix of the names, that is each module: from the rest of a name, dotted, to the whole name."""
    prefixes: dict[str, dict[str, str]] = {}
    for name in state:
        plain = unwrapped(name)
        ends = [0, *(dot.end() for dot in re.finditer(r"\.", plain))]
        for end in ends:
            prefixes.setdefault(plain[:end], {})[dotted(plain[end:])] = name
    return prefixes


def unwrapped(name: str) -> str:
    """A name without what wrappers put into it."""
    return INNER_WRAPPERS.sub("", name)


def dotted(name: str) -> str:
    """A name with a dot for each underscore: encoders of timm have underscores where its files have dots."""
    return name.replace("_", ".")
