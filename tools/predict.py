"""The command `segkit predict` as a script. For its options, run python tools/predict.py --help."""

import sys

from segkit.cli import main

if __name__ == "__main__":
    main(["predict", *sys.argv[1:]])
