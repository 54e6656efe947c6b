"""Exit codes, and the messages for errors that the command line expects."""

from __future__ import annotations

USAGE = 2  # or configuration
DATA = 3
OUT_OF_MEMORY = 4
WORKER_DIED = 5

REDUCE_MEMORY = "use fewer loader.workers, loader.cache: disk, or a smaller sampling.patch"
CAUSES_OF_DEATH = {
    "signal: Killed": f"it was killed (SIGKILL), usually because the system ran out of memory; {REDUCE_MEMORY}",
    "signal: Bus error": (
        "it ran out of shared memory (SIGBUS); give the container more, for example --shm-size=8g, or use "
        "loader.workers=0"
    ),
    "signal: Segmentation fault": (
        "a library crashed (SIGSEGV), for example on a damaged file; `segkit data check` finds the case that causes it"
    ),
    "exited unexpectedly": f"it exited unexpectedly, usually because the system ran out of memory; {REDUCE_MEMORY}",
}


def exit_code(error: Exception) -> int | None:
    """2 usage or configuration, 3 data, 4 out of memory, 5 a worker died, 130 or 143 interrupted.

    None for an unexpected error, which is a bug and keeps its traceback.
    """
    code = getattr(error, "exit_code", None)
    if isinstance(code, int):
        return code
    if isinstance(error, (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError)):
        return USAGE
    text = str(error)
    if isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text:
        return OUT_OF_MEMORY
    if isinstance(error, RuntimeError) and "DataLoader worker" in text:
        return WORKER_DIED
    return None


def worker_death(error: Exception) -> str:
    """The likely cause of a dead loader worker, from torch's message or from the error that caused it."""
    text = f"{error} {error.__cause__ or error.__context__}"
    cause = next((explanation for sign, explanation in CAUSES_OF_DEATH.items() if sign in text), str(error))
    return f"a data loading worker died: {cause}"
