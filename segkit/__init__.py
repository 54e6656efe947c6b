"""segkit: train segmentation networks, evaluate them, and find out which losses really differ."""

from importlib import import_module
from typing import TYPE_CHECKING

from segkit._version import VERSION as __version__

if TYPE_CHECKING:
    from segkit.api import ComparisonResult as ComparisonResult
    from segkit.api import EvaluationResult as EvaluationResult
    from segkit.api import Model as Model
    from segkit.api import TrainResult as TrainResult
    from segkit.api import compare_losses as compare_losses
    from segkit.api import evaluate as evaluate
    from segkit.api import load as load
    from segkit.api import train as train
    from segkit.config import ConfigError as ConfigError
    from segkit.labels import Labels as Labels
    from segkit.labels import Target as Target
    from segkit.training.checkpoint import CheckpointError as CheckpointError
    from segkit.utils.errors import DataError as DataError
    from segkit.utils.errors import MissingExtra as MissingExtra
    from segkit.utils.errors import RunError as RunError

PLACES = {
    "Labels": "segkit.labels",
    "Target": "segkit.labels",
    "CheckpointError": "segkit.training.checkpoint",
    "ConfigError": "segkit.config",
    **dict.fromkeys(("DataError", "MissingExtra", "RunError"), "segkit.utils.errors"),
    **dict.fromkeys(
        (
            *("ComparisonResult", "EvaluationResult", "Model", "TrainResult"),
            *("compare_losses", "evaluate", "load", "train"),
        ),
        "segkit.api",
    ),
}
PACKAGES = (
    *("compare", "config", "data", "evaluation", "inference", "losses", "metrics", "models", "testing", "training"),
)
__all__ = ["Labels", "Target", "__version__", *(name for name in PLACES if name not in ("Labels", "Target"))]


def __getattr__(name: str) -> object:
    """Import the public names on first use, so that `import segkit` does not import torch."""
    if name in PLACES:
        return getattr(import_module(PLACES[name]), name)
    if name in PACKAGES:
        return import_module(f"segkit.{name}")
    raise AttributeError(f"module 'segkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
