"""Weights of other tools, in files that their own libraries and ways of saving make.

The oracle is the network that was saved: every weight of the new one must equal its weight to the bit.
"""

import io
import json
import shutil
import sys
import zipfile

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file
from torch import nn

from segkit.experiment.build import load_config
from segkit.experiment.runner import run_experiment
from segkit.models import MODELS
from segkit.training import init_weights
from segkit.training.assigned_weights import adapted_to_channels
from segkit.training.checkpoint import CheckpointError
from segkit.training.init_file import weights_digest
from segkit.training.init_weights import load_weights
from segkit.training.run_folder import Run
from segkit.utils.errors import MissingExtra

from support.faults.checkpoints import TINY, trained


class Wrapper(nn.Module):
    """As networks of other libraries are wrapped."""

    def __init__(self, network):
        super().__init__()
        self.network = network


def network(channels=1, classes=2, width=4):
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(channels, width, 3), nn.BatchNorm2d(width)),
        nn.Sequential(nn.Conv2d(width, width, 3), nn.BatchNorm2d(width)),
        nn.Conv2d(width, classes, 1),
    )


def filled(module, seed=1):
    """The module with other numbers in each parameter and buffer, so that no two are equal by chance."""
    generator = torch.Generator().manual_seed(seed)
    for number, value in enumerate(module.state_dict().values()):
        draw = torch.rand(value.shape, generator=generator)
        value.copy_(draw if value.is_floating_point() else torch.full(value.shape, 100 * seed + number))
    return module


def assert_loaded(model, source, prefix="", *, but=()):
    """All weights of the model equal those of a module whose names lack a prefix."""
    expected = source.state_dict()
    for name, value in model.state_dict().items():
        if not name.startswith(tuple(but)):
            torch.testing.assert_close(value, expected[name.removeprefix(prefix)], rtol=0, atol=0, msg=name)


def prefixed(state, prefix):
    return {prefix + name: value for name, value in state.items()}


def lightning(module):
    content = {"state_dict": {**prefixed(module.state_dict(), "model."), "criterion.weight": torch.ones(3)}}
    return content | {"pytorch-lightning_version": "2.6", "callbacks": {"best": {"best_model_score": torch.ones(1)}}}


def nnunet(module):
    """What nnU-Net's trainer saves: NumPy scalars in its log, and the arguments of the trainer."""
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    sum(value.sum() for value in module.parameters()).backward()
    optimizer.step()
    return {
        "network_weights": module.state_dict(),
        "optimizer_state": optimizer.state_dict(),
        "grad_scaler_state": None,
        "logging": {"mean_fg_dice": [np.float64(0.5)], "train_losses": [np.float32(-0.25)], "lrs": [0.01]},
        "_best_ema": np.float64(0.75),
        "init_args": {"plans": {"patch_size": (8, 8)}, "fold": np.int64(0), "device": torch.device("cpu")},
        "trainer_name": "nnUNetTrainer",
    }


def compiled_inside(module):
    module[1] = torch.compile(module[1])
    return module.state_dict()


SAVED = {
    "plain": lambda module: module.state_dict(),
    "data parallel": lambda module: nn.DataParallel(module).state_dict(),
    "compiled": lambda module: torch.compile(module).state_dict(),
    "compiled inside": compiled_inside,
    "compiled and parallel": lambda module: nn.DataParallel(torch.compile(module)).state_dict(),
    "wrapped": lambda module: prefixed(module.state_dict(), "net."),
    "lightning": lightning,
    "mmsegmentation": lambda module: {"meta": {"epoch": 3, "CLASSES": ("a", "b")}, "state_dict": module.state_dict()},
    "nnunet": nnunet,
    "ignite": lambda module: {"epoch": 3, "net": module.state_dict()},
    "nested": lambda module: {"model_state_dict": {"model": prefixed(module.state_dict(), "module.")}},
}


