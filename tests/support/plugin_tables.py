"""Plugins add their entries to tables of the whole process."""

import sys

from segkit.experiment import plugins


def forget_plugins(*modules):
    """As a new process would: no plugin has been imported, and none of these modules, which may have failed."""
    for (table, entry), module in list(plugins._providers.items()):
        del plugins.TABLES[table][entry]
        sys.modules.pop(module, None)
    plugins._providers.clear()
    for module in modules:
        sys.modules.pop(module, None)
