"""The command `predict`: write masks for images."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import track

from segkit.data.cases import RawCase
from segkit.experiment.evaluate_run import checkpoint_file
from segkit.experiment.trained_model import load_trained
from segkit.utils.errors import RunError


def predict(checkpoint: Path, source: Path, output: Path, *, device: str | None, console: Console) -> None:
    """Write the predicted mask of an image file, or of each image in a folder.

    Raises RunError if a mask would overwrite an image.
    """
    from segkit.data.mask_writer import mask_files, write_mask
    from segkit.data.readers import image_files, read_image

    trained = load_trained(checkpoint_file(checkpoint), device)
    files = image_files(source)
    images = {file.resolve() for file in files}
    for file in files:
        overwritten = [mask for mask in mask_files(file, output, trained.labels) if mask.resolve() in images]
        if overwritten:
            raise RunError(f"the mask of {file} would overwrite the image {overwritten[0]}: choose another --output")
    output.mkdir(parents=True, exist_ok=True)
    for file in track(files, "predicting", console=console, disable=not console.is_terminal):
        image, spacing = read_image(file)
        write_mask(trained.predict(RawCase(image, None, spacing)), file, output, trained.labels)
    console.print(f"{len(files)} masks written to {output}", markup=False)
