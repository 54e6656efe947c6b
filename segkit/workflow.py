"""What each verb of the command line does, from a configuration or a checkpoint to files and tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import track

from segkit import assemble
from segkit import evaluate as evaluation
from segkit.checkpoint import load as load_checkpoint
from segkit.config import Config, dump
from segkit.data.cases import RawCase
from segkit.data.splits import Split
from segkit.guards import loss_notes, loss_warnings
from segkit.judging import checkpoint_file, evaluated_part, write_evaluation
from segkit.runs import Run, RunError
from segkit.train import fit
from segkit.trained import load_trained

CONSOLE = Console()


def train(path: Path, overrides: Sequence[str], *, resume: bool) -> None:
    """Train as the configuration says, evaluate last.pt, print the scores."""
    from segkit.report.tables import print_scores

    config = assemble.read(path, overrides)
    run = Run(run_folder(config))
    result = run_experiment(config, run, resume=resume, console=CONSOLE)
    print_scores(result, CONSOLE)
    CONSOLE.print(f"run folder: {run.folder}", markup=False)


def run_folder(config: Config) -> Path:
    """`run.dir`, or runs/<name>-<digest> in the current directory."""
    return config.run.dir or Path("runs") / f"{config.name}-{config.digest()}"


def run_experiment(config: Config, run: Run, *, resume: bool, console: Console) -> dict[str, Any]:
    """Train into a run folder and evaluate its last checkpoint there. Returns the scores.

    A run that is finished is not trained again; its scores are returned. Raises RunError if the folder holds another
    experiment, if it holds an unfinished run and `resume` was not asked for, or if another process is training there.
    """
    with run.locked():
        return finished_scores(config, run, console) or _train_and_evaluate(config, run, resume, console)


def finished_scores(config: Config, run: Run, console: Console) -> dict[str, Any] | None:
    """The scores of a run that has come to its end; None if there is something left to do.

    A checkpoint of before the first step holds nothing worth keeping: it is left by a run that failed at once, and does
    not keep the mended configuration from starting.
    """
    if not run.last.exists():
        return None
    content = load_checkpoint(run.last)
    if content["step"] == 0:
        run.last.unlink()
        return None
    check_same_experiment(config, run, content)
    file = run.evaluation(evaluated_part(config, Split.from_json(content["split"]))) / "scores.json"
    scores = json.loads(file.read_text()) if file.exists() else None
    scoring = assemble.scoring_of(config, assemble.build_labels(config))
    if scores is None or not evaluation.is_of(scores, scoring, content["steps"]):
        return None
    console.print(f"{run.folder} holds the finished run; nothing is trained", markup=False, highlight=False)
    return scores


def _train_and_evaluate(config: Config, run: Run, resume: bool, console: Console) -> dict[str, Any]:
    run.check_free(resume=resume)
    built = assemble.build_experiment(config, cache=run.folder.parent)
    experiment, data = built.experiment, built.data
    part = evaluated_part(config, data.split)
    run.start()
    with open(run.folder / "config.yaml", "w") as file:
        dump(built.config, file)
    run.write_json("split.json", data.split.to_json())
    print_header(config, built, console)
    trainer = fit(experiment, run, resume=resume, console=console)
    return write_evaluation(
        experiment.predictor(trainer.evaluated_model),
        data.evaluation_set(part, cache=False),
        data.labels,
        run.evaluation(part),
        split=part,
        origin=evaluation.Origin(
            str(run.last.relative_to(run.folder)), trainer.step_number, experiment.settings.steps, None
        ),
        config=config,
        console=console,
    )


def check_same_experiment(config: Config, run: Run, content: Mapping[str, Any]) -> None:
    """Raise RunError if the run's checkpoint, `content`, is of another experiment, with what differs."""
    before = assemble.restore(content["config"])
    differing = [f"{key}: {old!r} in the run, {new!r} now" for key, old, new in before.differences(config)]
    if not differing and Split.from_json(content["split"]) != assemble.build_split(config):
        differing = [f"the cases or their split, which were those of {run.folder / 'split.json'}"]
    if differing:
        shown = "".join(f"\n  {line}" for line in differing)
        raise RunError(
            f"{run.folder} holds a run of another experiment; different are{shown}\n"
            "continue as it was started, or choose another folder with run.dir="
        )


def print_header(config: Config, built: assemble.Built, console: Console) -> None:
    """What is about to be trained, and what is known to be wrong with it."""
    from segkit.report.tables import print_class_weights

    for line in header(config, built.experiment, built.data):
        console.print(line, highlight=False)
    for weighted in built.weighted:
        print_class_weights(weighted.term, weighted.method, weighted.names, weighted.share, weighted.weights, console)
    pooled = assemble.scoring_of(config, built.data.labels).rules.aggregated("dice") in ("global", "micro")
    for note in loss_notes(config.loss, pooled=pooled):
        console.print(note, style="dim", highlight=False, markup=False)
    for warning in loss_warnings(config.loss):
        console.print(f"warning: {warning}", style="yellow", highlight=False, markup=False)


def header(config: Config, experiment: Any, data: assemble.Data) -> list[str]:
    """What is about to be trained, in a few lines."""
    parts = ", ".join(f"{len(getattr(data.split, part))} {part}" for part in ("train", "validation", "test"))
    parameters = sum(parameter.numel() for parameter in experiment.model.parameters())
    terms = " + ".join(f"{shown_weight(term['weight'])} {term['name']}" for term in config.loss)
    settings, channels = experiment.settings, data.preprocess.channels
    return [
        f"[bold]{escape(config.name)}[/bold]  {parts} cases, {channels} image channels, {experiment.device}",
        f"{config.model.name}: {parameters:,} parameters; loss: {terms}",
        f"{settings.steps} steps of {config.loader.batch}, {settings.steps_per_epoch} an epoch",
    ]


def shown_weight(weight: Any) -> str:
    """A number, or the name of a schedule with its arguments."""
    if not isinstance(weight, Mapping):
        return f"{weight:g}"
    return f"({weight['name']} {', '.join(f'{key} {value:g}' for key, value in weight.items() if key != 'name')})"


def predict(given: Path, source: Path, output: Path, *, device: str | None) -> None:
    """Write a mask for each image of a file or folder. Raises RunError if a mask would replace an image."""
    from segkit.data.readers import image_files, read_image
    from segkit.data.writers import mask_files, write_mask

    trained = load_trained(checkpoint_file(given), device)
    files = image_files(source)
    images = {file.resolve() for file in files}
    for file in files:
        replaced = [mask for mask in mask_files(file, output, trained.labels) if mask.resolve() in images]
        if replaced:
            raise RunError(f"the mask of {file} would replace the image {replaced[0]}; choose another --output")
    output.mkdir(parents=True, exist_ok=True)
    for file in track(files, "predicting", console=CONSOLE, disable=not CONSOLE.is_terminal):
        image, spacing = read_image(file)
        write_mask(trained.predict(RawCase(image, None, spacing)), file, output, trained.labels)
    CONSOLE.print(f"masks of {len(files)} images written to {output}", markup=False)
