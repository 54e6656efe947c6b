"""The command `predict`."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import track

from segkit.data.cases import RawCase
from segkit.experiment.evaluate_run import checkpoint_file
from segkit.experiment.trained_model import load_trained
from segkit.utils.errors import RunError


def predict(given: Path, source: Path, output: Path, *, device: str | None, console: Console) -> None:
    """Write a mask for each image of a file or folder. Raises RunError if a mask would replace an image."""
    from segkit.data.mask_writer import mask_files, write_mask
    from segkit.data.readers import image_files, read_image

    trained = load_trained(checkpoint_file(given), device)
    files = image_files(source)
    images = {file.resolve() for file in files}
    for file in files:
        replaced = [mask for mask in mask_files(file, output, trained.labels) if mask.resolve() in images]
        if replaced:
            raise RunError(f"the mask of {file} would replace the image {replaced[0]}; choose another --output")
    output.mkdir(parents=True, exist_ok=True)
    for file in track(files, "predicting", console=console, disable=not console.is_terminal):
        image, spacing = read_image(file)
        write_mask(trained.predict(RawCase(image, None, spacing)), file, output, trained.labels)
    console.print(f"masks of {len(files)} images written to {output}", markup=False)
