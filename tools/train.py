"""The command `segkit train` as a script. For its options, run python tools/train.py --help."""

import sys

from segkit.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
