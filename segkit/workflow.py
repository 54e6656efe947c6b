"""What each verb of the command line does, from a configuration or a checkpoint to files and tables."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import track

from segkit import assemble
from segkit import evaluate as evaluation
from segkit.assemble_training import Built, build_experiment, init_digest, profile_steps
from segkit.checkpoint import load as load_checkpoint
from segkit.config import Config, dump
from segkit.config_sections import leaves
from segkit.data.cases import RawCase, data_digest
from segkit.data.splits import Split
from segkit.guards import loss_notes, loss_warnings, mirror_warnings
from segkit.judging import checkpoint_file, evaluated_part, write_evaluation
from segkit.losses.supervision import DeepSupervision
from segkit.meter import progress_bar
from segkit.processes import ALONE, Processes, joined
from segkit.profiling import Profiler
from segkit.runs import Ended, Run, RunError
from segkit.stopping import Interrupted
from segkit.tracking import MLflow, TensorBoard
from segkit.train import fit
from segkit.trained import load_trained
from segkit.trainer import Experiment

CONSOLE = Console()
FIXED = ("labels", "model", "optimizer.name", "parameters")  # what a checkpoint cannot be continued without


def train(
    path: Path, overrides: Sequence[str], *, resume: bool, allow: Sequence[str] = (), overfit: int | None = None
) -> None:
    """Train as the configuration says, evaluate last.pt, print the scores; as one of several processes, if torchrun
    has started them.

    allow: keys of the configuration in which a run that is resumed may differ from what it was. overfit: learn this
    many batches by heart instead.
    """
    from segkit.report.tables import print_scores

    with joined() as processes:
        console = CONSOLE if processes.first else Console(quiet=True)
        if overfit is not None:
            overrides = [*overrides, f"train.overfit={overfit}"]
        config = assemble.read(path, overrides)
        run = Run(run_folder(config), writes=processes.first)
        result = run_experiment(config, run, resume=resume, console=console, allow=allow, processes=processes)
        print_scores(result, console)
        console.print(f"run folder: {run.folder}", markup=False)


def run_folder(config: Config) -> Path:
    """`run.dir`, or runs/<name>-<digest> in the current directory."""
    return config.run.dir or Path("runs") / f"{config.name}-{config.digest()}"


def run_experiment(
    config: Config,
    run: Run,
    *,
    resume: bool,
    console: Console,
    allow: Sequence[str] = (),
    processes: Processes = ALONE,
) -> dict[str, Any]:
    """Train into a run folder and evaluate its last checkpoint there. Returns the scores.

    A run that is finished is not trained again; its scores are returned. Raises RunError if the folder holds another
    experiment, if it holds an unfinished run and `resume` was not asked for, or if another process is training there.
    """
    with run.locked():
        found = processes.first_does(lambda: finished_scores(config, run, console, allow))
        return found or _train_and_evaluate(config, run, resume, console, processes)


def finished_scores(config: Config, run: Run, console: Console, allow: Sequence[str] = ()) -> dict[str, Any] | None:
    """The scores of a run that has come to its end; None if there is something left to do.

    A checkpoint of before the first step holds nothing worth keeping: it is left by a run that failed at once, and does
    not keep the mended configuration from starting.
    """
    if not run.last.exists():
        return None
    content = load_checkpoint(run.last)
    if content["step"] == 0 and not run.has_steps:
        run.last.unlink()
        return None
    changed = check_same_experiment(config, run, content, allow)
    if changed:
        console.print(f"continued with changes: {', '.join(changed)}", markup=False, highlight=False)
        return None
    file = run.evaluation(evaluated_part(config, Split.from_json(content["split"]))) / "scores.json"
    scores = json.loads(file.read_text()) if file.exists() else None
    scoring = assemble.scoring_of(config, assemble.build_labels(config))
    if scores is None or not evaluation.is_of(scores, scoring, content["step"]):
        return None
    console.print(f"{run.folder} holds the finished run; nothing is trained", markup=False, highlight=False)
    return scores


def _train_and_evaluate(
    config: Config, run: Run, resume: bool, console: Console, processes: Processes
) -> dict[str, Any]:
    run.check_free(resume=resume)
    built = build_experiment(config, run.folder.parent / "cache", processes, from_init=not run.last.exists())
    experiment, data = built.experiment, built.data
    if config.train.init is not None and run.last.exists():
        experiment.plain["init"] = init_digest(config, load_checkpoint(run.last)["init"])
    part = evaluated_part(config, data.split)
    run.start()
    if run.writes:
        with open(run.folder / "config.yaml", "w") as file:
            dump(built.config, file)
    run.write_json("split.json", data.split.to_json())
    print_header(config, built, console)
    if config.evaluation.read_first and not run.last.exists():
        processes.first_does(lambda: read_first(data, part, console))
    steps = profile_steps(config, experiment.settings)
    profiler = None if steps is None else Profiler(steps, experiment.device)
    with trackers(config, run):
        trainer = fit(experiment, run, resume=resume, console=console, profiler=profiler)
        if profiler is not None and profiler.measured:
            print_profile(profiler, console)
        if config.train.overfit is not None:
            print_overfit(run, config.train.overfit, console)
        result = write_evaluation(
            experiment.predictor(trainer.evaluated_model),
            data.evaluation_set(part),
            data.labels,
            run.evaluation(part),
            split=part,
            origin=evaluation.Origin(
                str(run.last.relative_to(run.folder)),
                trainer.step_number,
                experiment.settings.limits.steps,
                trainer.finished,
                None,
                data.split.content_hash,
            ),
            config=config,
            console=console,
            processes=processes,
        )
        show_overlays(run, run.evaluation(part) / "overlays.png", trainer.step_number)
    return result


def read_first(data: assemble.Data, part: str, console: Console) -> None:
    """Read what will judge the training, which reads its own cases at once and these at its end. Raises DataError."""
    cases = list(dict.fromkeys([*data.cases("validation"), *data.cases(part)]))
    with progress_bar(console) as progress:
        task = progress.add_task("reading what judges", total=len(cases), note="")
        for case in cases:
            data.source.read(case)
            progress.update(task, advance=1)


@contextmanager
def trackers(config: Config, run: Run) -> Iterator[None]:
    """The trackers that the configuration asks for, while the run goes on."""
    if run.writes and config.logging.tensorboard:
        step = load_checkpoint(run.last)["step"] if run.last.exists() else 0
        run.trackers.append(TensorBoard(run.folder, step))
    if run.writes and config.logging.mlflow is not None:
        run.trackers.append(MLflow(config.logging.mlflow, run.folder, run.folder.name, leaves(config.to_dict())))
    ended: Ended = "FAILED"
    try:
        yield
        ended = "FINISHED"
    except (Interrupted, KeyboardInterrupt):
        ended = "KILLED"
        raise
    finally:
        run.close(ended)


def show_overlays(run: Run, file: Path, step: int) -> None:
    """The picture of the evaluation, for the trackers."""
    if run.takes_pictures and file.exists():
        from PIL import Image

        with Image.open(file) as picture:
            run.show_picture("evaluation", np.asarray(picture.convert("RGB")), step)


def check_same_experiment(config: Config, run: Run, content: Mapping[str, Any], allow: Sequence[str] = ()) -> list[str]:
    """What differs from the run's checkpoint, `content`, by keys that are allowed to.

    Raises RunError for whatever else differs, and for keys that cannot be allowed: what the checkpoint holds would not
    fit any more.
    """
    keys = leaves(config.to_dict())
    wrong = [key for key in allow if not any(_within(one, key) for one in keys)]
    if wrong:
        raise RunError(f"--allow {wrong[0]}: the configuration has no such key")
    differences = [*assemble.restore(content["config"]).differences(config), *_other_files(config, content)]
    allowed = [one for one in differences if any(_within(one[0], key) for key in allow)]
    differing = [
        f"{key}: {old!r} in the run, {new!r} now" for key, old, new in differences if (key, old, new) not in allowed
    ]
    if differing:
        shown = "".join(f"\n  {line}" for line in differing)
        raise RunError(
            f"{run.folder} holds a run of another experiment; different are{shown}\n"
            "continue as it was started, choose another folder with run.dir=, or allow a change by its key: --allow KEY"
        )
    fixed = [key for key, *_ in allowed if any(_within(key, one) for one in FIXED)]
    if fixed:
        raise RunError(
            f"--allow {fixed[0]}: the checkpoint's weights and optimiser state are those of the run as it was; start a "
            f"new one from its weights with run.dir= and train.init={run.last}"
        )
    return [f"{key} {old!r} -> {new!r}" for key, old, new in allowed]


def _other_files(config: Config, content: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """The differences that do not show in the configuration: of the cases, their files, and the weights to start
    from; by the keys that these come from."""
    source = assemble.build_source(config, assemble.build_labels(config))
    split = assemble.split_of(config, source)
    init = init_digest(config, content["init"])
    found = [
        ("data", content["data"], data_digest(source.cases)),
        ("split", Split.from_json(content["split"]).content_hash, split.content_hash),
        ("train.init", content["init"], init),
    ]
    return [one for one in found if one[1] != one[2]]


def _within(key: str, allowed: str) -> bool:
    return key == allowed or key.startswith(f"{allowed}.")


def print_profile(profiler: Profiler, console: Console) -> None:
    """Where the time of a step goes."""
    from segkit.report.tables import print_parts

    print_parts(profiler.means(), console)


def print_overfit(run: Run, batches: int, console: Console) -> None:
    """How well the batches were learnt by heart; scores are of cases that were not."""
    losses = [line["loss"] for line in run.records() if line["kind"] == "step" and line["loss"] is not None]
    if losses:
        console.print(f"loss of {batches} overfitted batches: {losses[0]:.4f} at first, {losses[-1]:.4f} at last")


def print_header(config: Config, built: Built, console: Console) -> None:
    """What is about to be trained, and what is known to be wrong with it."""
    from segkit.report.tables import print_class_weights

    for line in header(config, built.experiment, built.data):
        console.print(line, highlight=False)
    for line in built.notes:
        console.print(line, highlight=False, markup=False)
    for weighted in built.weighted:
        print_class_weights(weighted.term, weighted.method, weighted.names, weighted.share, weighted.weights, console)
    pooled = assemble.scoring_of(config, built.data.labels).rules.aggregated("dice") in ("global", "micro")
    for note in loss_notes(config.loss, pooled=pooled):
        console.print(note, style="dim", highlight=False, markup=False)
    sides = mirror_warnings(config.labels.names, config.augment, built.data.preprocess.dims)
    for warning in [*loss_warnings(config.loss), *sides]:
        console.print(f"warning: {warning}", style="yellow", highlight=False, markup=False)


def header(config: Config, experiment: Experiment, data: assemble.Data) -> list[str]:
    """What is about to be trained, in a few lines."""
    parts = ", ".join(f"{len(getattr(data.split, part))} {part}" for part in ("train", "validation", "test"))
    parameters = sum(parameter.numel() for parameter in experiment.model.parameters())
    terms = " + ".join(f"{shown_weight(term['weight'])} {term['name']}" for term in config.loss)
    settings, channels = experiment.settings, data.preprocess.channels
    together = experiment.processes.number
    return [
        f"[bold]{escape(config.name)}[/bold]  {parts} cases, {channels} image channels, {experiment.device}",
        f"{config.model.name}: {parameters:,} parameters; loss: {terms}",
        f"{settings.limits.steps} steps of {shown_batch(config)}, {settings.steps_per_epoch} an epoch"
        + (f", in {together} processes" if together > 1 else ""),
        *on_micro_batches(experiment),
    ]


def shown_batch(config: Config) -> str:
    micro, batch = config.train.accumulate, config.loader.batch
    return f"{batch}" if micro == 1 else f"{micro} x {batch}"


def on_micro_batches(experiment: Experiment) -> list[str]:
    """The terms that accumulated gradients and several processes do not make those of one large batch, if there are
    both."""
    loss = experiment.loss.loss if isinstance(experiment.loss, DeepSupervision) else experiment.loss
    local = loss.defined_on_micro_batches if experiment.settings.accumulate > 1 else []
    return [f"defined on each micro-batch, of which the mean is taken: {', '.join(local)}"] if local else []


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
