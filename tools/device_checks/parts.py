"""The parts in the order in which they run. The last ones use the time that the others leave."""

from device_checks import losses, machine, marked_tests, resume, shipped, speed, synchronisation, window
from device_checks.checks import Part

# how the page of the documentation with the tables begins
PAGE = """\
# On a CUDA device

`tools/device_check.py` checks and measures segkit on one CUDA device and prints tables in Markdown. It needs
`pip install -e '.[test]'` and no data. On a device with less memory, sizes that do not fit are skipped, and the row
says so. This command replaces the tables of this page; it ends within eight minutes:

```
python tools/device_check.py --output docs/benchmarks/device.md
```

`--only losses speed` runs some of the parts. Each part runs in a process of its own and has a limited time; the last
ones use what the others leave. A check that fails becomes a row that says why, the others go on, and the exit code is
1. Rows are written as they are measured, so a run that is killed leaves those that are finished. Without a device,
`python tools/device_check.py --device cpu --short` runs the same code with tiny sizes, as the tests do.
"""
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
