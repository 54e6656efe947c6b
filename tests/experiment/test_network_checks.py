"""Options of networks in a configuration, and networks that take images of one size alone."""

import pytest
import torch

from segkit.config import ConfigError
from segkit.experiment.build import (
    build_data,
    build_labels,
    build_model,
    load_config,
    padding_multiple,
    restore_config,
)
from segkit.experiment.build_predictor import predictor_factory
from segkit.experiment.network_check import check_network

UNETR = {"name": "monai_unetr", "image_size": [32, 16], "width": 4, "hidden_width": 8, "mlp_width": 8, "heads": 2}


def config_of(model, size=(40, 20), overrides=(), **sections):
    content = {
        "labels": {"names": ["background", "a"]},
        "data": {"name": "synthetic", "size": list(size), "train": 4, "validation": 1, "test": 1},
        "model": model,
        "loss": "dice_ce",
        "optimizer": "adamw",
        "loader": {"batch": 2},
        "train": {"steps": 1},
    }
    return load_config(content | sections, overrides)


def data_of(config):
    labels = build_labels(config)
    return build_data(config, labels, multiple=padding_multiple(config, labels))


@pytest.mark.parametrize(
    "model",
    [
        {"name": "monai_dynunet", "kernels": [[3, 1], [3, 3], [5, 3]], "widths": [8, 8, 8], "norm": "group"},
        {"name": "monai_attention_unet", "strides": [[2, 1]], "widths": [4, 8], "dropout": 0.1},
        {"name": "monai_segresnet_ds", "blocks": [1, 2], "spacing": [1, 2.5]},
        {"name": "monai_mednext", "size": "B", "kernel": 5},
        {"name": "monai_vnet", "dropout": 0},
    ],
    ids=lambda model: model["name"],
)
def test_options_reach_the_network(model):
    config = config_of(model)
    assert {key: config.model.args[key] for key in model if key != "name"} == {
        key: value for key, value in model.items() if key != "name"
    }


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"name": "monai_mednext", "size": "XL"}, "model.*size.*'XL'"),
        ({"name": "monai_mednext", "kernel": 4}, "model.*kernel.*4"),
        ({"name": "monai_dynunet", "kernels": [[3, 2]]}, "model.*kernels.*2"),
        ({"name": "monai_dynunet", "strides": [[3, 2]]}, "model.*strides.*3"),
        ({"name": "monai_dynunet", "dropout": 1}, "model.*dropout.*1"),
        ({"name": "monai_segresnet_ds", "spacing": [0, 1]}, "model.*spacing.*0"),
        ({"name": "monai_swin_unetr", "depths": [2, 2]}, "model.*depths"),
        ({"name": "monai_unetr"}, "missing required key 'image_size'"),
    ],
)
def test_invalid_options_are_errors_of_the_configuration(model, message):
    with pytest.raises(ConfigError, match=message):
        config_of(model)


@pytest.fixture
def einops():
    pytest.importorskip("einops")


@pytest.mark.usefixtures("einops")
@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"sampling": {"patch": [16, 16]}}, r"expected sampling.patch \[32, 16\], .*image_size.*got \[16, 16\]"),
        ({"evaluation": {"window": [64, 32]}}, r"expected evaluation.window \[32, 16\], .*got \[64, 32\]"),
    ],
)
def test_patch_and_window_must_have_the_only_size(section, message):
    with pytest.raises(ConfigError, match=message):
        config_of(UNETR, **section)


@pytest.mark.parametrize(
    ("given", "resampled", "message"),
    [
        ([4.5, 1], [1, 4.5], r"spacing of \[1\.0, 4\.5\], got \[4\.5, 1"),
        ([1, 2], None, r"spacing of \[1\.0, 1\.0\], got \[1"),
    ],
)
def test_the_spacing_of_a_network_is_that_of_the_images(given, resampled, message):
    """After resampling, in the order of the axes; synthetic images have a spacing of 1."""
    model = {"name": "monai_segresnet_ds", "blocks": [1, 2], "width": 8, "spacing": given}
    config = config_of(model, preprocess={"spacing": resampled})
    with pytest.raises(ConfigError, match=rf"model\.spacing: the training images have a {message}"):
        check_network(config, data_of(config))
    same = config_of(
        {**model, "spacing": [2 * length for length in resampled or [1, 1]]}, preprocess={"spacing": resampled}
    )
    check_network(same, data_of(same))


def test_the_ways_out_are_options_of_the_network():
    """A batch norm at one pixel with one image, and an encoder that has neither widths nor a choice of norms."""
    one = {"loader": {"batch": 1}, "sampling": {"patch": [32, 32]}}
    for model, ways in (
        ({"name": "encoder_unet", "encoder": "test_resnet"}, "sampling.patch, or another network"),
        (
            {"name": "unet", "widths": [4] * 6},
            "sampling.patch, fewer model.widths, another model.norm, or another network",
        ),
    ):
        config = config_of(model, **one)
        with pytest.raises(ConfigError, match=rf"Expected more than 1 value .*; use a larger loader.batch or {ways}$"):
            check_network(config, data_of(config))


@pytest.mark.usefixtures("einops")
def test_images_must_fit_into_the_only_size():
    config = config_of(UNETR)
    with pytest.raises(ConfigError, match=r"only images of \[32, 16\] .*set sampling.patch to \[32, 16\]"):
        check_network(config, data_of(config))
    smaller = config_of(UNETR, size=(30, 9))
    check_network(smaller, data_of(smaller))


@pytest.mark.usefixtures("einops")
def test_the_only_size_is_the_window():
    config = config_of(UNETR, sampling={"patch": [32, 16]})
    data = data_of(config)
    check_network(config, data)
    network = build_model(config, data.preprocess.channels, data.labels, 2)
    predictor = predictor_factory(config, data.labels, data.preprocess, torch.device("cpu"))(network)
    assert predictor.window == (32, 16)
    for size in [(50, 41), (7, 9), (33, 3)]:
        assert predictor(torch.randn(1, *size)).shape == (1, 2, *size)


@pytest.mark.usefixtures("einops")
def test_another_window_is_refused_when_a_checkpoint_is_evaluated():
    config = config_of(UNETR, sampling={"patch": [32, 16]})
    data = data_of(config)
    network = build_model(config, data.preprocess.channels, data.labels, 2)
    other = restore_config(config.to_dict(), ["evaluation.window=[64,32]"])
    build = predictor_factory(other, data.labels, data.preprocess, torch.device("cpu"))
    with pytest.raises(ConfigError, match=r"expected evaluation.window \[32, 16\], .*got \[64, 32\]"):
        build(network)


@pytest.mark.parametrize(
    ("size", "settings", "expected"),
    [((32, 24), {}, False), ((32, 24), {"channels_last": True}, True), ((16, 16, 16), {}, True)],
)
def test_networks_receive_volumes_with_the_channels_last_on_a_cpu(size, settings, expected):
    config = config_of({"name": "unet", "widths": [4, 8]}, size=size, train={"steps": 1, **settings})
    data = data_of(config)
    for device, wanted in (("cpu", expected), ("cuda", settings.get("channels_last", False))):
        build = predictor_factory(config, data.labels, data.preprocess, torch.device(device))
        assert build(build_model(config, 1, data.labels, len(size))).channels_last == wanted
