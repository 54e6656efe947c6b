"""`segkit predict` as a script: python tools/predict.py --help."""

import sys

from segkit.cli import main

if __name__ == "__main__":
    main(["predict", *sys.argv[1:]])
