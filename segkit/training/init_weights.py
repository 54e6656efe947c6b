"""Loading the weights of `train.init` into a network: those that agree in name and shape."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from segkit.data.preprocess import Preprocess
from segkit.training import checkpoint_fields
from segkit.training.assigned_weights import adapted_to_channels
from segkit.training.checkpoint import CheckpointError, check_fitting
from segkit.training.init_file import read_content
from segkit.training.loaded_weights import HALF, Loaded, Origin, Shapes
from segkit.training.nnunet_weights import model_section, translated
from segkit.training.tensor_pickle import shown
from segkit.training.weight_names import Match, best_match, by_prefix, unwrapped, weight_sets
from segkit.utils.text import listed

IMAGE_CHANNELS = (1, 3)  # of networks for photographs, whose first convolution can be adapted to other channels


def load_weights(
    model: nn.Module, path: Path, *, in_channels: int | None = None, out_channels: int | None = None
) -> Loaded:
    """Load the weights that agree in name and shape from a checkpoint of segkit or of another tool.

    The first convolution of a network for photographs is adapted to other image channels, see `adapted_to_channels`.

    Args:
        model: Receives the weights.
        path: A file of weights, a run folder, or a MONAI bundle.
        in_channels: The image channels of the network; None to adapt nothing.
        out_channels: The output channels of the network, by which the report recognises a head of other classes.

    Raises CheckpointError if the file cannot be read without running code, if no weight agrees, and if weights that
    agree are not finite or are not floating-point numbers where the network expects them.
    """
    network = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    content = read_content(path)
    origin = _origin(content, path)
    match = _match(weight_sets({"model": content.get("model")} if origin is not None else content), network, path)
    if match is None:
        raise _nothing_fits(path, content, network)
    in_file = {name: match.state[file_name] for name, file_name in match.names.items()}
    different = _different_shapes(in_file, network)
    adapted = {} if in_channels is None else _adapted(model, in_file, different, in_channels)
    taken = {name: value for name, value in (in_file | adapted).items() if name in adapted or name not in different}
    check_fitting(path, {name: in_file[name] for name in taken}, network)
    model.load_state_dict(taken, strict=False)
    mismatched = {name: shapes for name, shapes in different.items() if name not in adapted}
    used = set(match.names.values())
    return Loaded(
        taken=tuple(taken),
        missing=tuple(name for name in network if name not in in_file),
        unexpected=tuple(name for name in match.state if name not in used),
        mismatched=mismatched,
        adapted={name: different[name] for name in adapted},
        head=_head(list(mismatched.values()), out_channels),
        place="" if origin is not None else match.place,
        names=match.names,
        notes=match.choice,
        origin=origin,
    )


def _match(sets: Mapping[str, Mapping[str, Tensor]], network: Mapping[str, Tensor], path: Path) -> Match | None:
    """Which weights in a file are those of the network: by their names, or by those of nnU-Net's networks.

    Raises CheckpointError for weights of nnU-Net's networks that have other shapes than this network.
    """
    match = best_match(sets, network)
    if match is not None and _share(match, network) >= HALF:
        return match
    translations = _translations(sets, network)
    of_nnunet = best_match(translations, network)
    if translations and (of_nnunet is None or _share(of_nnunet, network) < HALF):
        raise CheckpointError(_other_shapes(path, next(iter(translations.values())), network))
    return max((found for found in (match, of_nnunet) if found), key=lambda found: found.fitting, default=None)


def _share(match: Match, network: Mapping[str, Tensor]) -> float:
    """The share of the weights of the network, without scalars, that agree."""
    return match.fitting / sum(value.ndim > 0 for value in network.values())


def _translations(
    sets: Mapping[str, Mapping[str, Tensor]], network: Mapping[str, Tensor]
) -> dict[str, Mapping[str, Tensor]]:
    """The sets of weights that are those of nnU-Net, with the names of segkit's networks."""
    results = {}
    for key, state in sets.items():
        for prefix, names in by_prefix(state).items():
            if len(names) < len(state):
                continue  # not the prefix of all names
            plain = {unwrapped(name).removeprefix(prefix): value for name, value in state.items()}
            if weights := translated(plain, network):
                results[f"{key}, with translated names"] = weights
    return results


