"""The cases on which losses disagree most."""

from __future__ import annotations

from typing import Any

import numpy as np

from segkit.compare.score_table import Scores

LISTED = 8  # cases


def disagreement(scores: Scores) -> list[dict[str, Any]]:
    """The cases with the largest difference between losses, the largest first.

    The score of a loss on a case is its mean over classes and runs. Cases on which some loss has no score are left out,
    as are all cases if there is only one loss.

    Returns:
        For each case a dictionary with `case`, `spread` (highest minus lowest mean), `means` of each loss, and the
        names of the losses with the `highest` and the `lowest` mean.
    """
    if len(scores.losses) < 2:
        return []
    means = np.stack([scores.case_means(loss) for loss in scores.losses])
    spread = np.where(np.isnan(means).any(0), -np.inf, means.max(0) - means.min(0))
    order = np.argsort(-spread, kind="stable")[:LISTED]
    return [
        {
            "case": scores.cases[number],
            "spread": float(spread[number]),
            "means": dict(zip(scores.losses, means[:, number].tolist(), strict=True)),
            "highest": scores.losses[int(means[:, number].argmax())],
            "lowest": scores.losses[int(means[:, number].argmin())],
        }
        for number in order
        if np.isfinite(spread[number])
    ]
