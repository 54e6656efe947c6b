"""A battery over all networks of the table, and tests of the networks of MONAI against MONAI itself."""

import inspect
import io
import sys
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from segkit import Labels
from segkit.experiment.exported_network import ExportedNetwork, write_network
from segkit.inference.predictor import Predictor
from segkit.losses import build_loss
from segkit.losses.deep_supervision import DeepSupervision
from segkit.models import MODELS
from segkit.training.optimizers import Grouping, build_optimizer, encoder_blocks, freeze, frozen_modules
from segkit.utils.errors import MissingExtra
from segkit.utils.padding import padded

# a small configuration of each network; `image_size` stands for an image with that side along all axes
SMALL = {
    "unet": {"widths": [4, 4, 8]},
    "residual_encoder_unet": {"widths": [4, 4, 8]},
    "encoder_unet": {"encoder": "test_resnet", "decoder_widths": [4] * 5},
    "monai_unet": {"widths": [4, 4, 8]},
    "monai_attention_unet": {"widths": [4, 4, 8]},
    "monai_basic_unet": {"widths": [4] * 6},
    "monai_basic_unet_plusplus": {"widths": [4] * 6},
    "monai_dynunet": {"widths": [4, 4, 4, 8]},
    "monai_segresnet": {"width": 8},
    "monai_segresnet_ds": {"width": 8, "blocks": [1, 1, 1]},
    "monai_vnet": {},
    "monai_mednext": {"width": 2},
    "monai_swin_unetr": {"width": 12, "depths": [1, 2, 1, 1], "heads": [1, 2, 2, 2], "stochastic_depth": 0.1},
    "monai_unetr": {"image_size": 32, "width": 4, "hidden_width": 8, "mlp_width": 8, "heads": 2},
    "fcn_resnet50": {},
    "deeplabv3_resnet50": {},
    "deeplabv3_mobilenet": {},
    "lraspp_mobilenet": {},
}
NEEDS = {"encoder_unet": "timm", "monai_swin_unetr": "einops", "monai_unetr": "einops"}  # optional packages
TWO_DIMENSIONAL = {"encoder_unet", "fcn_resnet50", "deeplabv3_resnet50", "deeplabv3_mobilenet", "lraspp_mobilenet"}
HEAVY = {"fcn_resnet50", "deeplabv3_resnet50", "deeplabv3_mobilenet"}  # no small configuration
HEAVY_3D = {"monai_vnet", "monai_swin_unetr"}
DEEP = [name for name in SMALL if "deep_supervision" in inspect.signature(MODELS[name]).parameters]
LABELS = Labels(["background", "a", "b"])


def row(name, dims, *values, slow=False):
    """A case of a test, marked as slow for heavy networks."""
    slow = slow or name in HEAVY or (dims == 3 and name in HEAVY_3D)
    return pytest.param(
        name, dims, *values, marks=[pytest.mark.slow] if slow else [], id="-".join((name, f"{dims}D", *values))
    )


FLAT = [row(name, 2) for name in SMALL]
VOLUMES = [name for name in SMALL if name not in TWO_DIMENSIONAL]
ALL = FLAT + [row(name, 3) for name in VOLUMES]
ALL_SLOWLY = FLAT + [row(name, 3, slow=True) for name in VOLUMES]


def build(name, dims, channels=1, **options):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name], reason=f"{name} needs {NEEDS[name]}")
    options = SMALL[name] | options
    if "image_size" in options:
        options["image_size"] = [options["image_size"]] * dims
    torch.manual_seed(0)
    return MODELS[name](in_channels=channels, out_channels=3, dims=dims, **options)


def sides_of(network):
    return getattr(network, "fixed_size", None) or network.multiple


def smallest(network, dims, side=1):
    return padded((side,) * dims, sides_of(network), getattr(network, "minimum_pixels", 1))


def heads(logits):
    return logits if isinstance(logits, list) else [logits]


