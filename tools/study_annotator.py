"""Score the second annotator of CHASE_DB1 against the first, as a network would be scored.

python tools/study_annotator.py

The scores of all 28 eyes go to docs/results/annotator-cases.csv. The environment variable SEGKIT_DATA names the folder
of the data sets.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from collect_results import DIGITS, RESULTS, foreground_scores

ANNOTATORS = {"references": "1stHO", "predictions": "2ndHO"}


def main() -> None:
    masks = Path(os.environ["SEGKIT_DATA"]) / "chase_db1" / "manual"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for role, annotator in ANNOTATORS.items():  # masks are matched by equal names
            (folder / role).mkdir()
            for file in sorted(masks.glob(f"*_{annotator}.png")):
                shutil.copy(file, folder / role / file.name.replace(f"_{annotator}", ""))
        folders = [text for role in ANNOTATORS for text in (f"--{role}", str(folder / role))]
        options = ["--classes", "background,vessel", "--metrics", "cldice", "--out", str(folder / "scores")]
        subprocess.run([sys.executable, "-m", "segkit.cli", "evaluate", *folders, *options], check=True)
        table = foreground_scores(folder / "scores")
    child = table["case"].str.extract(r"Image_(\d+)", expand=False)
    table.assign(group=child).to_csv(RESULTS / "annotator-cases.csv", index=False, float_format=DIGITS)


if __name__ == "__main__":
    main()
