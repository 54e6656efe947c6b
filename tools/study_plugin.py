"""Losses of the studies in docs/results.md, not for use: artefacts of published code, and a known handicap."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from segkit.labels import Labels, Target
from segkit.losses.custom import masked_mean, valid_logits


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

    A class that is absent from an image has the weight 1e20, so that numerator and denominator consist of this class
    alone, and the gradient of all others vanishes.
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


class NoisyCrossEntropy(nn.Module):
    """Cross-entropy against masks in which a share of the pixels got another class, drawn uniformly.

    The draw is a function of the mask alone, so a resumed training is the same. Multiclass mode.
    """

    def __init__(self, *, labels: Labels, share: float) -> None:
        super().__init__()
        if not 0 <= share <= 1:
            raise ValueError(f"noisy_cross_entropy: expected a share from 0 to 1, got {share}")
        self.labels, self.share = labels, share

    def forward(self, logits: Tensor, target: Target) -> Tensor:
        index, classes = class_numbers(target).long(), self.labels.channels
        position = torch.arange(index.numel(), device=index.device).view_as(index)
        generator = torch.Generator(index.device).manual_seed(int((index * (position % 65521)).sum()))
        wrong = torch.rand(index.shape, generator=generator, device=index.device) < self.share
        shift = torch.randint(1, classes, index.shape, generator=generator, device=index.device)
        noisy = torch.where(wrong, (index + shift) % classes, index)
        if target.valid is not None:
            noisy = noisy.where(target.valid, 0)  # ignored pixels are left out of the mean
        log_probabilities = functional.log_softmax(valid_logits(logits, target).float(), 1)
        return masked_mean(-log_probabilities.gather(1, noisy.unsqueeze(1)).squeeze(1), target)


LOSSES = {
    "lovasz_on_logits": LovaszOnLogits,
    "exploding_generalized_dice": ExplodingGeneralizedDice,
    "noisy_cross_entropy": NoisyCrossEntropy,
}
