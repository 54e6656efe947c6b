"""Loading the pretrained weights that a network asks for, once, when a training begins.

A file is found (published weights are downloaded into the caches of the Hugging Face hub and of torch), hashed, read
without running code, and assigned to the network: by name, or by order where the names are those of another library.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from segkit.models.initial_weights import InitialWeights, initial_weights
from segkit.training.assigned_weights import Assigned, assign
from segkit.training.checkpoint import CheckpointError, check_fitting
from segkit.training.init_file import digest, read_content
from segkit.training.tensor_pickle import shown
from segkit.training.weight_names import by_preference, weight_sets
from segkit.training.weights_file import WeightsFile, find_weights, local_file
from segkit.utils.text import listed


@dataclass(frozen=True)
class LoadedEncoder:
    """What was loaded.

    origin: the file, as plain data for checkpoints: `source`, `file`, `sha256`, and `hub` and `revision` of a download.
    """

    origin: dict[str, str]
    assigned: Assigned
    part: str

    def describe(self) -> list[str]:
        """Messages for the user, one line each."""
        taken, origin = self.assigned, self.origin
        where = f"{origin['source']} ({origin['file']}, SHA-256 {origin['sha256'][:16]})"
        how = "in the order of the file, all shapes agree" if taken.by_order else "by name"
        part = taken.part.rstrip(".") or self.part
        lines = [f"loaded {len(taken.weights)} of {taken.expected} {part} weights from {where}, {how}", *taken.notes]
        if taken.adapted:
            lines.append(f"adapted to {taken.channels} image channels: {', '.join(taken.adapted)}")
        if taken.left_out:
            lines.append(f"not used, since the classes differ: {listed(taken.left_out)}")
        if taken.unused:
            lines.append(f"only in the file, such as its classifier: {listed(taken.unused)}")
        return lines


def load_initial_weights(network: nn.Module) -> LoadedEncoder | None:
    """Load the pretrained weights that a network asks for. None if it asks for none.

    Raises CheckpointError if they cannot be found, read or assigned, or are not finite.
    """
    initial = initial_weights(network)
    if initial is None or not initial.pretrained:
        return None
    module = network.get_submodule(initial.module)
    file = find_weights(initial)
    content = read_content(file.path)
    if initial.published is not None and initial.published.library == "timm":
        content = _named_by_timm(initial, content, file.path)
    assigned = assign(content, module.state_dict(), initial, file.path)
    check_fitting(file.path, assigned.weights, module.state_dict())
    module.load_state_dict(assigned.weights, strict=False)
    return LoadedEncoder(_origin(initial, file), assigned, initial.part)


def current_digest(source: str | Path, recorded: Mapping[str, str]) -> str:
    """The SHA-256 of the weights that a configuration names now, or the recorded one where they are not at hand.

    A run that has started does not need them any more, and published weights are not downloaded to compare them.
    """
    file = local_file(source)
    return recorded["sha256"] if file is None else digest(file)


def _origin(initial: InitialWeights, file: WeightsFile) -> dict[str, str]:
    plain = {"source": str(initial.source), "file": file.path.name, "sha256": digest(file.path)}
    published = {} if initial.published is None else {"name": initial.published.name}
    return {**plain, **published, **file.download}


def _named_by_timm(initial: InitialWeights, content: Any, path: Path) -> dict[str, Tensor]:
    """Published weights with the names of timm's present code, which timm itself converts."""
    import timm

    published: Any = initial.published
    sets = weight_sets(content)
    if not sets:
        raise CheckpointError(f"{path}: expected a mapping from names to tensors, got {shown(content)}")
    state = sets[by_preference(sets)[0]]
    try:
        whole = timm.create_model(published.name, pretrained=True, pretrained_cfg_overlay={"state_dict": state})
    except (RuntimeError, KeyError) as error:
        raise CheckpointError(f"timm cannot load its weights {published.name}: {error}") from error
    return whole.state_dict()
