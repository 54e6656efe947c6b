"""A configuration from the files of nnU-Net: its plans, its dataset.json and its splits."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ConfigDict

from segkit.config import ConfigError
from segkit.data.documents import Entry, Text, checked, read_document, read_json
from segkit.data.formats.geometry import ras_orientation
from segkit.data.inspection.known_layouts import dataset_json
from segkit.data.mask_writer import image_geometry
from segkit.data.sources.msd_nnunet import DecathlonSource
from segkit.labels import Labels
from segkit.models.nnunet_shapes import MAX_WIDTH
from segkit.utils.text import listed

SPLITS = "splits_final.json"
PLANS = "*lans*.json"  # plans.json of a trained model, nnUNetPlans.json and others of preprocessed data
REVERSED = ("SimpleITKIO", "NibabelIO", "NibabelIOWithReorient")  # read volumes with the axes z, y, x
TURNED = ("NibabelIOWithReorient",)  # turn them to RAS before
NETWORKS = {"PlainConvUNet": "unet", "ResidualEncoderUNet": "residual_encoder_unet"}
INTENSITIES = {
    "ZScoreNormalization": "zscore",
    "CTNormalization": "dataset",
    "NoNormalization": "none",
    "RescaleTo01Normalization": "percentile",
    "RGBTo01Normalization": "none",  # pictures are read as numbers from 0 to 1
}
CHOSEN = ("3d_fullres", "2d")  # configurations, the first that there is
MODEL_FOLDER = re.compile(r"(?P<trainer>nnUNetTrainer\w*?)__(?P<plans>\w+)__(?P<configuration>\w+)")
TRAINER, FOLDS = "nnUNetTrainer", 5
EPOCHS, ITERATIONS = 1000, 250  # of nnUNetTrainer
FOREGROUND = 0.33  # its oversample_foreground_percent


Axes = list[int]
OPTIONS = {  # of the networks, with the only values that segkit has
    "conv_bias": True,
    "dropout_op": None,
    "nonlin_first": False,
    "stem_channels": None,
    "bottleneck_channels": None,
    "stochastic_depth_p": 0.0,
    "squeeze_excitation": False,
    "squeeze_excitation_reduction_ratio": None,
}
FREE = ("n_stages", "conv_op", "norm_op_kwargs", "dropout_op_kwargs", "nonlin_kwargs", "deep_supervision")
EPS, SLOPES = 1e-5, (0.01, None)  # of norms, and of leaky ReLUs: nnU-Net's, and torch's default


class _Arguments(Entry):
    """The arguments of a network. Those of OPTIONS are checked apart."""

    model_config = ConfigDict(extra="allow", frozen=True)

    features_per_stage: list[int]
    kernel_sizes: list[int | Axes]
    strides: list[int | Axes]
    n_conv_per_stage: list[int] | int | None = None
    n_blocks_per_stage: list[int] | int | None = None
    n_conv_per_stage_decoder: list[int] | int
    norm_op: str = "InstanceNorm"
    nonlin: str = "LeakyReLU"


class _Architecture(Entry):
    network_class_name: str
    arch_kwargs: _Arguments


class _Fold(Entry):
    train: list[Text]
    val: list[Text]


class _Configuration(Entry):
    """One configuration of the plans; in plans before version 2.4 of nnU-Net, the network is described by itself."""

    batch_size: int | None = None
    patch_size: list[int] | None = None
    spacing: list[float] | None = None
    normalization_schemes: tuple[str, ...] = ()
    use_mask_for_norm: tuple[bool, ...] = ()
    batch_dice: bool = False
    architecture: _Architecture | None = None
    inherits_from: str | None = None
    previous_stage: str | None = None
    UNet_class_name: str | None = None
    UNet_base_num_features: int = 32
    unet_max_num_features: int | None = None
    n_conv_per_stage_encoder: tuple[int, ...] = ()
    n_conv_per_stage_decoder: tuple[int, ...] = ()
    pool_op_kernel_sizes: tuple[list[int], ...] = ()
    conv_kernel_sizes: tuple[list[int], ...] = ()


class _Plans(Entry):
    dataset_name: str = ""
    image_reader_writer: str = "SimpleITKIO"
    transpose_forward: list[int] | None = None
    configurations: dict[str, dict[str, Any]]


@dataclass
class ImportedPlans:
    """A configuration, and what became of each setting.

    sections: of the configuration, with absolute paths.
    reasons: comment lines for its keys.
    settings: (setting of nnU-Net, its value, setting of segkit), as text.
    differences: what segkit does otherwise.
    """

    sections: dict[str, Any]
    reasons: dict[str, list[str]] = field(default_factory=dict)
    settings: list[tuple[str, str, str]] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)


def import_plans(
    folder: Path, images: Path | None = None, configuration: str | None = None, plans: str | None = None, fold: int = 0
) -> ImportedPlans:
    """A configuration that trains as nnU-Net would by its plans.

    Args:
        folder: With plans and dataset.json: of nnUNet_preprocessed, or of a trained model.
        images: The folder of nnUNet_raw with imagesTr and labelsTr; `folder` itself if it contains them.
        configuration: Such as 2d; by default that of a trained model by the name of its folder, else 3d_fullres, or 2d
            if there is none.
        plans: Name of the plans, such as nnUNetResEncUNetMPlans, if the folder has several.
        fold: Of splits_final.json, if the folder contains it, otherwise of five folds by segkit.

    Raises ConfigError for plans that segkit cannot follow, and DataError for files that cannot be read.
    """
    file = _plans_file(folder, plans)
    content = read_document(file, _Plans)
    trained = MODEL_FOLDER.fullmatch(folder.absolute().name)
    name = _chosen_name(content, configuration or (trained and trained["configuration"]), file)
    chosen = _configuration(content, name, file)
    root = _images(folder, images)
    layout = dataset_json(root)
    if layout is None or layout.labels is None:
        raise ConfigError(f"{root / 'dataset.json'}: expected nnU-Net's dataset.json with labels")
    try:
        labels = Labels(**layout.labels)
    except ValueError as error:
        raise ConfigError(f"{root / 'dataset.json'}: {error}") from error
    source = DecathlonSource(labels=labels, root=root, unpaired="skip")
    if not source.cases:
        raise ConfigError(f"{root}: expected cases in imagesTr and labelsTr, found none")
    axes = _Axes.of(content, chosen, source.cases[0].images[0], f"{file}: {name}")
    imported = ImportedPlans({"labels": layout.labels, "data": {"name": "nnunet", "root": str(root)}})
    imported.settings.append(("plans, configuration", f"{file.stem}, {name}", ""))
    if trained and trained["trainer"] != TRAINER:
        imported.differences.append(f"the model was trained by {trained['trainer']}; imported is {TRAINER}")
    _split(imported, folder, fold)
    _preprocess(imported, chosen, axes)
    _network(imported, chosen, axes, file)
    _training(imported, chosen, axes)
    return imported


def _plans_file(folder: Path, plans: str | None) -> Path:
    if plans is not None:
        return folder / f"{plans.removesuffix('.json')}.json"
    found = sorted(folder.glob(PLANS))
    if len(found) == 1:
        return found[0]
    if not found:
        raise ConfigError(
            f"{folder} has no plans: expected the folder of a data set in nnUNet_preprocessed (with nnUNetPlans.json), "
            "or of a trained model (with plans.json)"
        )
    raise ConfigError(f"{folder} has several plans: choose one with --plans {listed([path.stem for path in found])}")


def _chosen_name(plans: _Plans, name: str | None, file: Path) -> str:
    known = list(plans.configurations)
    chosen = name or next((chosen for chosen in CHOSEN if chosen in known), None)
    if chosen not in known:
        missing = f"has no configuration {chosen}" if chosen else f"has neither {' nor '.join(CHOSEN)}"
        raise ConfigError(f"{file} {missing}; choose one with --configuration: {listed(known)}")
    return chosen


def _configuration(plans: _Plans, name: str, file: Path) -> _Configuration:
    configuration = checked(_inherited(plans.configurations, name, file), _Configuration, f"{file}: {name}")
    if configuration.previous_stage is not None:
        raise ConfigError(f"{file}: {name} is a cascade, which segkit does not have; choose another --configuration")
    patch, spacing = configuration.patch_size, configuration.spacing
    if patch is None or spacing is None or configuration.batch_size is None:
        raise ConfigError(f"{file}: expected patch_size, batch_size and spacing in the configuration {name}")
    if len(patch) not in (2, 3) or len(spacing) != len(patch):
        raise ConfigError(
            f"{file}: {name}: expected two or three axes, got the patch {patch} and the spacing {spacing}"
        )
    return configuration


def _inherited(configurations: Mapping[str, dict[str, Any]], name: str, file: Path) -> dict[str, Any]:
    """The values of a configuration, with those of the ones that it inherits from."""
    chain = [name]
    while (parent := configurations[chain[-1]].get("inherits_from")) is not None:
        if parent not in configurations or parent in chain:
            raise ConfigError(f"{file}: {chain[-1]} inherits from {parent}, which does not exist, or from itself")
        chain.append(parent)
    values: dict[str, Any] = {}
    for parent in reversed(chain):
        values |= configurations[parent]
    return values


def _images(folder: Path, images: Path | None) -> Path:
    root = folder if images is None else images
    if not (root / "imagesTr").is_dir():
        raise ConfigError(
            f"{root} has no imagesTr: name the folder of the data set in nnUNet_raw, with imagesTr and labelsTr, by "
            "--images"
        )
    return root.absolute()


@dataclass(frozen=True)
class _Axes:
    """The axes of the plans in the order of segkit's: for each of segkit's axes, its number in the plans."""

    order: tuple[int, ...]

    @classmethod
    def of(cls, plans: _Plans, chosen: _Configuration, image: Path, where: str) -> _Axes:
        """nnU-Net keeps the axes of the file, read as z, y, x, and may transpose them; segkit turns volumes to RAS.

        where: names the configuration in errors. Raises ConfigError if the image has other axes.
        """
        assert chosen.patch_size is not None
        dims, geometry = len(chosen.patch_size), image_geometry(image)
        # of 2D plans, the first axis of three is the one along which slices are taken
        forward = plans.transpose_forward or list(range(3))
        if sorted(forward) != list(range(len(forward))) or len(forward) < dims:
            raise ConfigError(f"{where}: expected transpose_forward as an order of axes, got {forward}")
        if geometry is None:
            return cls(tuple(forward.index(axis) for axis in range(3)) if dims == 3 else (0, 1))
        shape = [side for side in geometry.shape if side > 1]
        if dims != len(geometry.shape) or len(shape) < dims:
            raise ConfigError(
                f"{where} has {dims} axes, and {image} the shape {list(geometry.shape)}: segkit trains volumes with "
                f"3D networks, and 2D plans need 2D images; configurations: {listed(list(plans.configurations))}"
            )
        if dims == 2:
            return cls((1, 0) if plans.image_reader_writer in REVERSED else (0, 1))
        stored = [forward.index(axis) for axis in range(3)]  # the axis of the plans for each axis as read
        if plans.image_reader_writer in REVERSED:
            stored.reverse()
        if plans.image_reader_writer in TURNED:
            return cls(tuple(stored))
        order = [0] * dims
        for axis, target in enumerate(ras_orientation(geometry.affine, str(image))[:, 0].astype(int)):
            order[target] = stored[axis]
        return cls(tuple(order))

    def __call__(self, values: Sequence[Any]) -> list[Any]:
        if len(values) != len(self.order):
            raise ConfigError(f"the plans have {len(self.order)} axes, but also the values {list(values)}")
        return [values[axis] for axis in self.order]


def _split(imported: ImportedPlans, folder: Path, fold: int) -> None:
    """The fold of splits_final.json, or of five random folds, as nnU-Net makes them."""
    file = folder / SPLITS
    if not file.exists():
        if fold >= FOLDS:
            raise ConfigError(
                f"expected --fold to be less than {FOLDS}, the number of folds without {SPLITS}, got {fold}"
            )
        imported.sections["split"] = {"name": "kfold", "folds": FOLDS, "fold": fold, "seed": 0}
        imported.differences.append(f"{SPLITS} is not in {folder}: the {FOLDS} folds are segkit's, not nnU-Net's")
        return
    folds = checked(read_json(file), list[_Fold], str(file))
    if fold >= len(folds):
        raise ConfigError(f"{file} has {len(folds)} folds: expected --fold to be less, got {fold}")
    imported.sections["split"] = {"name": "lists", "train": folds[fold].train, "validation": folds[fold].val}
    imported.settings.append((SPLITS, f"fold {fold} of {len(folds)}", "split"))


def _preprocess(imported: ImportedPlans, chosen: _Configuration, axes: _Axes) -> None:
    schemes = chosen.normalization_schemes or ("ZScoreNormalization",)
    unknown = [scheme for scheme in schemes if scheme not in INTENSITIES]
    if unknown:
        raise ConfigError(f"normalization_schemes: segkit does not have {listed(unknown)}")
    intensity = INTENSITIES[schemes[0]]
    assert chosen.spacing is not None
    spacing = axes(chosen.spacing)
    resamples = any(length != 1 for length in spacing) or len(axes.order) == 3
    imported.sections["preprocess"] = {"intensity": intensity, **({"spacing": spacing} if resamples else {})}
    imported.settings += [
        ("normalization_schemes", listed(schemes), f"preprocess.intensity: {intensity}"),
        ("spacing", str(chosen.spacing), f"preprocess.spacing: {spacing}" if resamples else "none"),
    ]
    if len(set(schemes)) > 1:
        imported.differences.append(f"all channels have the intensity {intensity}; nnU-Net has {listed(schemes)}")
    if intensity == "dataset":
        imported.differences.append(
            "nnU-Net clips CT to the percentiles 0.5 and 99.5 of the foreground and normalises by its mean and "
            "deviation; `dataset` takes all pixels and does not clip"
        )
    if "NoNormalization" in schemes:
        imported.differences.append("nnU-Net keeps stored numbers; segkit scales integers to 0..1 by their type")
    if "RescaleTo01Normalization" in schemes:
        imported.differences.append(
            "nnU-Net maps the extremes to 0 and 1; `percentile` maps the percentiles 0.5 and 99.5"
        )
    if any(chosen.use_mask_for_norm):
        imported.differences.append("nnU-Net normalises pixels that are not 0 alone; segkit normalises the whole image")


def _network(imported: ImportedPlans, chosen: _Configuration, axes: _Axes, file: Path) -> None:
    shapes = _modern(chosen, file) if chosen.architecture is not None else _former(chosen, file)
    strides = [axes(step) for step in shapes.strides]
    if not strides or any(number != 1 for number in strides[0]):
        raise ConfigError(f"{file}: expected a first stride of 1, got {shapes.strides[:1]}, which segkit does not have")
    residual = shapes.name == "residual_encoder_unet"
    model = {
        "name": shapes.name,
        "widths": shapes.widths,
        "strides": strides[1:],
        "kernels": [axes(kernel) for kernel in shapes.kernels],
        ("blocks_per_stage" if residual else "encoder_convs"): shapes.encoder,
        "decoder_convs": shapes.decoder[::-1],  # nnU-Net counts from the coarsest resolution on
        "deep_supervision": True,
        **({} if residual else {"norm": "instance", "bias": True, "init": "he"}),
    }
    imported.sections["model"] = model
    imported.settings += [
        ("network", shapes.class_name, f"model: {shapes.name}"),
        ("features, strides, kernels", f"{len(shapes.widths)} resolutions", "model.widths, strides, kernels"),
    ]


@dataclass(frozen=True)
class _Shapes:
    """A network as the plans describe it, with the axes of the plans."""

    class_name: str
    name: str
    widths: list[int]
    strides: list[list[int]]
    kernels: list[list[int]]
    encoder: list[int]
    decoder: list[int]


def _modern(chosen: _Configuration, file: Path) -> _Shapes:
    assert chosen.architecture is not None
    class_name = chosen.architecture.network_class_name.rpartition(".")[2]
    values = chosen.architecture.arch_kwargs
    _refuse_other_networks(class_name, file)
    _refuse_other_options(values, class_name, file)
    assert chosen.patch_size is not None
    dims, levels = len(chosen.patch_size), len(values.features_per_stage)
    encoder = values.n_blocks_per_stage if class_name == "ResidualEncoderUNet" else values.n_conv_per_stage
    if encoder is None or not len(values.kernel_sizes) == len(values.strides) == levels:
        raise ConfigError(
            f"{file}: expected a kernel, a stride and blocks for each of {levels} resolutions of {class_name}"
        )
    return _Shapes(
        class_name,
        NETWORKS[class_name],
        values.features_per_stage,
        [_per(step, dims) for step in values.strides],
        [_per(kernel, dims) for kernel in values.kernel_sizes],
        _per(encoder, levels),
        _per(values.n_conv_per_stage_decoder, levels - 1),
    )


def _refuse_other_networks(class_name: str, file: Path) -> None:
    if class_name not in NETWORKS:
        raise ConfigError(f"{file}: the network {class_name} is not one of {listed(list(NETWORKS))}")


def _refuse_other_options(values: _Arguments, class_name: str, file: Path) -> None:
    """Raise ConfigError for options with which the network would be another one than segkit's."""
    others = {key: value for key, value in (values.model_extra or {}).items() if key not in FREE}
    odd = {key: value for key, value in others.items() if key not in OPTIONS or value not in (OPTIONS[key], None)}
    odd |= {} if "InstanceNorm" in values.norm_op else {"norm_op": values.norm_op}
    odd |= {} if "LeakyReLU" in values.nonlin else {"nonlin": values.nonlin}
    norm = (values.model_extra or {}).get("norm_op_kwargs") or {}
    odd |= {} if norm.get("eps", EPS) == EPS and norm.get("affine", True) else {"norm_op_kwargs": norm}
    slope = ((values.model_extra or {}).get("nonlin_kwargs") or {}).get("negative_slope")
    odd |= {} if slope in SLOPES else {"negative_slope": slope}
    if odd:
        shown = listed([f"{key} {value}" for key, value in odd.items()])
        raise ConfigError(f"{file}: segkit has no {class_name} with {shown}")


