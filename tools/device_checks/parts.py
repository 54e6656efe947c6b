"""The parts in the order in which they run. The last ones use the time that the others leave."""

from device_checks import losses, machine, marked_tests, resume, shipped, speed, synchronisation, window
from device_checks.checks import Part

_STEPS = ["configuration", *shipped.COLUMNS]
_PARTS = (
    Part("machine", "Machine", ["", ""], machine.checks, 20),
    Part("tests", "Tests that need a CUDA device", ["test", "seconds"], marked_tests.checks, 30),
    Part("synchronisation", "No waiting for the device", ["what"], synchronisation.checks, 45, synchronisation.NOTE),
    Part("losses", "Losses against float64", ["loss", *losses.COLUMNS], losses.checks, 40, losses.NOTE),
    Part("resume", "Killed and resumed", ["training", "steps", "killed after"], resume.checks, 75, resume.NOTE),
    Part("prediction", "Prediction", ["image", *window.COLUMNS], window.checks, 40, window.NOTE),
    Part("speed", "Time and memory of losses", ["shape, loss", *speed.COLUMNS], speed.checks, 90, speed.NOTE),
    Part("steps", "Steps of the configurations", _STEPS, shipped.checks, 110, shipped.NOTE),
)
PARTS = {part.name: part for part in _PARTS}
