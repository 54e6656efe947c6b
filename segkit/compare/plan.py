"""The units of a comparison: one run folder for each loss and seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from segkit.config import Config, ConfigError

PLANNED = ("loss", "seed", "run.dir")  # what the comparison itself sets for each unit


@dataclass(frozen=True)
class Unit:
    """One training: which loss, which seed, the configuration that it amounts to, and its folder.

    part: the part of the split that it is judged on.
    """

    loss: str
    seed: int
    fold: int
    part: str
    config: Config
    folder: Path


def unit_folder(out: Path, loss: str, config: Config, split_hash: str) -> Path:
    """The folder's name holds digests of the configuration and the split, so others are another folder."""
    return out / "units" / f"{loss}-seed{config.seed}-{config.digest()}-{split_hash[:6]}"


def check_losses(losses: Sequence[str], baseline: str | None) -> list[str]:
    """Names without spaces. Raises ConfigError if one is missing or named twice, or the baseline is none of them."""
    names = [name.strip() for name in losses]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated or not all(names):
        raise ConfigError(f"expected names of losses that differ, separated by commas, got {','.join(names)}")
    if baseline is not None and baseline not in names:
        raise ConfigError(f"expected --baseline to be one of {', '.join(names)}, got {baseline}")
    return names


def check_overrides(overrides: Sequence[str]) -> None:
    """Raises ConfigError for an override of what the comparison sets itself."""
    for text in overrides:
        key = text.partition("=")[0]
        if key in PLANNED or key.startswith("loss."):
            raise ConfigError(f"override '{text}': the comparison sets {key}; use --losses, --seeds and --out")
