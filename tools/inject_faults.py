"""Kill processes, take away disks and memory, damage files and send hostile input, and print what was survived.

    python tools/inject_faults.py                     all kinds, a few tries each
    python tools/inject_faults.py --tries 100 kills   the kinds whose name contains `kills`

A try is survived if the program did what it should: the same result as without the fault after the same command was
given again, or one clear message and its exit code; see docs/reliability.md. The exit code is 0 if all are survived.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.faults import all_faults  # pyright: ignore[reportMissingImports]

SHOWN = 3  # failures of a kind that are printed


def main() -> None:
    """Try each kind, and print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", help="parts of the names of kinds; all kinds without any")
    parser.add_argument("--tries", type=int, default=5, help="tries of each kind")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    chosen = {
        name: fault
        for name, fault in all_faults().items()
        if not arguments.kinds or any(part in name for part in arguments.kinds)
    }
    if not chosen:
        sys.exit(f"no kind contains {', '.join(arguments.kinds)}; there are:\n" + "\n".join(all_faults()))
    print(f"| {'kind':58} | tried | survived | seconds |\n|{'-' * 60}|------:|---------:|--------:|", flush=True)
    failures: list[str] = []
    for name, fault in chosen.items():
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            results = list(fault(Path(folder), arguments.tries, arguments.seed))
        failed = [result for result in results if result is not None]
        survived = len(results) - len(failed)
        print(f"| {name:58} | {len(results):5} | {survived:8} | {time.monotonic() - start:7.0f} |", flush=True)
        failures += [f"{name}: {failure}" for failure in failed[:SHOWN]]
    if failures:
        sys.exit("\n" + "\n".join(failures))


if __name__ == "__main__":
    main()