def _other_shapes(path: Path, weights: Mapping[str, Tensor], network: Mapping[str, Tensor]) -> str:
    """What to do about weights of nnU-Net that are those of another network."""
    different = _different_shapes({name: value for name, value in weights.items() if name in network}, network)
    shapes = [f"{name} (file {before}, network {here})" for name, (before, here) in different.items()]
    why = f"; among those with other shapes are {listed(shapes, limit=2)}" if shapes else ""
    return (
        f"{path} is a checkpoint of nnU-Net, but less than half of the network's weights fit{why}. These weights are "
        f"of the network\n  model: {json.dumps(model_section(weights))}"
    )


def _different_shapes(in_file: Mapping[str, Tensor], network: Mapping[str, Tensor]) -> dict[str, Shapes]:
    return {
        name: (list(value.shape), list(network[name].shape))
        for name, value in in_file.items()
        if value.shape != network[name].shape
    }


def _adapted(
    model: nn.Module, in_file: Mapping[str, Tensor], different: Mapping[str, Shapes], in_channels: int
) -> dict[str, Tensor]:
    """The weights of convolutions on the image, adapted to its channels.

    Only those of networks for grey or colour photographs, whose channels show the same. Those of several modalities
    have an order that the file does not tell; their convolution is left as it was initialised.
    """
    return {
        name: adapted_to_channels(in_file[name], in_channels)
        for name, (before, here) in different.items()
        if _takes_image(model, name, in_channels)
        and before[1] in IMAGE_CHANNELS
        and [before[0], *before[2:]] == [here[0], *here[2:]]
    }


def _takes_image(model: nn.Module, name: str, in_channels: int) -> bool:
    """Whether a weight is that of a convolution with as many input channels as the image."""
    module, _, attribute = name.rpartition(".")
    layer = model.get_submodule(module)
    if attribute != "weight" or not isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return False
    return layer.groups == 1 and layer.in_channels == in_channels


def _head(different: Sequence[Shapes], out_channels: int | None) -> tuple[int, int] | None:
    """The numbers of output channels in the file and here, if the shapes of all weights differ by these alone."""
    if not different or any(len(in_file) != len(here) for in_file, here in different):
        return None
    last_in_file, last = different[-1]
    pairs = {pair for shapes in different for pair in zip(*shapes, strict=True) if pair[0] != pair[1]}
    if len(pairs) > 1 or last_in_file[0] == last[0] or last[0] != out_channels:
        return None
    return last_in_file[0], last[0]


def _nothing_fits(path: Path, content: Any, network: Mapping[str, Tensor]) -> CheckpointError:
    states = list(weight_sets(content).values())
    names = [name for state in states for name in state]
    if not names:
        return CheckpointError(
            f"{path}: expected a checkpoint or a mapping from names to tensors, got {shown(content)}"
        )
    shapes = [
        f"{name} (file {before}, network {here})"
        for state in states
        for name, (before, here) in _different_shapes({n: state[n] for n in network if n in state}, network).items()
    ]
    what = (
        f"the names agree, but not the shapes: {listed(shapes, limit=3)}"
        if shapes
        else f"the file contains {', '.join(names[:3])}, ..., and the network {', '.join(list(network)[:3])}, ..."
    )
    return CheckpointError(
        f"no weight in {path} matches the network: {what}; train.init needs weights of the same network"
    )


def _origin(content: Any, path: Path) -> Origin | None:
    """How the weights of a segkit checkpoint were trained. Raises CheckpointError for damaged fields."""
    if not isinstance(content, dict) or not {"format", "config", "preprocess"} <= content.keys():
        return None
    if wrong := checkpoint_fields.problems(content):
        raise CheckpointError(f"{path}: {listed(wrong, limit=checkpoint_fields.SHOWN, separator='; ')}")
    labels, train = content["config"].get("labels"), content["config"].get("train")
    names = labels.get("names") if isinstance(labels, dict) else None
    return Origin(
        tuple(map(str, names if isinstance(names, list) else ())),
        Preprocess.from_dict(content["preprocess"]),
        is_average=isinstance(train, dict) and train.get("ema") is not None,
    )