def _former(chosen: _Configuration, file: Path) -> _Shapes:
    """The network of plans before version 2.4, whose widths double up to a maximum."""
    if chosen.UNet_class_name is None or not chosen.conv_kernel_sizes:
        raise ConfigError(f"{file}: expected a network, under architecture or as UNet_class_name, found none")
    _refuse_other_networks(chosen.UNet_class_name, file)
    assert chosen.patch_size is not None
    dims = len(chosen.patch_size)
    most = chosen.unet_max_num_features or MAX_WIDTH[dims]
    levels = range(len(chosen.conv_kernel_sizes))
    return _Shapes(
        chosen.UNet_class_name,
        NETWORKS[chosen.UNet_class_name],
        [min(chosen.UNet_base_num_features * 2**level, most) for level in levels],
        list(chosen.pool_op_kernel_sizes),
        list(chosen.conv_kernel_sizes),
        list(chosen.n_conv_per_stage_encoder),
        list(chosen.n_conv_per_stage_decoder),
    )


def _per(value: int | Sequence[int], number: int) -> list[int]:
    """A value for each of a number of axes or resolutions."""
    return [value] * number if isinstance(value, int) else list(value)


def _training(imported: ImportedPlans, chosen: _Configuration, axes: _Axes) -> None:
    """Sampling, loss, optimiser and length, which are those of nnUNetTrainer for all plans."""
    assert chosen.patch_size is not None
    patch, steps = axes(chosen.patch_size), EPOCHS * ITERATIONS
    dice = {"name": "dice", "like": "nnunet", **({"per": "batch"} if chosen.batch_dice else {})}
    imported.sections |= {
        "augment": {"engine": "monai", "preset": "nnunet"},
        "sampling": {"patch": patch, "foreground": FOREGROUND, "balance": "classes"},
        "loader": {"batch": chosen.batch_size},
        "loss": [dice, {"name": "cross_entropy", "like": "nnunet"}],
        "optimizer": {"name": "sgd", "lr": 1e-2, "momentum": 0.99, "nesterov": True, "weight_decay": 3e-5},
        "parameters": {"decay_norms_and_biases": True},
        "schedule": {"name": "poly", "power": 0.9},
        "train": {
            "steps": steps,
            "precision": "auto",
            "channels_last": True,
            "clip_norm": 12,
            "validate_every": {"fraction": 0.02},
        },
        "evaluation": {"window": patch, "overlap": 0.5},
    }
    imported.reasons["train.steps"] = [f"{EPOCHS} epochs of {ITERATIONS} steps, as nnU-Net: days on a CPU"]
    imported.settings += [
        ("patch_size", str(chosen.patch_size), f"sampling.patch: {patch}"),
        ("batch_size", str(chosen.batch_size), "loader.batch"),
        ("oversample_foreground_percent", str(FOREGROUND), "sampling.foreground"),
        ("batch_dice", str(chosen.batch_dice).lower(), f"loss.0.per: {'batch' if chosen.batch_dice else 'image'}"),
        ("loss", "Dice + cross-entropy", "loss: dice + cross_entropy, like: nnunet"),
        ("optimiser", "SGD 0.01, momentum 0.99", "optimizer"),
        ("num_epochs", f"{EPOCHS} of {ITERATIONS} steps", f"train.steps: {steps}"),
        ("data augmentation", TRAINER, "augment.preset: nnunet"),
    ]
    imported.differences += [
        "nnU-Net takes a third of each batch, at least one patch, around foreground; segkit that share of all patches",
        "nnU-Net's deep supervision leaves out the coarsest resolution; segkit's weight halves down to it",
        "nnU-Net augments anisotropic patches in their plane only, which the preset nnunet does not; it resamples with "
        "splines, segkit linearly",
        "nnU-Net's schedule changes once per epoch, segkit's at every step; nnU-Net validates on patches, segkit on "
        "whole images",
        "nnU-Net mirrors images in prediction by default; here, predict and evaluate do with --tta",
    ]
