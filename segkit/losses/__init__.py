"""Losses over logits: `build_loss` makes one from a name, a mapping or a list of terms."""

from segkit.losses.build import LOSSES, RECIPES, build_loss, expanded
from segkit.losses.weighted_sum import WeightedSum

__all__ = ["LOSSES", "RECIPES", "WeightedSum", "build_loss", "expanded"]
