"""The units of a comparison: one run folder for each loss and seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from segkit.config import Config


@dataclass(frozen=True)
class Unit:
    """One training: which loss, which seed, the configuration that it amounts to, and its folder."""

    loss: str
    seed: int
    fold: int
    config: Config
    folder: Path


def unit_folder(out: Path, loss: str, config: Config) -> Path:
    """The folder's name holds the digest of the configuration, so another configuration is another folder."""
    return out / "units" / f"{loss}-seed{config.seed}-{config.digest()}"


def check_losses(losses: Sequence[str]) -> list[str]:
    """Names without spaces; raises ValueError if one is missing or named twice."""
    names = [name.strip() for name in losses]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated or not all(names):
        raise ValueError(f"expected names of losses that differ, separated by commas, got {','.join(names)}")
    return names
