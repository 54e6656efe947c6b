"""What holds on a CUDA device: skipped steps, random states, pinned batches, deterministic volumes, planned memory."""

import pytest
import torch

from segkit.data.loaders import training_loader
from segkit.experiment.build import build_augment_from, build_data, build_labels, load_config
from segkit.experiment.build_training import training_set
from segkit.experiment.planning import memory_limit
from segkit.models import MODELS
from segkit.training.optimizers import OPTIMIZERS, build_optimizer, prepare, skips_by_flag
from segkit.utils.seeding import random_state, set_random_state

DEVICE = torch.device("cuda")
SMALL = {
    "labels": {"names": ["background", "a"]},
    "data": {"name": "synthetic", "size": [32, 32], "train": 4, "validation": 1, "test": 1},
    "model": "unet",
    "loss": "dice",
    "optimizer": "adamw",
    "train": {"steps": 1},
}


@pytest.mark.cuda
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_flag_on_the_device_skips_a_step(name):
    network = torch.nn.Linear(4, 3, device=DEVICE)
    optimizer = build_optimizer(name, network, {"lr": 0.1})
    prepare(optimizer)
    assert skips_by_flag(optimizer)
    changed = []
    for flag in (1.0, 0.0, 1.0):
        before = network.weight.detach().clone()
        network(torch.randn(5, 4, device=DEVICE)).square().sum().backward()
        optimizer.found_inf = torch.tensor(flag, device=DEVICE)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        changed.append(not torch.equal(network.weight, before))
    assert changed == [False, True, False]


@pytest.mark.cuda
def test_the_random_state_of_the_device_is_restored():
    state = random_state(DEVICE)
    first = torch.rand(5, device=DEVICE), torch.rand(5)
    set_random_state(state, DEVICE)
    for before, again in zip(first, (torch.rand(5, device=DEVICE), torch.rand(5)), strict=True):
        assert torch.equal(before, again)


@pytest.mark.cuda
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_pinned(workers):
    config = load_config(SMALL)
    labels = build_labels(config)
    data = build_data(config, labels, multiple=lambda _dims: 1)
    samples = training_set(config, data, build_augment_from(config, labels))
    loader = training_loader(samples, batch=2, workers=workers, steps=2, seed=0, start=0, multiple=1, pin=True)
    for batch in loader:
        assert batch["image"].is_pinned()
        assert batch["mask"].is_pinned()


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["unet", "residual_encoder_unet"])
def test_volumes_are_trained_with_deterministic_operations_alone(name):
    options = {"residual": True} if name == "unet" else {}
    torch.manual_seed(0)
    network = MODELS[name](in_channels=1, out_channels=2, dims=3, widths=[4, 8, 16], **options).to(DEVICE)
    image = torch.randn(2, 1, 16, 16, 16, device=DEVICE)
    torch.use_deterministic_algorithms(True)
    try:
        gradients = []
        for _ in range(2):
            network.zero_grad()
            network(image).square().mean().backward()
            gradients.append([parameter.grad.clone() for parameter in network.parameters()])
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


@pytest.mark.cuda
def test_the_planned_memory_is_what_is_free():
    free, _total = torch.cuda.mem_get_info()
    limit = memory_limit(None, None)
    assert limit.gpu
    assert limit.gb == pytest.approx(free / 2**30, rel=0.1)