@pytest.mark.parametrize("is_wrapped", [False, True])
@pytest.mark.parametrize("saved", SAVED)
def test_each_way_of_saving_is_loaded_in_full(tmp_path, saved, is_wrapped):
    source, path = filled(network()), tmp_path / "weights.pth"
    torch.save(SAVED[saved](source), path)
    model = Wrapper(network()) if is_wrapped else network()
    loaded = load_weights(model, path)
    assert_loaded(model, filled(network()) if saved != "nnunet" else source, "network." if is_wrapped else "")
    assert (loaded.missing, dict(loaded.mismatched), loaded.warnings(path)) == ((), {}, [])
    assert loaded.rows() == []


def test_safetensors_with_a_prefix(tmp_path):
    source, model = filled(network()), Wrapper(network())
    save_file(prefixed(source.state_dict(), "model."), tmp_path / "weights.safetensors")
    assert "model.*" in load_weights(model, tmp_path / "weights.safetensors").describe(tmp_path)[0]
    assert_loaded(model, source, "network.")


def test_a_missing_package_names_the_extra(tmp_path, monkeypatch):
    save_file(network().state_dict(), tmp_path / "weights.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(MissingExtra, match=r"weights\.safetensors requires .*segkit-trainer\[encoders\]"):
        load_weights(network(), tmp_path / "weights.safetensors")


def test_of_a_checkpoint_of_segkit_the_evaluated_weights_are_taken(tmp_path):
    """`model` holds the moving average, `training.model` the weights to continue from; both fit in full."""
    average, current, model = filled(network(), 1), filled(network(), 2), network()
    content = torch.load(io.BytesIO(trained()), weights_only=True)
    content["config"]["train"]["ema"] = 0.9
    content["training"]["model"] = current.state_dict()
    torch.save(content | {"model": prefixed(average.state_dict(), "network.")}, tmp_path / "last.pt")
    loaded = load_weights(model, tmp_path / "last.pt")
    assert_loaded(model, average)
    assert "averaged weights (train.ema), which evaluation uses" in "\n".join(loaded.describe(tmp_path))


# --- networks of libraries -------------------------------------------------------------------------------------------


def test_the_weights_of_torchvision_are_loaded_into_its_wrapped_network(tmp_path):
    from torchvision.models.segmentation import lraspp_mobilenet_v3_large

    source = filled(lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=21))
    torch.save(source.state_dict(), tmp_path / "lraspp.pth")
    model = MODELS["lraspp_mobilenet"](in_channels=3, out_channels=21, dims=2)
    assert len(load_weights(model, tmp_path / "lraspp.pth").taken) == len(source.state_dict())
    assert_loaded(model, source, "network.")

    model = MODELS["lraspp_mobilenet"](in_channels=1, out_channels=5, dims=2)
    loaded = load_weights(model, tmp_path / "lraspp.pth", in_channels=1, out_channels=5)
    assert loaded.head == (21, 5)
    assert set(loaded.mismatched) == {
        f"network.classifier.{part}_classifier.{kind}" for part in ("low", "high") for kind in ("weight", "bias")
    }
    first = "network.backbone.0.0.weight"
    assert set(loaded.adapted) == {first}
    assert_loaded(model, source, "network.", but=[first, *loaded.mismatched])


def test_the_weights_of_a_classifier_are_loaded_into_the_encoder(tmp_path):
    from torchvision.models import mobilenet_v3_large

    source = filled(mobilenet_v3_large(weights=None))
    torch.save(source.state_dict(), tmp_path / "imagenet.pth")
    model = MODELS["lraspp_mobilenet"](in_channels=3, out_channels=2, dims=2)
    loaded = load_weights(model, tmp_path / "imagenet.pth")
    backbone = model.get_submodule("network.backbone")
    assert_loaded(backbone, source.features)
    assert len(loaded.taken) == len(backbone.state_dict())
    assert all(name.startswith("network.classifier.") for name in loaded.missing)
    assert all(name.startswith("classifier.") for name in loaded.unexpected)


