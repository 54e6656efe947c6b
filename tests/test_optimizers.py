"""Schedules against torch's own, and which parameters are decayed."""

import pytest
import torch

from segkit.models.unet import UNet
from segkit.optimizers import OPTIMIZERS, SCHEDULES, build_optimizer


def torch_factors(make, steps):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer)
    factors = []
    for _ in range(steps):
        factors.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return factors


@pytest.mark.parametrize(
    ("name", "arguments", "make"),
    [
        ("poly", {"power": 0.9}, lambda o: torch.optim.lr_scheduler.PolynomialLR(o, total_iters=20, power=0.9)),
        ("cosine", {}, lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=20)),
        ("constant", {}, lambda o: torch.optim.lr_scheduler.ConstantLR(o, factor=1.0)),
    ],
)
def test_schedules_equal_torch(name, arguments, make):
    schedule = SCHEDULES[name](steps=20, **arguments)
    torch.testing.assert_close([schedule(step) for step in range(20)], torch_factors(make, 20))


@pytest.mark.parametrize("name", SCHEDULES)
def test_warmup_rises_to_the_full_rate(name):
    schedule = SCHEDULES[name](steps=100, warmup=0.1)
    factors = [schedule(step) for step in range(100)]
    assert factors[0] == pytest.approx(1 / 11)
    assert factors[:11] == sorted(factors[:11])
    assert factors[10] == 1.0
    assert factors[10:] == sorted(factors[10:], reverse=True)


@pytest.mark.parametrize("warmup", [-0.1, 1.0])
def test_warmup_is_a_fraction(warmup):
    with pytest.raises(ValueError, match="a fraction of the steps"):
        SCHEDULES["poly"](steps=10, warmup=warmup)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_norms_and_biases_are_not_decayed(name):
    model = UNet(in_channels=1, out_channels=2, dims=2, widths=[4, 8])
    arguments = {"weight_decay": 0.1} if name != "adam" else {}
    optimizer = build_optimizer(name, model, {"lr": 0.5, **arguments})
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert set(decay) == {id(parameter) for parameter in model.parameters()}
    for parameter in model.parameters():
        assert decay[id(parameter)] == (0.1 if parameter.ndim > 1 and name != "adam" else 0)
    assert all(group["initial_lr"] == 0.5 for group in optimizer.param_groups)
