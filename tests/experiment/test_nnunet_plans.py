"""Configurations from nnU-Net's plans: axes against the images that they describe, networks against its weights."""

import json
from pathlib import Path

import numpy as np
import pytest

from segkit.config import ConfigError
from segkit.experiment.build import load_config
from segkit.experiment.nnunet_plans import import_plans

from support.command_line import tool
from support.nnunet_dataset import ARCHITECTURE, FULLRES, write_dataset, write_plans

nibabel = pytest.importorskip("nibabel", reason="needs nibabel")
pytest.importorskip("SimpleITK", reason="needs SimpleITK")

# what nnU-Net's own weights say of their networks
REFERENCE = json.loads((Path(__file__).parents[1] / "training" / "nnunet_reference.json").read_text())


@pytest.fixture
def folder(tmp_path):
    write_dataset(tmp_path / "data")
    write_plans(tmp_path / "data")
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("direction", "transposed"),
    [
        ((1, 0, 0, 0, 1, 0, 0, 0, 1), [0, 1, 2]),
        ((0, 0, 1, 1, 0, 0, 0, 1, 0), [0, 1, 2]),  # the axes of the file run along y, z and x of the patient
        ((0, 1, 0, 0, 0, -1, -1, 0, 0), [2, 0, 1]),
    ],
)
@pytest.mark.parametrize("reader", ["SimpleITKIO", "NibabelIO", "NibabelIOWithReorient"])
def test_axes_are_those_of_the_images_as_they_are_read(tmp_path, direction, transposed, reader):
    """nnU-Net's plans list z, y, x of the file, or of the file turned to RAS by nibabel, transposed; the reader of
    segkit says which spacing is which."""
    write_dataset(tmp_path, direction)
    file = nibabel.load(tmp_path / "imagesTr" / "c0_0000.nii.gz")
    file = nibabel.as_closest_canonical(file) if reader == "NibabelIOWithReorient" else file
    stored = [round(float(length), 3) for length in file.header.get_zooms()[::-1]]
    sides = {0.5: 8, 0.6: 12, 3.0: 4}
    spacing = [stored[axis] for axis in transposed]
    plan = {**FULLRES, "spacing": spacing, "patch_size": [sides[length] for length in spacing]}
    kernels = [[1 if length == 3.0 else 3 for length in spacing], [3, 3, 3], [3, 3, 3]]
    strides = [[1, 1, 1], [1 if length == 3.0 else 2 for length in spacing], [2, 2, 2]]
    arguments = {**ARCHITECTURE["arch_kwargs"], "kernel_sizes": kernels, "strides": strides}
    plan["architecture"] = {**ARCHITECTURE, "arch_kwargs": arguments}
    plans = {"transpose_forward": transposed, "configurations": {"3d_fullres": plan}, "image_reader_writer": reader}
    write_plans(tmp_path, **plans)
    sections = import_plans(tmp_path).sections
    from segkit.data.readers import read_image

    _image, read = read_image(tmp_path / "imagesTr" / "c0_0000.nii.gz")
    assert sections["preprocess"]["spacing"] == pytest.approx(read)
    assert sections["sampling"]["patch"] == [sides[round(length, 3)] for length in read]
    assert sections["model"]["kernels"][0] == [1 if length > 1 else 3 for length in read]
    assert sections["model"]["strides"][0] == [1 if length > 1 else 2 for length in read]


@pytest.mark.parametrize("name", ["plain_2d", "residual_3d"])
def test_networks_are_those_of_its_weights(folder, name):
    """nnU-Net counts the convolutions of the decoder from the coarsest resolution on."""
    reference = REFERENCE[name]["model"]
    residual, dims = reference["name"] == "residual_encoder_unet", len(reference["kernels"][0])
    encoder = reference["blocks_per_stage" if residual else "encoder_convs"]
    plan = {
        **FULLRES,
        "architecture": {
            "network_class_name": f"x.{'ResidualEncoderUNet' if residual else 'PlainConvUNet'}",
            "arch_kwargs": {
                "features_per_stage": reference["widths"],
                "kernel_sizes": [kernel[::-1] for kernel in reference["kernels"]],
                "strides": [[1] * dims, *(step[::-1] for step in reference["strides"])],
                ("n_blocks_per_stage" if residual else "n_conv_per_stage"): encoder,
                "n_conv_per_stage_decoder": reference["decoder_convs"][::-1],
                "norm_op": "torch.nn.InstanceNorm3d",
            },
        },
    }
    if dims == 2:
        plan |= {"patch_size": [12, 8], "spacing": [1.0, 1.0]}
        from PIL import Image

        for file in (*folder.glob("imagesTr/*"), *folder.glob("labelsTr/*")):
            Image.fromarray(np.zeros((24, 16), np.uint8)).save(file.with_name(file.name.replace(".nii.gz", ".png")))
            file.unlink()
        content = json.loads((folder / "dataset.json").read_text())
        (folder / "dataset.json").write_text(json.dumps({**content, "file_ending": ".png"}))
        for key in ("kernel_sizes", "strides"):  # pictures are read as rows and columns
            arguments = plan["architecture"]["arch_kwargs"]
            arguments[key] = [values[::-1] for values in arguments[key]]
    write_plans(folder, configurations={"2d" if dims == 2 else "3d_fullres": plan})
    model = import_plans(folder).sections["model"]
    assert {key: model[key] for key in reference} == reference