def test_the_weights_of_segmentation_models_pytorch(tmp_path):
    import segmentation_models_pytorch as smp

    def build(channels, classes):
        return smp.Unet(
            "resnet18", encoder_weights=None, in_channels=channels, classes=classes, decoder_channels=(8,) * 5
        )

    source, model = filled(build(3, 4)), Wrapper(build(5, 2))
    torch.save(lightning(source), tmp_path / "smp.ckpt")
    loaded = load_weights(model, tmp_path / "smp.ckpt", in_channels=5, out_channels=2)
    changed = ["network.encoder.conv1.weight", "network.segmentation_head.0."]
    assert loaded.head == (4, 2)
    assert_loaded(model, source, "network.", but=changed)
    from segmentation_models_pytorch.encoders._utils import patch_first_conv

    with torch.no_grad():
        patch_first_conv(source.encoder, new_in_channels=5, default_in_channels=3, pretrained=True)
    torch.testing.assert_close(model.network.encoder.conv1.weight, source.encoder.conv1.weight)


@pytest.mark.parametrize(
    ("name", "options"), [("monai_dynunet", {"widths": [4, 8, 16]}), ("monai_segresnet", {"width": 8})]
)
@pytest.mark.parametrize("kind", ["folder", "zip", "file"])
def test_the_weights_of_a_monai_bundle(tmp_path, name, options, kind):
    bundle = tmp_path / "spleen"
    (bundle / "models").mkdir(parents=True)
    source = filled(MODELS[name](in_channels=1, out_channels=2, dims=3, **options))
    torch.save(source.state_dict(), bundle / "models" / "model.pt")
    (bundle / "models" / "model.ts").write_bytes(b"code")
    path = {"folder": bundle, "file": bundle / "models" / "model.pt", "zip": tmp_path / "bundle.zip"}[kind]
    if kind == "zip":
        shutil.make_archive(str(path.with_suffix("")), "zip", tmp_path, "spleen")
    model = MODELS[name](in_channels=1, out_channels=2, dims=3, **options)
    assert load_weights(model, path).missing == ()
    assert_loaded(model, source)
    assert len(weights_digest(path)) == 16


# --- refusals --------------------------------------------------------------------------------------------------------


def test_torchscript_is_refused_with_the_way_out(tmp_path):
    (tmp_path / "models").mkdir()
    torch.jit.save(torch.jit.script(nn.Conv2d(1, 2, 3)), tmp_path / "models" / "model.ts")
    for path in (tmp_path, tmp_path / "models" / "model.ts"):
        with pytest.raises(CheckpointError, match=r"code \(TorchScript\).*refused.*models/model\.pt"):
            load_weights(network(), path)


def test_a_folder_without_weights_and_a_zip_that_is_none(tmp_path):
    with pytest.raises(CheckpointError, match=r"expected a file of weights, or a folder with one of models/model\.pt"):
        load_weights(network(), tmp_path)
    (tmp_path / "other.zip").write_bytes(b"PK\x03\x04 no zip")
    with pytest.raises(CheckpointError, match=r"other\.zip: .*damaged"):
        load_weights(network(), tmp_path / "other.zip")
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bundle/models/model.pt", bytes(1 << 20))
    with pytest.raises(CheckpointError, match=r"bomb\.zip: .*would grow"):
        load_weights(network(), tmp_path / "bomb.zip")


class HistoryBuffer:
    """An object of another tool's log."""


def test_objects_of_a_class_are_refused_and_numpy_arrays_too(tmp_path):
    for value in (HistoryBuffer(), np.ones(3)):
        torch.save({"state_dict": network().state_dict(), "message_hub": value}, tmp_path / "mm.pth")
        with pytest.raises(CheckpointError, match=r"mm\.pth: it holds code, not weights: refused.*save tensors"):
            load_weights(network(), tmp_path / "mm.pth")


