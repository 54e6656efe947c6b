"""From an image to logits and a mask."""

from segkit.inference.prediction import Prediction
from segkit.inference.predictor import Predictor, sliding_window

__all__ = ["Prediction", "Predictor", "sliding_window"]
