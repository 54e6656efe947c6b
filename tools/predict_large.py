"""Memory and time of predicting images that are larger than memory should hold.

python tools/predict_large.py FOLDER [--picture 20000] [--volume 1024] [--overlap 0]

makes a tiled, compressed colour TIFF and a compressed NIfTI volume in FOLDER, trains a small network on phantoms for
each, predicts them with `segkit predict` in a process of its own, and prints the largest resident memory of that
process: in all, and without the pages of files, which the system takes back when it needs them.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import tifffile
from PIL import Image

CONFIG = """\
labels: {{names: [background, a], mode: binary}}
data: {{name: pairs, images: {folder}/images, masks: {folder}/masks}}
split: {{name: kfold, folds: 2}}
preprocess: {{intensity: {intensity}}}
augment: {{engine: {engine}, transforms: []}}
{sampling}
loader: {{batch: 1}}
model: {{name: unet, widths: [8, 16]}}
loss: dice_ce
optimizer: {{name: adamw, lr: 1e-2}}
train: {{steps: 150}}
evaluation: {{overlays: false}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a folder on a disk with 10 GB of free space")
    parser.add_argument("--picture", type=int, default=20_000, help="side of the picture in pixels; 0 for none")
    parser.add_argument("--volume", type=int, default=1024, help="side of the volume in voxels; 0 for none")
    parser.add_argument("--overlap", type=float, default=0.0, help="overlap of the windows")
    arguments = parser.parse_args()
    for kind, side in (("picture", arguments.picture), ("volume", arguments.volume)):
        if side:
            print(measured(arguments.folder / kind, kind, side, arguments.overlap), flush=True)


def measured(folder: Path, kind: str, side: int, overlap: float) -> str:
    """Make an image, predict it, and say what that took."""
    image = large_picture(folder, side) if kind == "picture" else large_volume(folder, side)
    train(folder, kind)
    command = ["predict", "--checkpoint", folder / "run", "--input", image, "--output", folder / "out"]
    start = time.monotonic()
    process = subprocess.Popen(segkit(*command, "--overwrite", f"evaluation.overlap={overlap}"))
    resident = anonymous = 0
    while process.poll() is None:
        status = read_status(process.pid)
        resident, anonymous = max(resident, status.get("VmHWM", 0)), max(anonymous, status.get("RssAnon", 0))
        time.sleep(0.2)
    minutes = (time.monotonic() - start) / 60
    check(image, folder / "out", process.returncode)
    return (
        f"{kind} of side {side}: {resident / 1e9:.2f} GB resident, {anonymous / 1e9:.2f} GB without pages of files, "
        f"{minutes:.1f} minutes, windows with an overlap of {overlap:g}"
    )


def segkit(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "segkit", *map(str, arguments)]


def read_status(process: int) -> dict[str, int]:
    """Numbers of bytes of /proc/PROCESS/status."""
    try:
        lines = [line.split() for line in Path(f"/proc/{process}/status").read_text().splitlines()]
    except OSError:
        return {}
    return {line[0].rstrip(":"): 1024 * int(line[1]) for line in lines if line[-1] == "kB"}


def large_picture(folder: Path, side: int) -> Path:
    """Bright discs on a noisy ground, in tiles that are made one after another."""
    path, tile = folder / "large.tif", 512
    folder.mkdir(parents=True, exist_ok=True)
    if path.exists():
        return path
    random = np.random.default_rng(0)
    count = -(-side // tile)

    def tiles():
        for _number in range(count * count):
            yield np.repeat(phantom(random, (tile, tile))[0][..., None], 3, -1)

    tifffile.imwrite(
        path,
        tiles(),
        shape=(side, side, 3),
        dtype=np.uint8,
        tile=(tile, tile),
        compression="zlib",
        photometric="rgb",
        bigtiff=True,
    )
    return path


def large_volume(folder: Path, side: int) -> Path:
    """Bright balls on a noisy ground, in slabs that are made one after another."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "large.nii.gz"
    if path.exists():
        return path
    stored = np.memmap(folder / "voxels", np.int16, "w+", shape=(side, side, side))
    random = np.random.default_rng(0)
    block = phantom(random, (side, side, min(side, 64)))[0].astype(np.int16)
    for start in range(0, side, 64):
        stored[..., start : start + 64] = block[..., : side - start]
    nib.save(nib.Nifti1Image(stored, np.diag([0.5, 0.5, 0.5, 1])), path)
    del stored
    (folder / "voxels").unlink()
    return path


def phantom(random: np.random.Generator, size: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Grey values, uint8, and the mask of a disc or ball in each part of 64 pixels."""
    places = np.indices(size, np.int16) % 64 - 32
    mask = (places.astype(np.int32) ** 2).sum(0) < 15**2
    noise = random.integers(0, 40, size, np.uint8)
    return np.where(mask, 150, 60).astype(np.uint8) + noise, mask.astype(np.uint8)


def train(folder: Path, kind: str) -> None:
    """A network for images like the large one."""
    random, small = np.random.default_rng(1), folder / "small"
    for name in ("images", "masks"):
        (small / name).mkdir(parents=True, exist_ok=True)
    for number in range(4):
        image, mask = phantom(random, (192, 192) if kind == "picture" else (96, 96, 96))
        if kind == "picture":
            Image.fromarray(np.repeat(image[..., None], 3, -1)).save(small / "images" / f"{number}.png")
            Image.fromarray(mask).save(small / "masks" / f"{number}.png")
        else:
            for name, array in (("images", image.astype(np.int16)), ("masks", mask)):
                nib.save(nib.Nifti1Image(array, np.diag([0.5, 0.5, 0.5, 1])), small / name / f"{number}.nii.gz")
    text = CONFIG.format(
        folder=small,
        intensity="percentile" if kind == "picture" else "zscore",
        engine="albumentations" if kind == "picture" else "monai",
        sampling="" if kind == "picture" else "sampling: {patch: [64, 64, 64]}",
    )
    (folder / "config.yaml").write_text(text)
    if not (folder / "run" / "checkpoints" / "last.pt").exists():
        subprocess.run(segkit("train", "--config", folder / "config.yaml", f"run.dir={folder / 'run'}"), check=True)


def check(image: Path, output: Path, code: int) -> None:
    """The mask is there, with the size of the image, and finds the objects."""
    assert code == 0, f"exit code {code}"
    if image.suffix == ".tif":
        mask = tifffile.imread(output / "large.tif")
        expected = phantom(np.random.default_rng(0), (512, 512))[1]
        found = mask[:512, :512]
    else:
        volume = nib.Nifti1Image.from_filename(output / image.name)
        found = np.asarray(volume.dataobj[:64, :64, :64])
        expected = phantom(np.random.default_rng(0), (64, 64, 64))[1]
    overlap = 2 * np.logical_and(found, expected).sum() / (found.sum() + expected.sum())
    assert overlap > 0.9, f"Dice of a part of the mask {overlap:.3f}"


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    main()
