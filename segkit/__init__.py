"""segkit: train segmentation networks, evaluate them, and find out which losses really differ."""

from importlib import import_module
from typing import TYPE_CHECKING

from segkit._version import VERSION as __version__

if TYPE_CHECKING:
    from segkit.api import Model as Model
    from segkit.api import compare_losses as compare_losses
    from segkit.api import evaluate as evaluate
    from segkit.api import load as load
    from segkit.api import train as train
    from segkit.labels import Labels as Labels
    from segkit.labels import Target as Target

PLACES = {
    "Labels": "segkit.labels",
    "Target": "segkit.labels",
    **dict.fromkeys(("Model", "compare_losses", "evaluate", "load", "train"), "segkit.api"),
}
__all__ = ["Labels", "Model", "Target", "__version__", "compare_losses", "evaluate", "load", "train"]


def __getattr__(name: str) -> object:
    """Import the public names on first use, so that `import segkit` does not import torch."""
    if name in PLACES:
        return getattr(import_module(PLACES[name]), name)
    raise AttributeError(f"module 'segkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
