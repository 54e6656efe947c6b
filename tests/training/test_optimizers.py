"""Learning-rate schedules against those of PyTorch, and the parameter groups of optimisers."""

import pytest
import torch

from segkit.models.unet import UNet
from segkit.training.lr_schedules import SCHEDULES
from segkit.training.optimizers import OPTIMIZERS, Grouping, build_optimizer, encoder_blocks, freeze


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
        (
            "one_cycle",
            # PyTorch reaches the end at the last step, segkit one step later; and its rise is one step shorter
            {"rise": {"steps": 6}},
            lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=1.0, total_steps=21, pct_start=7 / 21),
        ),
    ],
)
def test_schedules_equal_torch(name, arguments, make):
    schedule = SCHEDULES[name](steps=20, **arguments)
    torch.testing.assert_close([schedule(step) for step in range(20)], torch_factors(make, 20))


@pytest.mark.parametrize("warmup", [{"fraction": 0.1}, {"steps": 10}, {"epochs": 2.5}])
@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "one_cycle"])
def test_warmup_rises_to_the_full_rate(name, warmup):
    schedule = SCHEDULES[name](steps=100, steps_per_epoch=4, warmup=warmup)
    factors = [schedule(step) for step in range(100)]
    assert factors[0] == pytest.approx(1 / 11)
    assert factors[:11] == sorted(factors[:11])
    assert factors[10] == 1.0
    assert factors[10:] == sorted(factors[10:], reverse=True)


def test_warmup_is_shorter_than_the_run():
    with pytest.raises(ValueError, match="shorter than the 10 steps of the run, got 10 steps"):
        SCHEDULES["poly"](steps=10, warmup={"fraction": 1.0})


def test_plateau_equals_torch():
    scores = [0.1, 0.3, 0.3, 0.2, 0.35, 0.3, 0.3, 0.34, 0.31, 0.2]
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    expected = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, mode="max", factor=0.5, patience=1, threshold=1e-4, threshold_mode="abs"
    )
    plateau = SCHEDULES["plateau"](steps=100, steps_per_epoch=1, patience={"epochs": 2}, factor=0.5)
    for step, score in enumerate(scores):
        expected.step(score)
        plateau.observe(step, score)
        assert plateau(step + 1) == optimizer.param_groups[0]["lr"]


def test_groups_by_rate_and_decay():
    model = UNet(in_channels=1, out_channels=2, dims=2, widths=[4, 8, 16])
    optimizer = build_optimizer("adamw", model, {"lr": 1e-2}, Grouping(encoder_lr=0.1, layer_decay=0.5))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    settings = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            settings[names[id(parameter)]] = group["initial_lr"], group["weight_decay"]
    assert settings.keys() == set(names.values())
    for name, parameter in model.named_parameters():
        depth = int(name.split(".")[1]) if name.startswith("encoder.") else None
        rate = 1e-2 if depth is None else 1e-3 * 0.5 ** (2 - depth)
        assert settings[name] == (pytest.approx(rate), 1e-2 if parameter.ndim > 1 else 0.0), name
    single_group = build_optimizer("adamw", model, {"lr": 1e-2}, Grouping(decay_norms_and_biases=True))
    assert [group["weight_decay"] for group in single_group.param_groups] == [1e-2]
    with pytest.raises(ValueError, match=r"encoder_lr .*encoder or backbone, but this network has weight, bias"):
        build_optimizer("sgd", torch.nn.Linear(2, 2), {}, Grouping(encoder_lr=0.1))


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


class Custom(torch.nn.Module):
    """A network of a plugin, which may hold other networks."""

    def __init__(self, **modules):
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)


def linear():
    return torch.nn.Linear(2, 2)


def layers():
    return torch.nn.Sequential(linear(), linear())


@pytest.mark.parametrize("name", ["encoder", "backbone"])
@pytest.mark.parametrize("wrappers", [(), ("network",), ("module", "model")])
def test_a_module_named_as_an_encoder_is_recognised(name, wrappers):
    model = Custom(**{name: layers()}, head=linear())
    for wrapper in reversed(wrappers):
        model = Custom(**{wrapper: model})
    path = ".".join((*wrappers, name))
    assert encoder_blocks(model) == [f"{path}.0", f"{path}.1"]
    freeze(model, ["encoder"])
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained == [".".join((*wrappers, "head", part)) for part in ("weight", "bias")]


@pytest.mark.parametrize("encoder", ["resnet18", "tu-test_resnet"])
def test_a_network_of_a_plugin_has_the_blocks_of_its_encoder(encoder):
    """Encoders of smp itself, and those of timm, which smp wraps once more."""
    smp = pytest.importorskip("segmentation_models_pytorch")
    blocks = encoder_blocks(smp.Unet(encoder, encoder_weights=None))
    assert len(blocks) >= 5
    assert all(block.startswith("encoder.") for block in blocks)
    assert [block for block in blocks if "layer" in block] == sorted(block for block in blocks if "layer" in block)


def test_rates_of_an_encoder_without_effect_are_refused():
    frozen, single = Custom(encoder=layers(), head=linear()), Custom(encoder=Custom(only=layers()), head=linear())
    freeze(frozen, ["encoder"])
    for grouping in (Grouping(encoder_lr=0.1), Grouping(layer_decay=0.5)):
        with pytest.raises(ValueError, match="encoder that is trained, but it is frozen"):
            build_optimizer("sgd", frozen, {}, grouping)
    with pytest.raises(ValueError, match=r"several blocks, but this network has one, encoder\.only; use encoder_lr"):
        build_optimizer("sgd", single, {}, Grouping(layer_decay=0.5))
    build_optimizer("sgd", single, {}, Grouping(encoder_lr=0.5))


def test_the_attribute_comes_before_names():
    model = Custom(encoder=layers(), stem=layers())
    model.encoder_blocks = ("stem.1", "stem.0")
    assert encoder_blocks(model) == ["stem.1", "stem.0"]
    assert encoder_blocks(Custom(inner=model)) == ["inner.stem.1", "inner.stem.0"]
    model.encoder_blocks = ("stem.0", "stem.10", "ste")
    with pytest.raises(ValueError, match=r"no parameter belongs to stem.10, ste$"):
        encoder_blocks(model)


def test_modules_called_encoder_blocks_are_not_the_attribute():
    assert encoder_blocks(Custom(encoder_blocks=layers(), head=linear())) == []


def test_freeze_takes_patterns_and_the_encoder():
    model = Custom(encoder=layers(), neck=layers(), head=linear())
    freeze(model, ["encoder", "neck.1.*"])
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained == ["neck.0.weight", "neck.0.bias", "head.weight", "head.bias"]
    with pytest.raises(ValueError, match=r"matches 'encoder', and the network has no .*or backbone; .*stem\.\*"):
        freeze(Custom(stem=layers()), ["encoder"])
    with pytest.raises(ValueError, match=r"matches 'nec'; the names are encoder\.\*, neck\.\*, head\.\*"):
        freeze(model, ["nec"])
    with pytest.raises(ValueError, match="encoder leaves no trainable parameter"):
        freeze(Custom(encoder=layers()), ["encoder"])
