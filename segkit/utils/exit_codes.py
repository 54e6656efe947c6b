"""Exit codes, the messages for expected errors, and the tracebacks of unexpected ones."""

from __future__ import annotations

import errno
import os
import time
import traceback
from pathlib import Path

from segkit.utils.errors import folder_of, is_out_of_memory

BUG = 1
USAGE = 2  # or configuration, or a file that cannot be read or written
DATA = 3
OUT_OF_MEMORY = 4
WORKER_DIED = 5

REDUCE_MEMORY = "use fewer loader.workers, loader.cache: disk, or a smaller sampling.patch"
TIMED_OUT = "DataLoader timed out"
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

    None for an unexpected error, which is a bug, see `record_bug`.
    """
    code = getattr(error, "exit_code", None)
    if isinstance(code, int):
        return code
    if isinstance(error, OSError) and error.errno is not None:
        return USAGE
    if is_out_of_memory(error):
        return OUT_OF_MEMORY
    text = str(error)
    if isinstance(error, RuntimeError) and ("DataLoader worker" in text or TIMED_OUT in text):
        return WORKER_DIED
    return None


WAYS_OUT = {
    errno.ENOSPC: "the disk is full: free some space, then give the same command again",
    errno.EDQUOT: "the disk quota is used up: free some space, then give the same command again",
    errno.EFBIG: "the limit on the size of a file is reached: raise it (ulimit -f), then give the same command again",
    errno.EROFS: "the file system is read-only: choose another folder",
    errno.EACCES: "no permission: change the permissions, or choose another folder",
    errno.EPERM: "no permission: change the permissions, or choose another folder",
    errno.ENOENT: "it does not exist, or was deleted or renamed while the command ran",
    errno.EEXIST: "there is something of this name already: choose another name",
    errno.ENOTDIR: "a file where a folder is expected: choose another folder",
    errno.EISDIR: "a folder where a file is expected: choose a file",
    errno.ESTALE: "the network file system was unmounted or changed: mount it again, then give the same command again",
    errno.EIO: "the disk or network file system fails: check it, then give the same command again",
    errno.EMFILE: "too many open files: raise the limit (ulimit -n), or use fewer loader.workers",
    errno.ENAMETOOLONG: "the file system does not allow a name of this length: choose a shorter one",
}


def file_error(error: OSError) -> str:
    """What failed, on which file, and the way out."""
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    what = f"{error.strerror or error}" + (f": {' -> '.join(names)}" if names else "")
    way_out = WAYS_OUT.get(error.errno or 0)
    return what if way_out is None else f"{what}; {way_out}"


def describe(error: Exception) -> str:
    """The message for an error. The traceback of an unexpected one is written to a file, which the message names."""
    code = exit_code(error)
    if code is None:
        return record_bug(error)
    if code == WORKER_DIED:
        return worker_death(error)
    if isinstance(error, OSError) and error.errno is not None:
        return file_error(error)
    return str(error) or ("out of memory" if code == OUT_OF_MEMORY else type(error).__name__)


REPORT = "please report it with this file and what `segkit doctor` prints"


def record_bug(error: Exception) -> str:
    """Write the traceback of an unexpected error to a file and return the message for the user.

    The file is written to the run folder, if the error arose in a run, otherwise to the current directory.
    """
    text = "".join(traceback.format_exception(error))
    name = f"traceback-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    for folder in (folder_of(error), Path.cwd()):
        file = None if folder is None else folder / name
        try:
            if file is not None:
                with open(file, "x") as opened:
                    opened.write(text)
                what = f"unexpected {type(error).__name__}: {error}"
                return f"{what}; this is a bug, whose traceback is in {file.absolute()}; {REPORT}"
        except OSError:  # a full disk or a read-only folder: try the next one
            continue
    return f"unexpected {type(error).__name__}; this is a bug, whose traceback cannot be written to a file:\n{text}"


def worker_death(error: Exception) -> str:
    """The likely cause of a dead or hanging loader worker, from torch's message or from the error that caused it."""
    text = f"{error} {error.__cause__ or error.__context__}"
    if TIMED_OUT in text:
        return (
            f"{error}: a data loading worker hangs, or its storage is slow; check the storage, use a larger "
            "loader.timeout (seconds), or loader.workers=0 to see the cause"
        )
    cause = next((explanation for sign, explanation in CAUSES_OF_DEATH.items() if sign in text), str(error))
    return f"a data loading worker died: {cause}"
