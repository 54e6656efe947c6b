"""A part of the device check whose checks fail in every way, each in a process of its own."""

import os
import signal
import time

from device_checks.checks import Check, Measured, Part, Skip


def _raises(error):
    raise error


def checks(_setup):
    yield Check("good", lambda: Measured(["1"]))
    yield Check("wrong", lambda: Measured(["2"], "too large"))
    yield Check("raises", lambda: _raises(KeyError("a|b\nc")))
    yield Check("too large for the memory", lambda: _raises(MemoryError()))
    yield Check("not here", lambda: _raises(Skip("needs an accelerator")))
    yield Check("too long", lambda: Measured(["3"]), seconds=1e6)
    yield Check("crashes", lambda: os.kill(os.getpid(), signal.SIGSEGV))
    yield Check("never", lambda: Measured(["4"]))


def hanging(_setup):
    yield Check("good", lambda: Measured(["5"]))
    time.sleep(1000)


def breaking(_setup):
    yield Check("good", lambda: Measured(["6"]))
    raise ImportError("no such library")


ODD = Part("odd", "Odd", ["what", "number"], checks, 1000.0)
HANGING = Part("hanging", "Hanging", ["what", "number"], hanging, 0.0)
BREAKING = Part("breaking", "Breaking", ["what", "number"], breaking, 1000.0)
