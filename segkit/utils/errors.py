"""The errors that end a command with a message."""

from __future__ import annotations


class DataError(ValueError):
    """Bad input data. The message names case, file and value, and says what would mend it."""

    exit_code = 3

    @property
    def each(self) -> tuple[str, ...]:
        """What is wrong, one by one."""
        return (str(self),)


class DataErrors(DataError):
    """Several things that are wrong with one case."""

    def __init__(self, *each: DataError):
        super().__init__("\n".join(map(str, each)))
        self._each = tuple(str(one) for one in each)

    @property
    def each(self) -> tuple[str, ...]:
        return self._each


class RunError(ValueError):
    """A run folder that cannot be used as asked."""

    exit_code = 2