def batch_for_training(network):
    return 2 if any("BatchNorm" in type(module).__name__ for module in network.modules()) else 1


def test_every_network_has_a_row():
    assert set(SMALL) == set(MODELS)


@pytest.mark.parametrize(("name", "dims"), ALL)
def test_training_on_the_smallest_image(name, dims):
    """Every parameter has a gradient, and the logits have the sizes that the network states."""
    network = build(name, dims).train()
    size = smallest(network, dims)
    logits = heads(network(torch.randn(batch_for_training(network), 1, *size)))
    strides = getattr(network, "head_strides", ((1,) * dims,))
    assert [tuple(head.shape[1:]) for head in logits] == [
        (3, *(side // stride for side, stride in zip(size, axis, strict=True))) for axis in strides
    ]
    sum(head.square().sum() for head in logits).backward()
    missing = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert not missing
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())
    with torch.no_grad():
        assert network.eval()(torch.randn(1, 1, *size)).shape == (1, 3, *size)


@pytest.mark.parametrize(("name", "dims"), FLAT)
def test_no_smaller_image_is_enough(name, dims):
    """One pixel at the coarsest resolution, which some networks take."""
    network = build(name, dims).eval()
    least = padded((1,) * dims, sides_of(network))
    takes = least == smallest(network, dims)
    with nullcontext() if takes else pytest.raises(ValueError, match=r"[Ee]xpected (more than 1|image sides)"):
        network(torch.zeros(1, 1, *least))


@pytest.mark.parametrize(("name", "dims"), ALL_SLOWLY)
def test_bfloat16_gives_the_logits_of_float32(name, dims):
    network = build(name, dims, channels=5)
    image = torch.randn(2, 5, *smallest(network, dims, side=32))
    with torch.autocast("cpu", torch.bfloat16):
        sum(head.float().square().sum() for head in heads(network.train()(image))).backward()
        assert all(parameter.grad.isfinite().all() for parameter in network.parameters())
        with torch.no_grad():
            low = network.eval()(image).float()
    with torch.no_grad():
        assert F.cosine_similarity(low.flatten(), network(image).flatten(), 0) > 0.99


@pytest.mark.parametrize("channels", [1, 5])
@pytest.mark.parametrize(("name", "dims"), ALL_SLOWLY)
def test_images_of_odd_sizes_are_padded_with_zeros(name, dims, channels):
    network = build(name, dims, channels).eval()
    image = torch.randn(channels, *(27, 29, 5)[:dims])
    minimum = getattr(network, "minimum_pixels", 1)
    size = padded(image.shape[1:], sides_of(network), minimum)
    window = getattr(network, "fixed_size", None)
    predictor = Predictor(
        network, LABELS, torch.device("cpu"), sides_of(network), window=window, minimum_pixels=minimum
    )
    whole = torch.zeros(1, channels, *size)
    inside = tuple(map(slice, image.shape[1:]))
    whole[(0, slice(None), *inside)] = image
    with torch.inference_mode():
        torch.testing.assert_close(predictor(image), network(whole)[(..., *inside)])


@pytest.mark.parametrize(("name", "dims"), ALL_SLOWLY)
def test_weights_are_saved_and_loaded(name, dims):
    """The network is built on the meta device, as for an evaluation; all of its state is in its state_dict."""
    trained = build(name, dims)
    image = torch.randn(2, 1, *smallest(trained, dims))
    with torch.no_grad():
        trained(image)  # changes the statistics of batch norms
        expected = trained.eval()(image)
    file = io.BytesIO()
    torch.save(trained.state_dict(), file)
    file.seek(0)
    with torch.device("meta"):
        network = build(name, dims).eval()
        assert network(torch.zeros(2, 1, *image.shape[2:])).shape == expected.shape
    assert all(tensor.is_meta for tensor in [*network.parameters(), *network.buffers()])
    network.load_state_dict(torch.load(file, weights_only=True), assign=True)
    with torch.no_grad():
        torch.testing.assert_close(network(image), expected, rtol=0, atol=0)


@pytest.mark.parametrize(("name", "dims"), ALL_SLOWLY)
def test_memory_format_does_not_change_the_logits(name, dims):
    network = build(name, dims).double().eval()
    image = torch.randn(2, 1, *smallest(network, dims), dtype=torch.float64)
    last = torch.channels_last if dims == 2 else torch.channels_last_3d
    with torch.no_grad():
        expected = network(image)
        torch.testing.assert_close(network.to(memory_format=last)(image.to(memory_format=last)), expected)


COMPILED = [row(name, 2, "eager") for name in ("unet", "monai_dynunet")]
COMPILED += [row(name, 2, "inductor", slow=True) for name in SMALL]


@pytest.mark.compile
@pytest.mark.parametrize(("name", "dims", "backend"), COMPILED)
def test_compiled_network_gives_the_same_logits(name, dims, backend, request):
    if backend == "inductor" and name in NOT_BY_INDUCTOR:
        reason = "torch 2.14 compiles replicate padding wrongly; a training goes on without compilation"
        request.applymarker(pytest.mark.xfail(strict=True, reason=reason))
    network = build(name, dims).eval()
    image = torch.randn(2, 1, *smallest(network, dims))
    torch.compiler.reset()
    expected, logits = network(image), torch.compile(network, backend=backend)(image)
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-4)
    trained = heads(torch.compile(network.train(), backend=backend)(image))  # in eval() no deep supervision, for one
    sum(head.square().mean() for head in trained).backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())
    torch.compiler.reset()


