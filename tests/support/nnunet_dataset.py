"""A small data set in the layout of nnU-Net, and plans as nnU-Net writes them."""

import json

import numpy as np

ARCHITECTURE = {
    "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
    "arch_kwargs": {
        "n_stages": 3,
        "features_per_stage": [4, 6, 8],
        "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
        "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
        "n_conv_per_stage": [1, 2, 3],
        "n_conv_per_stage_decoder": [1, 2],
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "dropout_op": None,
    },
}
FULLRES = {
    "batch_size": 2,
    "patch_size": [4, 12, 8],
    "spacing": [3.0, 0.6, 0.5],
    "normalization_schemes": ["ZScoreNormalization"],
    "use_mask_for_norm": [False],
    "batch_dice": True,
    "architecture": ARCHITECTURE,
}


def write_dataset(folder, direction=(1, 0, 0, 0, 1, 0, 0, 0, 1), size=(16, 20, 8), spacing=(0.5, 0.6, 3.0)):
    """A data set of nnU-Net with four volumes. size, spacing: of the axes x, y, z of the file."""
    import SimpleITK as sitk

    random = np.random.default_rng(0)
    for kind in ("imagesTr", "labelsTr"):
        (folder / kind).mkdir(parents=True)
    for number in range(4):
        image = random.normal(size=size[::-1]).astype(np.float32)
        for kind, name, array in (
            ("imagesTr", f"c{number}_0000.nii.gz", image),
            ("labelsTr", f"c{number}.nii.gz", (image > 1).astype(np.uint8)),
        ):
            volume = sitk.GetImageFromArray(array)
            volume.SetSpacing(spacing)
            volume.SetDirection(direction)
            sitk.WriteImage(volume, str(folder / kind / name))
    labels = {"background": 0, "lesion": 1}
    content = {"channel_names": {"0": "MRI"}, "labels": labels, "numTraining": 4, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(content))


def write_plans(folder, name="nnUNetPlans", **changes):
    content = {
        "dataset_name": "Dataset001_Small",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "configurations": {"3d_fullres": FULLRES},
    }
    (folder / f"{name}.json").write_text(json.dumps({**content, **changes}))
