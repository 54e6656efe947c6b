"""Two gloo processes with unequal numbers of valid pixels, and gradients accumulated over micro-batches."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from segkit.losses import LOSSES, build_loss

from support.loss_oracle import IGNORE_INDEX, MODES, MODES_OF, VARIANTS, labels_of, value_and_gradient
from support.loss_processes import SHARE, compute_share
from support.processes import run_ranks

# losses that are documented as that of each process alone; histograms are summed over the processes
LOCAL = ("topk_cross_entropy", "ohem_cross_entropy")
HISTOGRAM = [({"name": name, "bins": 4096}, MODES_OF.get(name, MODES)) for name in LOSSES if name.startswith("lovasz")]


def is_local(options):
    exact = options.get("mode") == "exact" and options.get("per", "batch") == "batch"
    return options["name"] in LOCAL or exact


TASKS = {
    f"{'-'.join(str(value) for value in options.values())}-{mode}": (options, mode)
    for options, modes in [*VARIANTS, *HISTOGRAM]
    for mode in modes
    if not is_local(options)
}


def images(mode, seed=0):
    """Four images; the first is mostly ignored, and class 1 is absent from the last."""
    rng = torch.Generator().manual_seed(seed)
    labels = labels_of(mode)
    logits = 2 * torch.randn(4, labels.channels, 5, 6, generator=rng, dtype=torch.float64)
    shape = (4, labels.channels, 5, 6) if mode == "multilabel" else (4, 5, 6)
    mask = torch.randint(len(labels.names) if mode == "multiclass" else 2, shape, generator=rng, dtype=torch.uint8)
    mask[0][..., 1:, :] = IGNORE_INDEX
    mask[3][mask[3] == 1] = 0
    return logits, mask


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """The results of two processes for every task."""
    folder = tmp_path_factory.mktemp("processes")
    tasks = {key: (list(labels_of(mode).names), mode, options, *images(mode)) for key, (options, mode) in TASKS.items()}
    torch.save(tasks, folder / "task.pt")
    run_ranks(compute_share, (folder,), len(SHARE))
    return [torch.load(folder / f"{rank}.pt") for rank in SHARE]


@pytest.mark.parametrize("key", TASKS)
def test_two_processes_compute_the_loss_and_gradient_of_the_whole_batch(key, two_processes):
    options, mode = TASKS[key]
    logits, mask = images(mode)
    value, gradient = value_and_gradient(build_loss(options, labels_of(mode)), logits, mask)
    for results in two_processes:
        assert_close(results[key][0], value, rtol=1e-6, atol=1e-12)
    # DDP averages over the processes
    averaged = torch.cat([results[key][1] for results in two_processes]) / 2
    assert_close(averaged, gradient, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("key", TASKS)
def test_the_normaliser_counts_over_all_processes(key, two_processes):
    options, mode = TASKS[key]
    mask = images(mode)[1]
    expected = build_loss(options, labels_of(mode)).normaliser(list(mask.split(1))).counts
    for results in two_processes:
        assert results[key][2].keys() == expected.keys()
        for name, count in expected.items():
            assert results[key][2][name] == (None if count is None else pytest.approx(count.tolist()))


ADDITIVE = {
    key: task
    for key, task in TASKS.items()
    if task[0].get("per") == "image"
    or "cross_entropy" in task[0]["name"]
    or task[0]["name"] in ("focal", "margin_label_smoothing")
    if not task[0]["name"].startswith("lovasz")
    # the sum of these weights needs the maps, so it is not known from the masks
    if not (task[0]["name"] == "border_cross_entropy" and task[0].get("normalize") == "weights")
}


@pytest.mark.parametrize("key", ADDITIVE)
def test_micro_batches_add_up_to_the_large_batch(key):
    options, mode = TASKS[key]
    logits, mask = images(mode)
    loss = build_loss(options, labels_of(mode))
    expected = value_and_gradient(loss, logits, mask)
    parts = list(zip(logits.split([1, 3]), mask.split([1, 3]), strict=True))
    normaliser = loss.normaliser([part for _, part in parts])
    results = [value_and_gradient(loss, *part, normaliser=normaliser) for part in parts]
    assert_close((sum(value for value, _ in results), torch.cat([gradient for _, gradient in results])), expected)


def test_terms_that_are_defined_on_the_micro_batch_are_averaged():
    logits, mask = images("multiclass")
    loss = build_loss(["dice", "topk_cross_entropy", "lovasz_softmax"], labels_of("multiclass"))
    normaliser = loss.normaliser([mask[:2], mask[2:]])
    assert set(normaliser.counts.values()) == {None}
    halved = loss.terms(logits[:2], mask[:2], normaliser=normaliser)
    whole = loss.terms(logits[:2], mask[:2])
    assert_close(halved, {name: value / 2 for name, value in whole.items()})
