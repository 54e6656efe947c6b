"""A loss of one's own, as docs/how_to/extend.md shows it."""

from torch import Tensor, nn

from segkit.labels import Labels, Target
from segkit.losses.custom import masked_mean, valid_logits


class Brier(nn.Module):
    """Squared error of the class probabilities, mean over valid pixels and classes (Brier 1950)."""

    def __init__(self, *, labels: Labels) -> None:
        super().__init__()
        self.labels = labels

    def forward(self, logits: Tensor, target: Target) -> Tensor:
        probabilities = self.labels.probabilities(valid_logits(logits, target))
        error = (probabilities - self.labels.onehot(target).to(probabilities.dtype)) ** 2
        return masked_mean(error, target)


LOSSES = {"brier": Brier}