def test_plans_of_earlier_versions_give_the_same_network(folder):
    former = {key: value for key, value in FULLRES.items() if key != "architecture"} | {
        "UNet_class_name": "PlainConvUNet",
        "UNet_base_num_features": 4,
        "unet_max_num_features": 6,
        "n_conv_per_stage_encoder": [1, 2, 3],
        "n_conv_per_stage_decoder": [1, 2],
        "pool_op_kernel_sizes": ARCHITECTURE["arch_kwargs"]["strides"],
        "conv_kernel_sizes": ARCHITECTURE["arch_kwargs"]["kernel_sizes"],
    }
    expected = import_plans(folder).sections["model"]
    write_plans(folder, configurations={"3d_fullres": former})
    assert import_plans(folder).sections["model"] == {**expected, "widths": [4, 6, 6]}


def test_the_configuration_trains(folder, tmp_path):
    (folder / "splits_final.json").write_text(
        json.dumps([{"train": ["c0", "c1"], "val": ["c2"]}, {"train": ["c2", "c3"], "val": ["c1"]}])
    )
    printed = tool("import", "nnunet", folder, "--fold", "1", "--out", tmp_path / "own" / "plan.yaml")
    assert "nnUNetTrainer" in printed
    config = load_config(tmp_path / "own" / "plan.yaml")
    assert config.split.args["train"] == ["c2", "c3"]
    assert config.loss[0]["per"] == "batch"
    assert (tmp_path / "own" / "segkit.schema.json").exists()
    run = ("run.dir=run", "train.max_steps=2", "augment.transforms=[]", "augment.preset=none")
    assert "run folder" in tool("train", "--config", "own/plan.yaml", *run, folder=tmp_path)
    assert "already exists" in tool("import", "nnunet", folder, "--out", tmp_path / "own" / "plan.yaml", code=2)


def test_what_is_done_otherwise_is_told(folder):
    plan = {**FULLRES, "normalization_schemes": ["CTNormalization"], "use_mask_for_norm": [True]}
    write_plans(folder, configurations={"3d_fullres": plan})
    imported = import_plans(folder)
    assert imported.sections["preprocess"]["intensity"] == "dataset"
    told = "\n".join(imported.differences)
    for words in ("clips CT", "pixels that are not 0", "5 folds are segkit's"):
        assert words in told


def test_configurations_can_inherit(folder):
    configurations = {"3d_fullres": FULLRES, "3d_large": {"inherits_from": "3d_fullres", "batch_size": 7}}
    write_plans(folder, configurations=configurations)
    sections = import_plans(folder, configuration="3d_large").sections
    assert (sections["loader"]["batch"], sections["sampling"]["patch"]) == (7, [8, 12, 4])


def test_a_trained_model_says_its_configuration_and_trainer(folder, tmp_path):
    model = tmp_path / "nnUNetTrainer_500epochs__nnUNetPlans__3d_large"
    model.mkdir()
    large = {**FULLRES, "batch_size": 5}
    write_plans(model, "plans", configurations={"3d_fullres": FULLRES, "3d_large": large})
    imported = import_plans(model, images=folder)
    assert imported.sections["loader"]["batch"] == 5
    assert any("was trained by nnUNetTrainer_500epochs" in difference for difference in imported.differences)
    assert ("plans, configuration", "plans, 3d_large", "") in imported.settings