def test_a_block_that_is_alike_by_chance_is_no_match(tmp_path):
    """The block lies elsewhere in the file, under other names; only its layers have the same names and shapes."""
    block = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    other = nn.Sequential(*(nn.Sequential(nn.Linear(n, n), nn.Linear(n, n)) for n in range(20, 30)))
    torch.save({**prefixed(block.state_dict(), "stem.x."), **prefixed(other.state_dict(), "body.")}, tmp_path / "a.pt")
    model = nn.ModuleDict({"a": block, "b": nn.Sequential(*(nn.Linear(n, n) for n in range(2, 19)))})
    with pytest.raises(CheckpointError, match=r"no weight in .* matches the network: the file contains stem\.x\.0"):
        load_weights(model, tmp_path / "a.pt")


# --- several sets of weights -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "average"),
    [
        (lambda raw, ema: {"state_dict": raw, "state_dict_ema": ema}, "state_dict_ema"),
        (lambda raw, ema: {"model": raw, "ema": {"module": ema}}, "ema.module"),
        (lambda raw, ema: {"student": prefixed(raw, "module."), "teacher": prefixed(ema, "module.")}, "teacher"),
        (lambda raw, ema: {"state_dict": prefixed(raw, "model.") | prefixed(ema, "ema_model.module.")}, "ema_model"),
    ],
)
def test_of_two_that_fit_equally_the_moving_average_is_taken_and_said(tmp_path, content, average):
    raw, ema, model = filled(network(), 1), filled(network(), 2), network()
    torch.save(content(raw.state_dict(), ema.state_dict()), tmp_path / "two.pt")
    loaded = load_weights(model, tmp_path / "two.pt")
    assert_loaded(model, ema)
    (note,) = loaded.notes
    assert "fit equally" in note
    assert average in note.partition("not")[0]


def test_mmengine_keeps_its_moving_average_in_the_usual_place(tmp_path):
    """Its hook exchanges the two before it saves, so that the usual key holds the weights to use."""
    raw, ema, model = filled(network(), 1), filled(network(), 2), network()
    content = {"state_dict": ema.state_dict(), "ema_state_dict": prefixed(raw.state_dict(), "module.")}
    torch.save(content | {"meta": {"mmengine_version": "0.10.7"}}, tmp_path / "mm.pth")
    assert load_weights(model, tmp_path / "mm.pth").notes == ()
    assert_loaded(model, ema)


def test_an_average_without_the_running_statistics_is_not_mixed_with_others(tmp_path):
    raw, ema, model = filled(network(), 1), filled(network(), 2), network()
    parameters = {name: value.detach() for name, value in ema.named_parameters()}
    torch.save({"model": raw.state_dict(), "ema": parameters}, tmp_path / "two.pt")
    load_weights(model, tmp_path / "two.pt")
    assert_loaded(model, raw)


def test_without_an_average_the_usual_key_decides_and_it_is_said(tmp_path):
    first, usual, model = filled(network(), 1), filled(network(), 2), network()
    torch.save({"previous": first.state_dict(), "model": usual.state_dict()}, tmp_path / "two.pt")
    (note,) = load_weights(model, tmp_path / "two.pt").notes
    assert "took model" in note
    assert "not previous" in note
    assert_loaded(model, usual)


# --- what does not fit -----------------------------------------------------------------------------------------------


def test_a_first_convolution_gives_for_a_grey_image_what_it_gave_for_it_in_all_channels():
    torch.manual_seed(0)
    weight, grey = torch.randn(4, 3, 3, 3), torch.randn(1, 1, 8, 8)
    expected = nn.functional.conv2d(grey.expand(1, 3, 8, 8), weight)
    for channels in (1, 3, 6):
        changed = adapted_to_channels(weight, channels)
        torch.testing.assert_close(nn.functional.conv2d(grey.expand(1, channels, 8, 8), changed), expected)
    changed = adapted_to_channels(weight[:, :1], 5)
    torch.testing.assert_close(
        nn.functional.conv2d(grey.expand(1, 5, 8, 8), changed), nn.functional.conv2d(grey, weight[:, :1])
    )