NOT_BY_INDUCTOR = ("monai_basic_unet", "monai_basic_unet_plusplus")


class Wrapper(nn.Module):
    """A network inside another module, as a plugin may have it."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, image):
        return self.network(image)


@pytest.mark.parametrize(("name", "dims"), ALL_SLOWLY)
def test_encoder_blocks_are_in_the_order_of_the_forward_pass(name, dims):
    network = build(name, dims).eval()
    blocks, called = encoder_blocks(network), []
    for block in blocks:
        module = network.get_submodule(block)
        first = next((part for part in module.modules() if list(part.parameters(recurse=False))), module)
        first.register_forward_pre_hook(lambda _module, _inputs, block=block: called.append(block))
    with torch.no_grad():
        network(torch.zeros(1, 1, *smallest(network, dims)))
    assert list(dict.fromkeys(called)) == blocks
    assert len(blocks) >= 3


@pytest.mark.parametrize(("name", "dims"), ALL_SLOWLY)
def test_a_frozen_encoder_keeps_its_weights_and_statistics(name, dims):
    network = build(name, dims).train()
    freeze(network, ["encoder"])
    for module in frozen_modules(network):  # as in a training
        module.eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    image = torch.randn(2, 1, *smallest(network, dims))
    optimizer = build_optimizer("sgd", network, {"lr": 0.1})
    sum(head.square().sum() for head in heads(network(image))).backward()
    optimizer.step()
    inside = tuple(f"{block}." for block in encoder_blocks(network))
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert not any(name.startswith(inside) for name in changed)
    parameters = dict(network.named_parameters())
    assert {name for name, parameter in parameters.items() if not parameter.requires_grad} == {
        name for name in parameters if name.startswith(inside)
    }


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize(("name", "dims"), ALL_SLOWLY)
def test_learning_rates_fall_to_the_first_block(name, dims, wrapped):
    network = build(name, dims)
    network = Wrapper(network) if wrapped else network
    optimizer = build_optimizer("adamw", network, {"lr": 1.0}, Grouping(encoder_lr=0.1, layer_decay=0.5))
    rates = {id(each): group["initial_lr"] for group in optimizer.param_groups for each in group["params"]}
    by_name = {name: rates[id(parameter)] for name, parameter in network.named_parameters()}
    blocks = encoder_blocks(network)
    for number, block in enumerate(reversed(blocks)):
        inside = {rate for name, rate in by_name.items() if name.startswith(f"{block}.")}
        assert inside == {0.1 * 0.5**number}
    others = {rate for name, rate in by_name.items() if not name.startswith(tuple(f"{block}." for block in blocks))}
    assert others == {1.0}


@pytest.mark.parametrize(("name", "dims"), [row(name, dims) for name in DEEP for dims in (2, 3)])
def test_the_loss_takes_the_logits_of_all_resolutions(name, dims):
    network = build(name, dims, deep_supervision=True).train()
    size = list(padded((2,) * dims, network.multiple, 2 * network.minimum_pixels))
    logits = network(torch.randn(2, 1, *size))
    assert len(logits) == len(network.head_strides) > 1
    for head, strides in zip(logits, network.head_strides, strict=True):
        assert [side * stride for side, stride in zip(head.shape[2:], strides, strict=True)] == size
    mask = torch.randint(0, 3, (2, *size), dtype=torch.uint8)
    DeepSupervision(build_loss("dice_ce", LABELS))(logits, mask).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    single = build(name, dims, deep_supervision=False).train()
    assert single(torch.randn(2, 1, *size)).shape == (2, 3, *size)
    assert single.head_strides == ((1,) * dims,)


# --- the networks of MONAI -------------------------------------------------------------------------------------------

ANISOTROPIC = {
    "strides": [[2, 2, 1], [2, 2, 2], [2, 2, 2]],
    "kernels": [[3, 3, 1], [3, 3, 3], [3, 3, 3], [3, 3, 5]],
}


@pytest.mark.parametrize("residual", [False, True])
def test_dynunet_equals_that_of_monai(residual):
    """MONAI resizes the logits of all resolutions to the finest one (nearest neighbour) and stacks them."""
    from monai.networks.nets.dynunet import DynUNet

    network = build("monai_dynunet", 3, deep_supervision=True, residual=residual, norm="batch", **ANISOTROPIC)
    assert network.multiple == (8, 8, 4)
    strides, kernels = [[1, 1, 1], *ANISOTROPIC["strides"]], ANISOTROPIC["kernels"]
    reference = DynUNet(
        3, 1, 3, kernels, strides, strides[1:], [4, 4, 4, 8], norm_name="batch", deep_supervision=True,
        deep_supr_num=2, res_block=residual,
    )  # fmt: skip
    reference.load_state_dict(network.state_dict())
    image = torch.randn(2, 1, 16, 16, 8)
    logits = network.train()(image)
    resized = torch.stack([F.interpolate(head, image.shape[2:]) for head in logits], 1)
    torch.testing.assert_close(resized, reference.train()(image))
    torch.testing.assert_close(network.eval()(image), reference.eval()(image))


def test_dropout_of_dynunet_does_not_apply_to_logits():
    network = build("monai_dynunet", 2, dropout=0.5, norm="batch").train()
    assert any(isinstance(module, nn.Dropout) for module in network.upsamples.modules())
    assert not any(isinstance(module, nn.Dropout) for module in network.output_block.modules())


def test_basic_unet_plusplus_equals_that_of_monai():
    from monai.networks.nets.basic_unetplusplus import BasicUNetPlusPlus

    network = build("monai_basic_unet_plusplus", 2, deep_supervision=True)
    reference = BasicUNetPlusPlus(2, 1, 3, [4] * 6, deep_supervision=True)
    reference.load_state_dict(network.state_dict())
    image = torch.randn(1, 1, 16, 32)
    for logits, expected in zip(network(image), reversed(reference(image)), strict=True):
        torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(network.eval()(image), reference(image)[-1])


@pytest.mark.parametrize("size", ["S", "B", "M", "L"])
def test_mednext_has_the_parameters_of_monai(size):
    from monai.networks.nets.mednext import create_mednext

    with torch.device("meta"):
        network = build("monai_mednext", 3, size=size, width=32, kernel=5, deep_supervision=True)
        reference = create_mednext(size, 3, 1, 3, kernel_size=5, deep_supervision=True)
    shapes = {name: tensor.shape for name, tensor in reference.state_dict().items()}
    assert {name: tensor.shape for name, tensor in network.state_dict().items()} == shapes


@pytest.mark.parametrize(("channels", "inputs"), [(3, 4), (5, 8), (16, 16), (17, 16)])
def test_vnet_takes_any_number_of_channels(channels, inputs):
    from monai.networks.nets.vnet import VNet

    network = build("monai_vnet", 2, channels).eval()
    reference = VNet(2, inputs, 3).eval()
    state = network.state_dict()
    reference.load_state_dict({name: state[name] for name in reference.state_dict()})
    image = torch.randn(1, channels, 16, 16)
    given = image
    if channels != inputs:
        weight, bias = state["input_projection.weight"], state["input_projection.bias"]
        given = torch.einsum("kcij,bchw->bkhw", weight, image) + bias[:, None, None]
    with torch.no_grad():
        torch.testing.assert_close(network(image), reference(given), rtol=1e-4, atol=1e-4)


def test_dropout_of_vnet_drops_channels_rather_than_images():
    network = build("monai_vnet", 2, dropout=0.25)
    dropouts = [module for module in network.modules() if "Dropout" in type(module).__name__]
    assert len(dropouts) == 8
    assert all(type(module) is nn.Dropout2d and module.p == 0.25 for module in dropouts)


@pytest.mark.parametrize(
    ("spacing", "multiple"),
    [([1.0, 1.0, 4.5], (8, 8, 2)), ([0.5, 1.0, 2.0], (8, 4, 2)), ([1.0, 1.0, 1.9], 8), ([2.0, 2.0, 2.0], 8)],
)
def test_segresnet_ds_follows_the_spacing(spacing, multiple):
    """Axes with thick slices are downsampled only where the others have become as coarse."""
    network = build("monai_segresnet_ds", 3, spacing=spacing, blocks=[1, 1, 1, 1])
    assert network.multiple == multiple
    sides = padded((1, 1, 1), multiple)
    assert len(network.train()(torch.randn(2, 1, *sides))) == 3
    assert sides == tuple(network.shape_factor())


@pytest.mark.parametrize("name", ["monai_unet", "monai_attention_unet", "monai_dynunet"])
def test_strides_leave_thick_slices_as_they_are(name):
    network = build(name, 3, widths=[4, 4, 8], strides=[[2, 2, 1], [2, 2, 2]])
    assert network.multiple == (4, 4, 2)
    assert network.eval()(torch.zeros(1, 1, 4, 8, 2)).shape == (1, 3, 4, 8, 2)
    with pytest.raises((ValueError, RuntimeError)):
        network(torch.zeros(1, 1, 4, 8, 3))


@pytest.mark.parametrize("norm", ["batch", "instance", "group"])
@pytest.mark.parametrize("name", ["monai_dynunet", "monai_segresnet_ds"])
def test_norms_state_the_smallest_image(name, norm):
    sizes = {"widths": [8, 8, 8, 8]} if name == "monai_dynunet" else {}
    network = build(name, 2, norm=norm, **sizes).eval()
    assert network(torch.zeros(1, 1, *smallest(network, 2))).isfinite().all()


def test_unetr_takes_one_size():
    network = build("monai_unetr", 2)
    assert network.fixed_size == (32, 32)
    with pytest.raises(ValueError, match=r"images of \[32, 32\] .*got \[32, 48\]"):
        network(torch.zeros(1, 1, 32, 48))


@pytest.mark.parametrize("name", ["monai_swin_unetr", "monai_unetr"])
def test_a_missing_package_names_its_extra(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "einops", None)
    options = {"image_size": [32, 32]} if name == "monai_unetr" else {}
    with pytest.raises(MissingExtra, match=rf"{name} requires the package einops.*segkit-trainer\[unetr\]"):
        MODELS[name](in_channels=1, out_channels=2, dims=2, **options)


@pytest.mark.parametrize(
    ("name", "dims", "options", "message"),
    [
        ("monai_unet", 2, {"widths": [4]}, "at least 2 widths.*got 1"),
        ("monai_unet", 2, {"widths": [4, 8], "strides": [[1, 1]]}, r"strides with 1 entries.*got \[\[1, 1\]\]"),
        ("monai_attention_unet", 2, {"widths": [1, 8]}, r"at least 2.*attention gate.*\[1, 8\]"),
        ("monai_basic_unet", 2, {"widths": [4, 8]}, "expected 6 widths.*got 2"),
        ("monai_basic_unet_plusplus", 2, {"widths": [4, 8]}, "expected 6 widths.*got 2"),
        ("monai_dynunet", 2, {"widths": []}, "at least 3 widths.*got 0"),
        ("monai_dynunet", 2, {"widths": [4, 4, 4], "kernels": [[3, 3]]}, r"kernels with 3 entries.*got \[\[3, 3\]\]"),
        ("monai_dynunet", 2, {"widths": [4, 8, 8], "norm": "group"}, r"multiples of 8.*got \[4, 8, 8\]"),
        ("monai_segresnet", 2, {"width": 12}, r"multiples of 8.*got \[12\]"),
        ("monai_segresnet_ds", 3, {"spacing": [1.0, 1.0]}, r"spacing with 3 numbers.*got \[1.0, 1.0\]"),
        ("monai_swin_unetr", 3, {"width": 16}, "multiple of 12.*got width 16"),
        ("monai_swin_unetr", 3, {"width": 12, "heads": [5, 5, 5, 5]}, r"heads that divide.*\[5, 5, 5, 5\]"),
        ("monai_unetr", 3, {"image_size": [32, 32]}, r"image_size with 3 sides.*got \[32, 32\]"),
        ("monai_unetr", 2, {"image_size": [32, 40]}, r"multiples of 16, got \[32, 40\]"),
        ("monai_unetr", 2, {"image_size": [32, 32], "heads": 5}, "heads that divide hidden_width, got 5 and 768"),
        *((name, 3, {}, r"2D images.* got 3") for name in sorted(TWO_DIMENSIONAL)),
    ],
)
def test_invalid_options_raise(name, dims, options, message):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    with pytest.raises(ValueError, match=message):
        MODELS[name](in_channels=1, out_channels=2, dims=dims, **options)


FIXED_GRAPHS = {"monai_swin_unetr"}  # the exported graph of which is of one image size


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dims"), [row(name, dims, slow=True) for dims in (2, 3) for name in SMALL if dims == 2 or name in VOLUMES]
)
def test_every_network_can_be_exported(name, dims, tmp_path):
    """As ONNX, for images of any size where its graph allows that."""
    network = build(name, dims).eval()
    fixed = getattr(network, "fixed_size", None)
    any_size = name not in FIXED_GRAPHS and fixed is None
    sides = sides_of(network)
    multiples = (sides,) * dims if isinstance(sides, int) else sides
    example = fixed or padded((32, 64, 64)[:dims], sides, getattr(network, "minimum_pixels", 1))
    write_network(network, torch.zeros(2, 1, *example), "onnx", tmp_path / "model.onnx", any_size=any_size)
    size = tuple(side + more for side, more in zip(example, multiples, strict=True)) if any_size else example
    image = torch.randn(1, 1, *size)
    with torch.no_grad():
        expected = network(image)
        found = ExportedNetwork(tmp_path / "model.onnx", "onnx")(image)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * max(1.0, float(expected.abs().max())))