def test_flat_nifti_images_have_plans_of_two_axes(tmp_path):
    write_dataset(tmp_path)
    for file in (*tmp_path.glob("imagesTr/*"), *tmp_path.glob("labelsTr/*")):
        flat = np.asarray(nibabel.load(file).dataobj)[:, :, 0]
        nibabel.save(nibabel.Nifti1Image(flat, np.eye(4)), file)
    arguments = {**ARCHITECTURE["arch_kwargs"], "kernel_sizes": [[1, 3], [3, 3], [3, 3]], "strides": [1, [1, 2], 2]}
    plan = {**FULLRES, "patch_size": [12, 8], "spacing": [1.0, 2.0]}
    plan["architecture"] = {**ARCHITECTURE, "arch_kwargs": arguments}
    write_plans(tmp_path, configurations={"2d": plan})
    sections = import_plans(tmp_path).sections
    assert sections["sampling"]["patch"] == [8, 12]  # x before y
    assert sections["preprocess"]["spacing"] == [2.0, 1.0]
    assert sections["model"]["kernels"][0] == [3, 1]


def test_a_configuration_that_cannot_be_used_is_not_written(folder, tmp_path):
    message = tool("import", "nnunet", folder, "--fold", "7", "--out", tmp_path / "x.yaml", code=2)
    assert "expected --fold to be less than 5" in message
    assert not (tmp_path / "x.yaml").exists()


def other(**changes):
    return {"configurations": {"3d_fullres": {**FULLRES, **changes}}}


def network(**changes):
    return other(architecture={**ARCHITECTURE, "arch_kwargs": {**ARCHITECTURE["arch_kwargs"], **changes}})


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({}, {"configuration": "3d_lowres"}, "no configuration 3d_lowres; choose one with --configuration: 3d_fullres"),
        (other(previous_stage="3d_lowres"), {}, "a cascade, which segkit does not have"),
        (other(normalization_schemes=["Other"]), {}, "segkit does not have Other"),
        (
            other(patch_size=[8, 8], spacing=[1.0, 1.0]),
            {},
            r"has 2 axes, and .* the shape \[16, 20, 8\]: segkit trains volumes with 3D networks",
        ),
        (other(architecture={**ARCHITECTURE, "network_class_name": "x.Primus"}), {}, "the network Primus is not"),
        (other(batch_size=None), {}, "expected patch_size, batch_size and spacing"),
        ({}, {"plans": "other"}, "other.json does not exist"),
        (other(patch_size="large"), {}, "nnUNetPlans.json: 3d_fullres: patch_size"),
        (other(spacing=[1.0]), {}, "expected two or three axes"),
        (other(inherits_from="3d"), {}, "3d_fullres inherits from 3d, which does not exist"),
        (other(inherits_from="3d_fullres"), {}, "or from itself"),
        ({"transpose_forward": [0, 0, 1]}, {}, "expected transpose_forward as an order of axes"),
        (network(features_per_stage=[4, 6]), {}, "expected a kernel, a stride and blocks for each of 2 resolutions"),
        (network(strides=[[2, 2, 2]] * 3), {}, "expected a first stride of 1"),
        (network(kernel_sizes=[[3, 3]] * 3), {}, "the plans have 3 axes, but also the values"),
        (network(conv_bias=False), {}, "segkit has no PlainConvUNet with conv_bias False"),
        (network(nonlin="torch.nn.ReLU"), {}, "nonlin torch.nn.ReLU"),
        (network(norm_op="torch.nn.BatchNorm3d"), {}, "norm_op torch.nn.BatchNorm3d"),
        (network(norm_op_kwargs={"eps": 1e-3}), {}, "norm_op_kwargs"),
        (network(some_new_option=3), {}, "some_new_option 3"),
        (network(features_per_stage=None), {}, "arch_kwargs, features_per_stage"),
        ({"configurations": {"2.5d": FULLRES}}, {}, "has neither 3d_fullres nor 2d; .*: 2.5d"),
        ({"configurations": [1]}, {}, "nnUNetPlans.json: configurations"),
    ],
)
def test_what_cannot_be_followed_is_refused(folder, changes, arguments, message):
    write_plans(folder, **changes)
    with pytest.raises(Exception, match=message) as raised:
        import_plans(folder, **arguments)
    assert raised.value.exit_code in (2, 3)


def test_folders_without_plans_or_images(folder, tmp_path):
    with pytest.raises(ConfigError, match="has no plans: expected the folder of a data set in nnUNet_preprocessed"):
        import_plans(tmp_path)
    write_plans(tmp_path)
    with pytest.raises(ConfigError, match="has no imagesTr: name the folder of the data set in nnUNet_raw"):
        import_plans(tmp_path)
    assert import_plans(tmp_path, images=folder).sections["data"]["root"] == str(folder)
    write_plans(folder, "nnUNetResEncUNetMPlans")
    with pytest.raises(ConfigError, match="choose one with --plans nnUNetPlans, nnUNetResEncUNetMPlans"):
        import_plans(folder)
    assert import_plans(folder, plans="nnUNetPlans").sections["loader"] == {"batch": 2}
