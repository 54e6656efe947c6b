"""Losses of the studies in docs/results.md that nobody should train with: artefacts of published code."""

import torch
from torch import Tensor, nn

from segkit.labels import Labels, Target
from segkit.losses.custom import valid_logits


def class_numbers(target: Target) -> Tensor:
    """The class of each pixel, [B, *S]."""
    if target.index is None:
        raise ValueError("expected a mask of class numbers, got one-hot masks")
    return target.index


class LovaszOnLogits(nn.Module):
    """The Lovász extension of the Jaccard loss at the errors |onehot - logit|, as if logits were probabilities.

    The softmax of Berman et al. (2018) is missing, and absent classes count, as in the published comparison of losses
    by Ma et al. (2021). The errors have no bound, and a logit above 1 at a pixel of the class is an error again.
    Multiclass mode.
    """

    def __init__(self, *, labels: Labels) -> None:
        super().__init__()
        self.labels = labels

    def forward(self, logits: Tensor, target: Target) -> Tensor:
        logits, index = valid_logits(logits, target).float(), class_numbers(target)
        valid = target.valid if target.valid is not None else torch.ones_like(index, dtype=torch.bool)
        losses = []
        for channel in range(self.labels.channels):
            present = (index == channel).to(logits.dtype)
            errors = ((present - logits[:, channel]).abs() * valid).flatten()
            errors, order = errors.sort(descending=True)
            reference = (present * valid).flatten()[order]
            intersection = reference.sum() - reference.cumsum(0)
            union = reference.sum() + (1 - reference).cumsum(0)
            jaccard = 1 - intersection / union
            losses.append((errors * jaccard.diff(prepend=jaccard.new_zeros(1))).sum())
        return torch.stack(losses).mean()


class ExplodingGeneralizedDice(nn.Module):
    """Generalised Dice of each image with the weights 1 / (reference + 1e-10)^2 (Sudre et al. 2017, without care).

    A class that is absent from an image has the weight 1e20. The denominator then consists of this class alone, and its
    numerator is 0: the loss is 1, and its gradient vanishes for all classes.
    """

    def __init__(self, *, labels: Labels) -> None:
        super().__init__()
        self.labels = labels

    def forward(self, logits: Tensor, target: Target) -> Tensor:
        probabilities = self.labels.probabilities(valid_logits(logits, target).float())
        onehot = self.labels.onehot(target).to(probabilities.dtype)
        if target.valid is not None:
            valid = target.valid if target.valid.ndim == onehot.ndim else target.valid.unsqueeze(1)
            probabilities, onehot = probabilities * valid, onehot * valid
        tp, predicted, reference = (
            product.flatten(2).sum(2) for product in (probabilities * onehot, probabilities, onehot)
        )
        weights = 1 / (reference + 1e-10) ** 2
        ratio = (2 * (weights * tp).sum(1) + 1e-5) / ((weights * (predicted + reference)).sum(1) + 1e-5)
        return (1 - ratio).mean()


LOSSES = {
    "lovasz_on_logits": LovaszOnLogits,
    "exploding_generalized_dice": ExplodingGeneralizedDice,
}
