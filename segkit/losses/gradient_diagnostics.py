"""The contribution of each term of a loss to the gradient, for the log and for a warning at the start of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor, nn

DEAD = 1e-10  # a term whose gradient of all logits has a smaller norm contributes no gradient


def term_gradients(
    loss: nn.Module,
    logits: Tensor | Sequence[Tensor],
    mask: Tensor,
    pixel_weight: Tensor | None = None,
    maps: Mapping[str, Tensor] | None = None,
) -> dict[str, dict[str, Tensor]]:
    """Norms, shares and cosines of the terms' gradients with respect to the logits, as scalars on the device.

    The network is not involved. Returns three mappings:
    norm: the norm of each term's gradient by name, without the weight of the term.
    share: each term's share of the sum of the weighted norms; 0 if all are 0.
    cosine: the cosine between the gradients of two terms, by `first, second`.
    """
    heads = [logits] if isinstance(logits, Tensor) else list(logits)
    # unscaled gradients would underflow in half precision
    leaves = [head.detach().to(torch.promote_types(head.dtype, torch.float32)).requires_grad_() for head in heads]
    inputs = leaves[0] if isinstance(logits, Tensor) else leaves
    terms: dict[str, Tensor] = loss.terms(inputs, mask, pixel_weight, maps=maps)  # pyright: ignore[reportCallIssue]
    rows = []
    for value in terms.values():
        head_gradients = torch.autograd.grad(value, leaves, retain_graph=True, materialize_grads=True)
        rows.append(torch.cat([gradient.flatten() for gradient in head_gradients]).float())
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
    """A warning for each term whose gradient on the first batch is negligible. norms: by the name of the term."""
    return [
        f"{name} contributes no gradient on the first batch (norm {norm:.1g}): check that the batch contains a class "
        "that is counted, and check eps, class weights and the ignore value"
        for name, norm in norms.items()
        if norm < DEAD
    ]
