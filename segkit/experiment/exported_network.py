"""A network as a file that runs without segkit, and what else is needed to predict with it, as plain data."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from segkit._version import VERSION
from segkit.data.preprocess import PERCENTILES, Preprocess
from segkit.experiment.trained_ensemble import TrainedEnsemble
from segkit.experiment.validate import fixed_size
from segkit.inference.decisions import Decisions
from segkit.inference.memory import WHOLE
from segkit.inference.predictor import Predictor
from segkit.utils.errors import RunError
from segkit.utils.optional import require
from segkit.utils.padding import padded

Format = Literal["onnx", "torch"]
FILES = {"onnx": "model.onnx", "torch": "model.pt2"}
AXES = {2: ["height", "width"], 3: ["x", "y", "z"]}  # of volumes in RAS orientation
READ = {
    True: "integers of image files are divided by the largest value of their type",
    False: "values as stored",
    None: "unknown: the checkpoint does not record how integers were read",
}
EXAMPLE_SIDES = (64, 96, 80)  # different, so that no two axes are taken for one
FORMAT = 1


def export_network(ensemble: TrainedEnsemble, kind: Format, file: Path, *, any_size: bool) -> None:
    """Write the network in float32, with a batch of any number.

    any_size: whether images may have any size that the network takes, instead of that of the window, see `with_size`.

    Raises RunError if the network cannot be exported, with the reason of torch.
    """
    predictor, preprocess = _single(ensemble), ensemble.preprocesses[0]
    network = copy.deepcopy(predictor.model).cpu().float().eval()
    network = network.to(memory_format=torch.contiguous_format)
    sides = EXAMPLE_SIDES[: preprocess.dims] if any_size else predictor.window or ()
    image = torch.zeros(2, preprocess.channels, *padded(sides, predictor.multiple, predictor.minimum_pixels))
    try:
        write_network(network, image, kind, file, any_size=any_size)
    except Exception as error:  # of a network that torch cannot trace, which may be anything
        if hasattr(error, "exit_code"):
            raise
        advice = "; with --size, such as that of the window, its graph may be simpler" if any_size else ""
        raise RunError(f"the network cannot be exported: {_root_reason(error)}{advice}") from error


def write_network(network: nn.Module, image: Tensor, kind: Format, file: Path, *, any_size: bool) -> None:
    """Write a network for images like an example [B, C, *S], with a batch of any number.

    any_size: whether images may have other sizes than the example.

    Raises whatever torch raises if the network cannot be exported.
    """
    dims = image.ndim - 2
    dynamic = {0: torch.export.Dim.DYNAMIC}
    dynamic |= {axis + 2: torch.export.Dim.DYNAMIC for axis in range(dims)} if any_size else {}
    with torch.no_grad():
        program = torch.export.export(network, (image,), dynamic_shapes=(dynamic,))
    if kind == "torch":
        torch.export.save(program, file)
    else:
        _write_onnx(program, file, dims)


def _root_reason(error: BaseException) -> str:
    """The first line of the first error of a chain, with its type."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300] if lines else 'no reason'}"


def _single(ensemble: TrainedEnsemble) -> Predictor:
    if not isinstance(ensemble.predictor, Predictor):
        raise RunError(
            "expected checkpoints that see an image in the same way (spacing, intensities, window), so that they make "
            "one network; these do not"
        )
    return ensemble.predictor


def _write_onnx(program: torch.export.ExportedProgram, file: Path, dims: int) -> None:
    for module in ("onnx", "onnxscript"):
        require(module, "onnx", "exporting to ONNX")
    exported = torch.onnx.export(
        program, (), None, dynamo=True, input_names=["image"], output_names=["logits"], verbose=False
    )
    assert exported is not None
    graph: Any = exported.model.graph
    for value in (*graph.inputs, *graph.outputs):
        names = ["batch", None, *AXES[dims]]
        for axis, name in enumerate(names):
            if name is not None and not isinstance(value.shape[axis], int):
                value.shape[axis] = name
    exported.save(file)


class ExportedNetwork(nn.Module):
    """An exported file as a network: image [B, C, *S] -> logits [B, K, *S], on the CPU."""

    def __init__(self, file: Path, kind: Format):
        super().__init__()
        if kind == "torch":
            self.run = torch.export.load(file).module()
        else:
            runtime = require("onnxruntime", "onnx", "checking an ONNX file")
            session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
            self.run = lambda image: torch.from_numpy(session.run(None, {"image": image.numpy()})[0])

    def train(self, mode: bool = True) -> ExportedNetwork:
        """An exported network has one mode only."""
        del mode
        return self

    def forward(self, image: Tensor) -> Tensor:
        try:
            return self.run(image.contiguous())
        except Exception as error:  # of a runtime, which may be anything
            sides = " x ".join(map(str, image.shape[2:]))
            raise RunError(
                f"the exported file cannot predict an image of {sides} pixels: {_root_reason(error)}; export it for "
                "one size, such as that of the window, with --size"
            ) from error


def with_network(ensemble: TrainedEnsemble, network: nn.Module) -> TrainedEnsemble:
    """The same way of predicting on the CPU with another network."""
    predictor = replace(_single(ensemble), model=network, device=torch.device("cpu"), channels_last=False)
    return replace(ensemble, predictor=predictor)


