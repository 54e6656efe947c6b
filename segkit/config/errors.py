"""The error of a configuration."""


class ConfigError(ValueError):
    """All errors of a configuration, one per line."""

    exit_code = 2
