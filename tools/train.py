"""`segkit train` as a script: python tools/train.py --help."""

import sys

from segkit.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
