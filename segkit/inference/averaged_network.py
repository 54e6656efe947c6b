"""The average of several networks over several orientations of an image, as a network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from segkit.inference.orientations import AS_IT_IS, Orientation
from segkit.labels import Labels


class AveragedNetwork(nn.Module):
    """The mean probabilities of networks over orientations, as logits: image [B, C, *S] -> float32 logits [B, K, *S].

    With `disagreement`, further channels say how much the predictions differ: their mutual information in nats, which
    is the entropy of the mean less the mean of the entropies, 0 where all are the same (Depeweg et al. 2018).

    networks: with the same image and labels.
    orientations: of the image; outputs are turned back.
    exchanged: pairs of channels that change places where left and right are flipped, such as left and right kidney.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        labels: Labels,
        orientations: Sequence[Orientation] = (AS_IT_IS,),
        exchanged: Sequence[tuple[int, int]] = (),
        *,
        disagreement: bool = False,
    ):
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.labels, self.orientations, self.disagreement = labels, tuple(orientations), disagreement
        self.order = list(range(labels.channels))
        for first, second in exchanged:
            self.order[first], self.order[second] = second, first

    def forward(self, image: Tensor) -> Tensor:
        if len(self.networks) == len(self.orientations) == 1 and self.orientations[0] == AS_IT_IS:
            return self._alone(image)
        mean: Tensor | None = None
        entropies: Tensor | None = None
        for probabilities in self._all_probabilities(image):
            if self.disagreement:
                found = entropy(probabilities, self.labels)
                entropies = found if entropies is None else entropies.add_(found)
            mean = probabilities if mean is None else mean.add_(probabilities)
        assert mean is not None
        number = len(self.networks) * len(self.orientations)
        mean = mean.div_(number)
        logits = self.labels.logits(mean)
        if entropies is None:
            return logits
        return torch.cat([logits, (entropy(mean, self.labels) - entropies.div_(number)).clamp_(min=0)], 1)

    def _alone(self, image: Tensor) -> Tensor:
        """The logits of a single network, which does not disagree with itself."""
        logits = self.networks[0](image).float()
        if not self.disagreement:
            return logits
        return torch.cat(
            [logits, logits.new_zeros(len(logits), disagreement_channels(self.labels), *logits.shape[2:])], 1
        )

    def _all_probabilities(self, image: Tensor) -> Iterator[Tensor]:
        """The probabilities by each network in each orientation, float32 [B, K, *S]."""
        for orientation in self.orientations:
            turned = orientation.apply(image)
            for network in self.networks:
                logits = network(turned).float()
                # a softmax turns -inf into 0; this keeps pixels that are not finite recognisable, as NaN
                probabilities = self.labels.probabilities(logits).add_(0 * logits.sum(1, keepdim=True))
                probabilities = orientation.undo(probabilities)
                yield probabilities[:, self.order] if orientation.mirrors_sides(image.ndim - 2) else probabilities


def entropy(probabilities: Tensor, labels: Labels) -> Tensor:
    """The entropy of predicted probabilities [B, K, *S] in nats: [B, 1, *S], or [B, K, *S] for overlapping classes.

    0 where a class is certain; at most ln K where all are equally probable, ln 2 for binary and overlapping classes.
    """
    if labels.mode == "multiclass":
        return torch.special.entr(probabilities).sum(1, keepdim=True)
    return torch.special.entr(probabilities) + torch.special.entr(1 - probabilities)


def disagreement_channels(labels: Labels) -> int:
    """The number of channels of `entropy`, and of the disagreement that follows the logits of an `AveragedNetwork`."""
    return labels.channels if labels.mode == "multilabel" else 1
