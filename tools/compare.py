"""The command `segkit compare` as a script. For its options, run python tools/compare.py --help."""

import sys

from segkit.cli import main

if __name__ == "__main__":
    main(["compare", *sys.argv[1:]])
