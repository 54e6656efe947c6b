"""From an image to logits and a mask."""

from segkit.inference.predictor import Prediction, Predictor, sliding_window

__all__ = ["Prediction", "Predictor", "sliding_window"]
