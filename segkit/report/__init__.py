"""Pictures and console tables of what was measured."""
