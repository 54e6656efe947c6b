"""Which decisions a command applies to its predictions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from segkit.experiment.decision_file import (
    AppliedDecisions,
    applied_decisions,
    default_file,
    differences,
    identity,
    read_decisions,
    settings_of,
)
from segkit.experiment.trained_model import TrainedModel
from segkit.utils.console import warn
from segkit.utils.errors import RunError

NONE = "none"


def chosen_decisions(
    given: str | None, members: Sequence[TrainedModel], orientations: Sequence[str], console: Console
) -> AppliedDecisions | None:
    """The decisions to apply, which are printed; None if there are none.

    given: a file, `none`, or None for the file beside a single checkpoint, if there is one and it is valid.
    orientations: as in `Origin`.

    Raises RunError if the given file was made for other checkpoints, with or without test-time augmentation, or with
    other settings of the prediction, such as another threshold.
    """
    file = _file(given, members)
    if file is None:
        return None
    content = read_decisions(file)
    reason = differences(content, *identity(members, orientations), settings_of(members[0]))
    if reason is not None and given is not None:
        raise RunError(f"the decisions {file} cannot be applied: {reason}")
    if reason is not None:
        warn(f"the decisions {file} are not applied: {reason}", console)
        return None
    applied = applied_decisions(content, file, members[0].labels)
    words = applied.decisions.in_words()
    if not words:
        return None
    console.print(
        f"decided on {content.part} by {content.metric}: {'; '.join(words)} ({file.name})",
        markup=False,
        highlight=False,
    )
    return applied


def _file(given: str | None, members: Sequence[TrainedModel]) -> Path | None:
    if given == NONE:
        return None
    if given is not None:
        return Path(given)
    beside = [default_file(Path(member.origin.checkpoint)) for member in members]
    return beside[0] if len(beside) == 1 and beside[0].exists() else None
