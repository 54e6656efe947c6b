"""The fields of a checkpoint: their types, and whether they fit a network and an optimiser."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from segkit.data.preprocess import Preprocess
from segkit.data.splits import Split
from segkit.training.tensor_pickle import shown
from segkit.utils.text import listed

SHOWN = 3  # problems named in a message
MOMENTS: dict[type[Optimizer], tuple[str, ...]] = {Adam: ("step", "exp_avg", "exp_avg_sq"), SGD: ("momentum_buffer",)}


def _accepted(build: Callable[[Any], object]) -> AfterValidator:
    """Accept what a function accepts, which raises ValueError for anything else."""

    def check(value: Any) -> Any:
        build(value)
        return value

    return AfterValidator(check)


def _check_weights(state: Mapping[str, Any]) -> None:
    for name, value in state.items():
        if not isinstance(value, Tensor) and not name.endswith("_extra_state"):  # which modules may define themselves
            raise ValueError(f"expected the weights {name[:60]} to be a tensor, got {shown(value)}")
        if isinstance(value, Tensor) and value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ValueError(f"expected the numbers of {name[:60]} in the file, got fewer for the shape {value.shape}")


def _check_scalar(value: Tensor) -> None:
    if value.ndim or not value.is_floating_point():
        raise ValueError(f"expected a single floating-point number, got {shown(value)}")


def _check_random(value: Tensor) -> None:
    try:
        torch.Generator().set_state(value)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"expected the state of a random generator, got {shown(value)}") from error


def _check_plain(content: Mapping[str, Any]) -> None:
    """Accept what YAML can hold: text, numbers, lists and mappings, whose keys may be numbers, as those of masks."""
    waiting: list[tuple[str, Any]] = list(content.items())
    while waiting:
        place, value = waiting.pop()
        if isinstance(value, Mapping):
            for key in value:
                if not isinstance(key, (str, int, float)):
                    raise ValueError(f"expected text or numbers as keys of {place}, got {shown(key)}")
            waiting += [(f"{place}.{key}"[:200], item) for key, item in value.items()]
        elif isinstance(value, (list, tuple)):
            waiting += [(f"{place}.{number}"[:200], item) for number, item in enumerate(value)]
        elif not isinstance(value, (str, int, float, type(None))):
            raise ValueError(f"expected plain data in {place}, got {shown(value)}")


Plain = Annotated[dict[str, Any], _accepted(_check_plain)]
Weights = Annotated[dict[str, Any], _accepted(_check_weights)]
Scalars = dict[str, Annotated[Tensor, _accepted(_check_scalar)]]
Steps = Annotated[int, Field(ge=0, lt=2**53)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True, arbitrary_types_allowed=True, allow_inf_nan=False)


class _Time(_Section):
    training_seconds: Annotated[float, Field(ge=0)]


class _OptimizerState(_Section):
    state: dict[int, dict[str, Any]]
    param_groups: list[dict[str, Any]]


class _Schedule(_Section):
    best: float | None
    since: Steps
    current: Annotated[float, Field(ge=0)]


class _Meter(_Section):
    scalars: list[Scalars]
    cases: list[list[str]]
    in_a_row: Steps


class _RandomStates(_Section):
    cpu: Annotated[Tensor, _accepted(_check_random)]
    cuda: Tensor | None = None


class _Training(_Section):
    model: Weights
    optimizer: _OptimizerState
    schedule: _Schedule | None
    scaler: dict[str, float]
    meter: _Meter
    gradients: dict[str, Scalars] | None
    random: Annotated[list[_RandomStates], Field(min_length=1)]


class Pretrained(_Section):
    """Where pretrained weights came from; `hub`, `revision`, `url` and `name` if they are published."""

    source: str
    file: str
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Fields(_Section):
    """Every field of a checkpoint. Which of them a command needs is its own business."""

    config: Plain = {}
    resolved: Plain = {}
    preprocess: Annotated[dict[str, Any], _accepted(Preprocess.from_dict)] = {}
    split: Annotated[dict[str, Any], _accepted(Split.from_json)] = {}
    data: str = ""
    init: str | None = None
    pretrained: Pretrained | None = None
    plugins: dict[str, str] = {}
    integers_scaled: bool | None = None
    environment: Plain = {}
    step: Steps = 0
    steps: Annotated[Steps, Field(ge=1)] = 1
    finished: Literal["steps", "max_steps", "max_minutes", "patience"] | None = None
    validation_pending: bool = False
    selected_on: Literal["train", "validation", "test"] | None = None
    best: float | None = None
    best_step: Steps = 0
    time: _Time | None = None
    model: Weights = {}
    training: _Training | None = None


NEVER_NULL = ("time", "training")


def problems(content: Mapping[str, Any]) -> list[str]:
    """What is wrong with the types and values of the fields of a checkpoint, one text per field."""
    null = [f"{name}: expected a mapping, got None" for name in NEVER_NULL if name in content and content[name] is None]
    try:
        Fields.model_validate(dict(content))
    except ValidationError as error:
        found = [_described(problem, content) for problem in error.errors(include_url=False, include_context=False)]
        return null + list(dict.fromkeys(found))
    return null


def _described(problem: Any, content: Any) -> str:
    """The place of a problem and what was expected. Of the steps to it, some are types that pydantic tried."""
    steps, is_missing = problem["loc"], problem["type"] == "missing"
    place: list[str] = []
    for step in steps:
        is_key = isinstance(content, dict) and step in content
        if is_key or (isinstance(content, (list, tuple)) and isinstance(step, int)):
            content = content[step]
            place.append(str(step)[:60])
    name = ".".join([*place, str(steps[-1])] if is_missing else place) or "the checkpoint"
    if is_missing:
        return f"{name}: is missing"
    message = problem["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    return f"{name}: {message}" + ("" if problem["type"] == "value_error" else f", got {shown(problem['input'])}")


def weight_problems(state: Mapping[str, Any], network: nn.Module) -> list[str]:
    """Why weights do not fit a network; the network may be on the meta device."""
    expected = {name: value for name, value in network.state_dict().items() if isinstance(value, Tensor)}
    stored = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    common = [name for name in expected if name in stored]
    shapes = [
        f"{name} (file {list(stored[name].shape)}, network {list(expected[name].shape)})"
        for name in common
        if stored[name].shape != expected[name].shape
    ]
    kinds = [
        f"{name} (file {stored[name].dtype}, network {expected[name].dtype})"
        for name in common
        if kind_of_numbers(stored[name]) != kind_of_numbers(expected[name])
    ]
    texts = {
        "missing": [name for name in expected if name not in stored],
        "not in the network": [name[:60] for name in stored if name not in expected],
        "of another shape": shapes,
        "of another type": kinds,
    }
    return [f"{text}: {listed(names, limit=SHOWN)}" for text, names in texts.items() if names]


def kind_of_numbers(value: Tensor) -> str:
    """Whether a tensor holds floating-point, complex, boolean or integer numbers."""
    if value.is_complex():
        return "complex"
    return "floating point" if value.is_floating_point() else "boolean" if value.dtype == torch.bool else "integer"


def not_finite(state: Mapping[str, Any]) -> list[str]:
    """The weights with NaN or infinite numbers, and how many."""
    found = {}
    for name, value in state.items():
        if isinstance(value, Tensor) and value.is_floating_point() and value.numel():
            count = value.numel() - int(torch.isfinite(value).sum())
            found |= {name: f"{name} ({count} of {value.numel()} numbers)"} if count else {}
    return list(found.values())


def optimizer_problems(stored: Mapping[str, Any], optimizer: Optimizer) -> list[str]:
    """Why the state of an optimiser cannot be loaded into another one."""
    expected, groups = optimizer.state_dict()["param_groups"], stored["param_groups"]
    if [group["params"] for group in expected] != [group.get("params") for group in groups]:
        return ["training.optimizer.param_groups: expected the parameter groups of the network, got others"]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    names = next((names for kind, names in MOMENTS.items() if isinstance(optimizer, kind)), ())
    return [
        f"training.optimizer.state.{number}.{name}: expected floating-point numbers of the shape of the parameter, got "
        f"{shown(state.get(name))}"
        for number, state in stored["state"].items()
        for name in names
        if not 0 <= number < len(parameters) or not _is_moment(state.get(name), parameters[number])
    ]


def _is_moment(value: Any, parameter: Tensor) -> bool:
    if not isinstance(value, Tensor) or not value.is_floating_point() or not bool(torch.isfinite(value).all()):
        return False
    return value.numel() == 1 or value.shape == parameter.shape
