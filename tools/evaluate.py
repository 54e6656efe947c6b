"""The command `segkit evaluate` as a script. For its options, run python tools/evaluate.py --help."""

import sys

from segkit.cli import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
