"""Check and measure segkit on a CUDA device, and print tables in Markdown.

    python tools/device_check.py --output docs/benchmarks/device.md     on a CUDA device, under eight minutes
    python tools/device_check.py --device cpu --short                   the same code with tiny sizes, without a device
    python tools/device_check.py --only losses speed                    some parts

Each part runs in a process of its own and has a limited time. A check that fails becomes a row that says why, and the
others go on; a size that does not fit into the memory is skipped. Rows are written as they are measured. The exit code
is 1 if a check has failed.
"""

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for deterministic training
sys.path.insert(0, str(Path(__file__).parents[1]))  # segkit need not be installed
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch
from device_checks.checks import FAILED, Setup
from device_checks.parts import PAGE, PARTS
from device_checks.runner import Output, opened, run_parts


def main() -> None:
    """Run the parts and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--short", action="store_true", help="tiny sizes")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS), help="parts (default: all)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the tables to this file")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device; --device cpu --short runs the same code with tiny sizes")
    is_whole = arguments.device == "cuda" and not arguments.short and set(arguments.only) == set(PARTS)
    if not is_whole and arguments.output is not None and arguments.output.exists():
        parser.error(f"{arguments.output} exists, and a part of the check would replace all of it; name another file")
    file = opened(arguments.output)
    output = Output([sys.stdout] if file is None else [sys.stdout, file])
    output.line(PAGE)
    parts = [PARTS[name] for name in arguments.only]
    outcomes = run_parts(parts, Setup(arguments.device, arguments.short), output)
    sys.exit(1 if outcomes[FAILED] else 0)


if __name__ == "__main__":
    main()