def test_the_channels_of_several_modalities_are_not_mixed(tmp_path):
    torch.save(filled(network(channels=4)).state_dict(), tmp_path / "mri.pt")
    model = network(channels=2)
    before = model[0][0].weight.detach().clone()
    loaded = load_weights(model, tmp_path / "mri.pt", in_channels=2, out_channels=2)
    assert loaded.mismatched == {"0.0.weight": ([4, 4, 3, 3], [4, 2, 3, 3])}
    assert torch.equal(model[0][0].weight, before)
    assert loaded.head is None


def test_counters_of_batches_alone_are_no_match(tmp_path):
    torch.save(network(channels=2, classes=3, width=8).state_dict(), tmp_path / "wide.pt")
    with pytest.raises(
        CheckpointError, match=r"names agree, but not the shapes: 0\.0\.weight \(file \[8, 2, 3, 3\], net"
    ):
        load_weights(network(), tmp_path / "wide.pt")


def test_the_table_stays_short_and_a_file_of_few_weights_is_warned_of(tmp_path):
    source = nn.ModuleList(nn.Linear(2, 2 + number % 2) for number in range(40))
    model = nn.ModuleList(nn.Linear(2, 2) for _ in range(60))
    torch.save(source.state_dict(), tmp_path / "few.pt")
    loaded = load_weights(model, tmp_path / "few.pt")
    rows = loaded.rows()
    assert len(rows) <= 7
    assert sum(row.taken for row in rows) == len(loaded.taken) == 40
    assert sum(row.missing for row in rows) == len(loaded.missing) == 40
    assert sum(row.mismatched for row in rows) == len(loaded.mismatched) == 40
    (warning,) = loaded.warnings(tmp_path / "few.pt")
    assert "only 40 of the 120 weights" in warning


def test_names_are_translated_where_they_do_not_agree(tmp_path, monkeypatch):
    source, model = filled(network()), network()
    names = {f"x{number}": name for number, name in enumerate(source.state_dict())}
    torch.save(
        {"network_weights": {f"module.{x}": source.state_dict()[name] for x, name in names.items()}}, tmp_path / "x.pt"
    )

    def translated(state, _network):
        return {names[name]: value for name, value in state.items()} if set(state) == set(names) else None

    with pytest.raises(CheckpointError, match="no weight"):
        load_weights(model, tmp_path / "x.pt")
    monkeypatch.setattr(init_weights, "translated", translated)
    assert "translated names" in load_weights(model, tmp_path / "x.pt").describe(tmp_path)[0]
    assert_loaded(model, source)


# --- in a run --------------------------------------------------------------------------------------------------------


def test_a_run_prints_the_table_and_keeps_the_whole_list(tmp_path):
    (tmp_path / "old" / "checkpoints").mkdir(parents=True)
    last = tmp_path / "old" / "checkpoints" / "last.pt"
    last.write_bytes(trained())
    expected = torch.load(last, weights_only=True)["model"]
    config = load_config(
        TINY, [f"train.init={tmp_path / 'old'}", "labels.names=[background, a, b]", "train.max_steps=1"]
    )
    run, console = Run(tmp_path / "run"), Console(record=True, width=200)
    run_experiment(config, run, resume=False, console=console)
    printed = console.export_text()
    assert "the head is new: 2 classes in the file, 3 here" in printed
    assert "these weights were trained with other data: the classes background, a there" in printed
    kept = json.loads((run.folder / "initial_weights.json").read_text())
    assert {entry["name"] for entry in kept["weights"]} == set(expected)
    assert {entry["name"] for entry in kept["weights"] if entry["result"] == "different shape"} == {
        "head.weight",
        "head.bias",
    }
    assert kept["taken"] == len(expected) - 2
