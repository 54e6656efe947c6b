"""The work of one of two processes that share a batch; test_all_reduce.py starts it.

python loss_processes.py RANK FOLDER: reads FOLDER/task.pt, writes FOLDER/RANK.pt.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from segkit.labels import Labels
from segkit.losses import build_loss

SHARE = {0: slice(0, 1), 1: slice(1, 4)}  # the images of each process


def main(rank: int, folder: Path) -> None:
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
        counts = {name: None if count is None else count.item() for name, count in normaliser.counts.items()}
        results[key] = (value.detach(), own.grad, counts)
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
