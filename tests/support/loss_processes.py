"""The work of one of two processes that share a batch."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist

from segkit.labels import Labels
from segkit.losses import build_loss

SHARE = {0: slice(0, 1), 1: slice(1, 4)}  # the images of each process


def compute_share(rank: int, folder: Path) -> None:
    """Compute the tasks of `folder/task.pt` for the images of this process, and write `folder/RANK.pt`."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    results = {}
    for key, (names, mode, spec, logits, mask) in torch.load(folder / "task.pt").items():
        labels = Labels(names, mode=mode, ignore_index=255)
        loss = build_loss(spec, labels, group=dist.group.WORLD)
        own = logits[SHARE[rank]].clone().requires_grad_()
        value = loss(own, mask[SHARE[rank]])
        value.backward()
        normaliser = loss.normaliser(list(mask[SHARE[rank]].split(1)))
        counts = {name: None if count is None else count.tolist() for name, count in normaliser.counts.items()}
        results[key] = (value.detach(), own.grad, counts)
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()
