"""Planning a configuration for a data set: its fingerprint, and proposed values with the arithmetic behind them.

Planning has no effect on training: the proposal is written to a configuration file that the user may edit.
"""

from segkit.experiment.planning.choice import PlannedNetwork
from segkit.experiment.planning.fingerprint import Fingerprint, extract_fingerprint
from segkit.experiment.planning.memory import MemoryLimit, PlanDevice, memory_limit
from segkit.experiment.planning.proposal import Proposal, propose

__all__ = [
    "Fingerprint",
    "MemoryLimit",
    "PlanDevice",
    "PlannedNetwork",
    "Proposal",
    "extract_fingerprint",
    "memory_limit",
    "propose",
]
