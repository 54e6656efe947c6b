"""What each term of a loss does to the gradient, for the log and for a warning when a run starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor, nn

DEAD = 1e-10  # a gradient of all logits below this norm trains nothing


def term_gradients(loss: nn.Module, logits: Tensor | Sequence[Tensor], mask: Tensor) -> dict[str, dict[str, Tensor]]:
    """Scalars on the device, from gradients with respect to the logits; the network is not involved.

    norm: of each term by name, without its weight. share: of the sum of the weighted norms, what each term has; where
    all are 0, 0. cosine: between the gradients of two terms, by `first, second`.
    """
    heads = [logits] if isinstance(logits, Tensor) else list(logits)
    # half precision would lose the gradients, which are not scaled here
    leaves = [head.detach().to(torch.promote_types(head.dtype, torch.float32)).requires_grad_() for head in heads]
    terms: dict[str, Tensor] = loss.terms(leaves[0] if isinstance(logits, Tensor) else leaves, mask)  # pyright: ignore
    rows = []
    for value in terms.values():
        parts = torch.autograd.grad(value, leaves, retain_graph=True, materialize_grads=True)
        rows.append(torch.cat([part.flatten() for part in parts]).float())
    gradients = torch.stack(rows)
    products = gradients @ gradients.mT
    norms = products.diagonal().sqrt()
    weights = (loss.loss if hasattr(loss, "loss") else loss).weights  # pyright: ignore[reportAttributeAccessIssue]
    weighted = norms * weights.abs().to(norms.dtype)  # pyright: ignore
    share = weighted / weighted.sum().clamp(min=torch.finfo(norms.dtype).tiny)
    cosine = products / (norms.unsqueeze(0) * norms.unsqueeze(1)).clamp(min=torch.finfo(norms.dtype).tiny)
    names = list(terms)
    return {
        "norm": dict(zip(names, norms, strict=True)),
        "share": dict(zip(names, share, strict=True)),
        "cosine": {f"{names[a]}, {names[b]}": cosine[a, b] for a, b in combinations(range(len(names)), 2)},
    }


def dead_terms(norms: Mapping[str, float]) -> list[str]:
    """A warning for each term whose gradient on the first batch is nothing, from the norms by name."""
    return [
        f"the gradient of {name} is {norm:.1g} on the first batch, so it trains nothing: look whether the batch holds "
        "a class that counts, and at eps, class weights and the ignore value"
        for name, norm in norms.items()
        if norm < DEAD
    ]
