"""Segmentation losses on logits, built by `build_loss` from a name, a mapping or a list of terms.

The pixel and region losses compute value and gradient in at most two logit sizes of extra memory, the gradient
included. Most implementations in other libraries need three to eight; docs/benchmarks/losses.md has the measured table,
and docs/explanation/losses.md the losses that need more.

The formula of a loss is in the docstring of its class, and the classes are listed in `build.LOSSES`. The memory is
saved by processing the batch in chunks with a hand-written backward: see `shared_pass`, which computes the sums over
pixels; `kernels`, which has the arithmetic of a chunk; and `chunking`, which cuts the batch. To check the result, read
tests/support/reference_losses.py and spatial_references.py, which have every loss as a few lines of plain
differentiable torch; tests/losses/test_reference.py compares value and gradient with it in float64.
"""

from segkit.losses.build import LOSSES, RECIPES, build_loss, expanded
from segkit.losses.per_case import PerCase
from segkit.losses.weighted_sum import WeightedSum

__all__ = ["LOSSES", "RECIPES", "PerCase", "WeightedSum", "build_loss", "expanded"]
