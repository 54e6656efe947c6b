"""What a comparison decides once, at its first start, so that all of its units train alike: precision, weights.

Later starts, perhaps on another machine, take what the plan records.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from segkit.config import Config
from segkit.experiment.build import choose_device, weights_of
from segkit.experiment.build_training import with_precision
from segkit.training.checkpoint import CheckpointError
from segkit.training.init_file import digest, weights_digest
from segkit.training.weights_file import find_weights


def fixed_precision(base: Config, plan: Mapping[str, Any]) -> Config:
    """The configuration with the precision that `auto` stood for at the first start, or stands for on this machine."""
    if base.train.precision != "auto":
        return base
    recorded = plan.get("configuration", {}).get("train", {}).get("precision")
    if recorded is None:
        return with_precision(base, choose_device(base.device))
    return replace(base, train=base.train.model_copy(update={"precision": recorded}))


def digests_of_weights(base: Config, plan: Mapping[str, Any]) -> dict[str, str]:
    """Digests of the files of initial weights by the key that names them; empty without such files.

    Published weights are downloaded unless they are cached. Where a file is not at hand, the digest in the plan holds.

    Raises CheckpointError if a file is missing and no plan knows it.
    """
    recorded = plan.get("initial_weights", {})
    finders = {}
    if (init := base.train.init) is not None:
        finders["train.init"] = lambda: weights_digest(Path(init))
    known = weights_of(base) if base.model.args.get("weights", "none") != "none" else None
    if known is not None and known.pretrained:
        finders["model.weights"] = lambda: digest(find_weights(known).path)
    return {key: _found(find, recorded.get(key)) for key, find in finders.items()}


def _found(find: Any, recorded: str | None) -> str:
    try:
        return find()
    except CheckpointError:
        if recorded is None:
            raise
        return recorded
