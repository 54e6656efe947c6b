"""segkit: train segmentation networks with the loss you name, and learn which losses really differ."""

from typing import TYPE_CHECKING

from segkit._version import VERSION as __version__

if TYPE_CHECKING:
    from segkit.labels import Labels as Labels
    from segkit.labels import Target as Target

__all__ = ["Labels", "Target", "__version__"]


def __getattr__(name: str) -> object:
    """Load the public classes on first use, so that `import segkit` does not import torch."""
    if name in ("Labels", "Target"):
        import segkit.labels

        return getattr(segkit.labels, name)
    raise AttributeError(f"module 'segkit' has no attribute {name!r}")
