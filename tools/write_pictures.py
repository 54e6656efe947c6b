"""Write the pictures of the documentation from the runs that they show.

SEGKIT_DATA=... python tools/train.py --config configs/hippocampus.yaml run.dir=runs/hippocampus
python tools/compare.py --config configs/quickstart.yaml --losses cross_entropy,dice,dice_ce --seeds 3 \\
    --parallel 2 --out quickstart-losses train.epochs=8
python tools/write_pictures.py runs/hippocampus quickstart-losses
"""

import argparse
import shutil
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder of configs/hippocampus.yaml")
    parser.add_argument("comparison", type=Path, help="folder of the comparison on the quickstart")
    arguments = parser.parse_args()
    shutil.copyfile(arguments.run / "evaluation" / "validation" / "overlays.png", DOCS / "hippocampus.png")
    shutil.copyfile(arguments.comparison / "figures" / "runs.png", DOCS / "comparison.png")


if __name__ == "__main__":
    main()