def with_size(ensemble: TrainedEnsemble, size: Sequence[int] | None) -> TrainedEnsemble:
    """The same ensemble, which predicts every image in windows of the only size of its network, if there is one.

    Raises RunError for a size that the network does not take.
    """
    predictor, dims = _single(ensemble), ensemble.preprocesses[0].dims
    only = size or fixed_size(ensemble.members[0].predictor.model)
    if only is None:
        return ensemble
    sides = tuple(only)
    if len(sides) != dims or padded(sides, predictor.multiple, predictor.minimum_pixels) != sides:
        multiple = predictor.multiple
        raise RunError(
            f"expected --size with {dims} sides that are multiples of {multiple}, and enough pixels for the network "
            f"({predictor.minimum_pixels}), got {list(sides)}"
        )
    return replace(ensemble, predictor=replace(predictor, window=sides, large_window=sides, multiple=sides))


def description(
    ensemble: TrainedEnsemble, kind: Format, decisions: Decisions | None, *, any_size: bool
) -> dict[str, Any]:
    """What is needed to predict with the file, beside the file itself. any_size: see `export_network`."""
    predictor, preprocess, labels = _single(ensemble), ensemble.preprocesses[0], ensemble.labels
    decisions = decisions or Decisions()
    multiple = predictor.multiple
    axes = AXES[preprocess.dims]
    return {
        "format": FORMAT,
        "segkit": VERSION,
        "file": FILES[kind],
        "input": {
            "name": "image",
            "type": "float32",
            "axes": ["batch", "channel", *axes],
            "channels": preprocess.channels,
            "size": None if any_size else list(predictor.window or ()),
            "multiple_of": list(multiple) if isinstance(multiple, tuple) else [multiple] * preprocess.dims,
            "minimum_pixels": predictor.minimum_pixels,
        },
        "output": {"name": "logits", "axes": ["batch", "class", *axes], "classes": list(labels.channel_names)},
        "labels": {
            "names": list(labels.names),
            "mode": labels.mode,
            "regions": None
            if labels.regions is None
            else {name: list(values) for name, values in labels.regions.items()},
        },
        "preprocessing": _preprocessing(preprocess, ensemble.members[0].integers_scaled),
        "averaged": {
            "checkpoints": len(ensemble.members),
            "orientations": [str(orientation) for orientation in ensemble.orientations],
        },
        "window": {
            "size": None if predictor.window is None else list(predictor.window),
            "size_of_large_images": None if predictor.large_window is None else list(predictor.large_window),
            "rule": "images that fit into the window are predicted as a whole; without a window, those whose "
            f"prediction needs more than {WHOLE / 1e9:g} GB are predicted in windows for large images",
            "overlap": predictor.overlap,
            "blending": "Gaussian weights with a standard deviation of 1/8 of each side",
        },
        "decoding": _decoding(ensemble, decisions),
    }


def _preprocessing(preprocess: Preprocess, integers_scaled: bool | None) -> dict[str, Any]:
    rules: Mapping[str, Any] = {
        "zscore": "each channel of the image: minus its mean, divided by its standard deviation (by 1 if that is 0)",
        "percentile": "each channel of the image: its 0.5th and 99.5th percentiles become 0 and 1, values beyond them "
        + ("are cut off" if preprocess.clips else "stay distinct"),
        "dataset": "each channel: minus `mean`, divided by `std`, which are those of the training images",
        "encoder": "each channel: minus `mean`, divided by `std`, which are those of the encoder's images in 0 to 1",
        "none": "unchanged",
    }
    return {
        "steps": ["read", "resample", "normalise", "pad"],
        "read": {
            "integers_scaled": integers_scaled,
            "rule": READ[integers_scaled],
            "orientation": "RAS" if preprocess.dims == 3 else None,
        },
        "resample": {
            "spacing": None if preprocess.spacing is None else list(preprocess.spacing),
            "rule": "linear, the borders of the outermost pixels aligned; probabilities are resampled back in the same "
            "way",
        },
        "normalise": {
            "name": preprocess.intensity,
            "rule": rules[preprocess.intensity],
            "mean": list(preprocess.shift),
            "std": list(preprocess.scale),
            "percentiles": list(PERCENTILES) if preprocess.intensity == "percentile" else [],
        },
        "pad": {"value": 0, "rule": "at the end of each axis to the next multiple; the output is cut to the image"},
    }


def _decoding(ensemble: TrainedEnsemble, decisions: Decisions) -> dict[str, Any]:
    labels = ensemble.labels
    post_processing = {
        name: {**asdict(process), "in_words": str(process)} for name, process in decisions.post_processing.items()
    }
    common = {
        "temperature": decisions.temperature,
        "temperature_rule": "divides logits before they become probabilities to be shown; it changes no mask",
        "post_processing": post_processing,
        "post_processing_rule": "first `smallest` (pixels), then `largest`, then `fill`; pixels that share a corner "
        "are of one object, a hole is closed over sides; removed pixels become background, only background is filled",
    }
    if labels.mode == "multiclass":
        return {"rule": "softmax over classes; the class with the largest logit", "thresholds": {}, **common}
    default = ensemble.predictor.threshold
    present = default if isinstance(default, tuple) else (default,) * labels.channels
    thresholds = {
        name: decisions.thresholds.get(name, value) for name, value in zip(labels.channel_names, present, strict=True)
    }
    return {
        "rule": "sigmoid of the logits as they are; a class where that exceeds its threshold",
        "thresholds": thresholds,
        **common,
    }
