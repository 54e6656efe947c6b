"""The `segkit` command. Heavy imports stay inside the functions, so that --help answers at once."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from segkit._version import VERSION
from segkit.cli_data import data_app
from segkit.cli_options import ConfigOption, Overrides

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
config_app = typer.Typer(help="Look at configurations.", no_args_is_help=True)
app.add_typer(config_app, name="config")
app.add_typer(data_app, name="data")

DeviceOption = Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps; default: as the checkpoint says.")]

USAGE = 2
OUT_OF_MEMORY = 4
WORKER_DIED = 5
FEWER = "use fewer loader.workers, loader.cache: disk, or a smaller sampling.patch"
DEATHS = {
    "signal: Killed": f"it was killed (SIGKILL), as the system does when memory runs out; {FEWER}",
    "signal: Bus error": (
        "it had no shared memory left (SIGBUS); give the container more of it, such as --shm-size=8g, or use "
        "loader.workers=0"
    ),
    "signal: Segmentation fault": (
        "a library crashed (SIGSEGV), as on a damaged file; `segkit data check` finds the case at which it does"
    ),
    "exited unexpectedly": f"it ended without a word, most often because memory ran out; {FEWER}",
}


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"segkit {VERSION}")
        raise typer.Exit


@app.callback()
def segkit(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Train segmentation networks, evaluate checkpoints, and learn which losses really differ."""


@app.command()
def train(
    config: ConfigOption,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the last checkpoint of the run.")] = False,
    allow: Annotated[
        list[str] | None, typer.Option(help="A key that may differ from what the resumed run was started with.")
    ] = None,
    overfit: Annotated[
        int | None, typer.Option(min=1, help="Learn so many batches by heart, without augmentation: can it learn?")
    ] = None,
) -> None:
    """Train, then evaluate the last checkpoint."""
    from segkit import workflow

    workflow.train(config, overrides or [], resume=resume, allow=allow or [], overfit=overfit)


@app.command()
def evaluate(
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(help="A run folder (its last.pt), or a .pt file, which needs --out. Several for a table of all."),
    ] = None,
    overrides: Overrides = None,
    split: Annotated[str | None, typer.Option(help="train, validation or test; default: as the run evaluated.")] = None,
    metrics: Annotated[str | None, typer.Option(help="Names separated by commas, such as dice,hd95,nsd.")] = None,
    rules: Annotated[
        str | None, typer.Option(help="segkit, nnunet, monai, torchmetrics, mmseg or smp: what empty classes count.")
    ] = None,
    predictions: Annotated[Path | None, typer.Option(help="A folder of masks that any tool predicted.")] = None,
    references: Annotated[Path | None, typer.Option(help="The folder of the masks they are judged by.")] = None,
    classes: Annotated[
        str | None, typer.Option(help="Of --predictions: class names by number: background,a,b.")
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(help="Of --predictions: multiclass (default), binary, or multilabel, [K, ...] of 0, 1."),
    ] = None,
    regions: Annotated[
        str | None,
        typer.Option(help="Of --predictions: classes as unions of values, whole:1+2,core:2, in place of --classes."),
    ] = None,
    ignore: Annotated[
        int | None, typer.Option(help="Of --predictions: the reference value that counts nowhere.")
    ] = None,
    exclude: Annotated[
        str | None, typer.Option(help="Classes that are left out of tables and means; their pixels still count.")
    ] = None,
    values: Annotated[
        str | None, typer.Option(help="Of --predictions: values of the files that stand for others: 255:1,7:0.")
    ] = None,
    tolerance: Annotated[float | None, typer.Option(min=0, help="Of NSD, in mm, or pixels for pictures.")] = None,
    group: Annotated[
        str | None, typer.Option(help="Of --predictions: a regular expression whose first group is the patient.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Other data of the same layout, all of it evaluated; needs --out.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where to write; default: the run folder.")] = None,
    device: DeviceOption = None,
) -> None:
    """Score checkpoints, or a folder of predicted masks: cases.csv, scores.json, pictures and a table."""
    from segkit import judging

    if bool(checkpoint) == bool(predictions):
        raise typer.BadParameter("give --checkpoint, or --predictions with --references, --classes and --out")
    if predictions is not None:
        if references is None or (classes is None and regions is None) or out is None:
            raise typer.BadParameter("--predictions needs --references, --classes (or --regions) and --out too")
        if regions is not None and (classes is not None or mode not in (None, "multilabel")):
            raise typer.BadParameter("--regions are the classes, and overlap: leave --classes and --mode out")
        unused = {"--split": split, "--data": data, "--device": device, "key=value": overrides}
        given = [name for name, value in unused.items() if value]
        if given:
            raise typer.BadParameter(f"--predictions takes no {', '.join(given)}: nothing is predicted")
        unions = None if regions is None else _regions(regions)
        judging.evaluate_predictions(
            predictions,
            references,
            _list(classes or "") if unions is None else list(unions),
            out,
            mode=mode or "multiclass" if unions is None else "multilabel",
            regions=unions,
            ignore=ignore,
            exclude=_list(exclude) if exclude else [],
            values=_value_map(values),
            metrics=_list(metrics or "dice,iou"),
            rules=rules or "segkit",
            tolerance=tolerance,
            group=group,
        )
        return
    unused = {
        "--references": references,
        "--classes": classes,
        "--mode": mode,
        "--regions": regions,
        "--ignore": ignore,
        "--group": group,
        "--values": values,
    }
    given = [name for name, value in unused.items() if value is not None]
    if given:
        raise typer.BadParameter(f"{', '.join(given)} belong to --predictions; a checkpoint knows its own data")
    asked = {
        "metrics": metrics and f"[{metrics}]",
        "rules": rules,
        "exclude_classes": exclude and f"[{exclude}]",
        "tolerance_mm": tolerance,
    }
    chosen = [f"evaluation.{name}={value}" for name, value in asked.items() if value is not None]
    judging.evaluate(checkpoint or [], [*(overrides or []), *chosen], split=split, data=data, out=out, device=device)


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def _regions(text: str) -> dict[str, list[int]]:
    """whole:1+2+3,core:2+3 as lists of values."""
    try:
        pairs = [part.split(":") for part in _list(text)]
        regions = {name: [int(value) for value in union.split("+")] for name, union in pairs}
        if len(regions) < len(pairs):
            raise ValueError("a name comes twice")
        return regions
    except ValueError as error:
        raise typer.BadParameter(f"expected --regions as whole:1+2+3,core:2+3, each name once, got {text}") from error


def _value_map(text: str | None) -> dict[int, int]:
    """255:1,7:0 as numbers."""
    try:
        pairs = [part.split(":") for part in _list(text)] if text else []
        numbers = {int(value): int(number) for value, number in pairs}
        if len(numbers) < len(pairs):
            raise ValueError("a value comes twice")
        return numbers
    except ValueError as error:
        raise typer.BadParameter(f"expected --values as 255:1,7:0, each value once, got {text}") from error


@app.command()
def predict(
    checkpoint: Annotated[Path, typer.Option(help="A run folder (its last.pt), or a .pt file.")],
    input: Annotated[Path, typer.Option(help="An image, or a folder of images.")],
    output: Annotated[Path, typer.Option(help="The folder for the masks.")],
    device: DeviceOption = None,
) -> None:
    """Write the predicted mask of each image, on the image's own grid."""
    from segkit import workflow

    workflow.predict(checkpoint, input, output, device=device)


@app.command()
def compare(
    config: Annotated[Path | None, typer.Option("--config", "-c", help="The YAML file of the experiment.")] = None,
    overrides: Overrides = None,
    losses: Annotated[str | None, typer.Option(help="Names of losses or recipes, separated by commas.")] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Runs of each loss [3]; three or more to say anything of losses.")
    ] = None,
    folds: Annotated[int | None, typer.Option(min=2, help="Of k-fold, each judged on its own part.")] = None,
    baseline: Annotated[str | None, typer.Option(help="Compare with this loss only; default: all pairs.")] = None,
    margin: Annotated[
        float | None, typer.Option(min=0, help="Differences inside +- this are equivalent [0.005].")
    ] = None,
    metric: Annotated[str | None, typer.Option(help="dice, iou, nsd, hd95, ... [dice].")] = None,
    aggregation: Annotated[
        str | None, typer.Option(help="Of cases and classes: class_case, case_class, global, ... [class_case].")
    ] = None,
    aa: Annotated[bool, typer.Option("--aa", help="The baseline twice: the noise floor.")] = False,
    from_table: Annotated[Path | None, typer.Option(help="A long table to analyse; nothing is trained.")] = None,
    engine: Annotated[str, typer.Option(help="local or ray.")] = "local",
    parallel: Annotated[
        int | None, typer.Option(min=1, help="Units at once; default: GPUs, or a quarter of the cores.")
    ] = None,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="End where other processes train all that is left.")
    ] = False,
    family: Annotated[str | None, typer.Option(help="all_pairs or vs_baseline.")] = None,
    missing: Annotated[
        str | None, typer.Option(help="What values missing in a table count: right or wrong [refused].")
    ] = None,
    classes: Annotated[str | None, typer.Option(help="Of a table, those that count [all but background].")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the units and the time they take.")] = False,
    out: Annotated[Path, typer.Option(help="The folder of the comparison.")] = Path("comparison"),
) -> None:
    """Train each loss with each seed under equal conditions and say which differences are real.

    What is left out here may be said in the section comparison of the configuration.
    """
    import json

    from rich.console import Console

    from segkit.compare.report import Analysis, compare_table

    console = Console()
    if from_table is not None:
        trained = {"--losses": losses, "--seeds": seeds, "--folds": folds, "--aa": aa, "--config": config}
        trained |= {"--parallel": parallel, "--no-wait": no_wait, "--dry-run": dry_run}
        trained |= {"--engine": engine != "local"}
        senseless = [name for name, value in trained.items() if value] + list(overrides or [])
        if senseless:
            raise typer.BadParameter(f"{senseless[0]} is for trainings; --from-table trains nothing")
        chosen = {"metric": metric, "baseline": baseline, "margin": margin, "family": family, "missing": missing}
        chosen |= {"aggregation": aggregation}
        analysis = Analysis(**{key: one for key, one in chosen.items() if one is not None})
        compare_table(from_table, out, analysis, console, classes.split(",") if classes else None)
        return
    if missing is not None or classes is not None:
        raise typer.BadParameter("--missing and --classes are for --from-table")
    if config is None:
        raise typer.BadParameter("give --config, or --from-table")
    from segkit.compare.execute import Asked
    from segkit.compare.execute import compare as run

    given = {
        "losses": None if losses is None else losses.split(","),
        "seeds": seeds,
        "folds": folds,
        "baseline": baseline,
        "family": family,
        "margin": margin,
        "metric": metric,
        "aggregation": aggregation,
        "aa": aa or None,
    }
    said = [f"comparison.{key}={json.dumps(value)}" for key, value in given.items() if value is not None]
    run(config, [*(overrides or []), *said], Asked(out, engine, parallel, dry_run, not no_wait), console)


@config_app.command("show")
def config_show(config: ConfigOption, overrides: Overrides = None) -> None:
    """Print the resolved configuration, every default filled in."""
    from segkit import assemble
    from segkit.config import dump

    dump(assemble.read(config, overrides or []), sys.stdout)


@config_app.command("validate")
def config_validate(config: ConfigOption, overrides: Overrides = None) -> None:
    """Check a configuration and list everything that is wrong with it."""
    from segkit import assemble

    checked = assemble.read(config, overrides or [])
    typer.echo(f"{config}: valid, digest {checked.digest()}")


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON schema of a configuration."""
    import json

    from segkit.assemble import TABLES
    from segkit.config import schema

    typer.echo(json.dumps(schema(TABLES), indent=2))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; expected errors become a message and an exit code instead of a traceback."""
    warnings.showwarning = show_warning
    try:
        app(args=list(arguments) if arguments is not None else None)
    except Exception as error:
        code = exit_code(error)
        if code is None:
            raise
        alike = code == USAGE and os.environ.get("RANK", "0") != "0"  # every process of several has the same to say
        if not alike and not getattr(error, "silent", False):
            typer.echo(f"error: {worker_death(error) if code == WORKER_DIED else error}", err=True)
        sys.exit(code)


def show_warning(message: Any, category: type[Warning], filename: str, lineno: int, *_: Any) -> None:
    """segkit's own warnings are about the user's data and settings: the line of code that gives them says nothing."""
    ours = Path(filename).is_relative_to(Path(__file__).parent)
    shown = f"warning: {message}" if ours else warnings.formatwarning(message, category, filename, lineno).rstrip()
    typer.echo(shown, err=True)


def worker_death(error: Exception) -> str:
    """Of what probably died a process that loads data, by what torch says of it, or of what led it to say so."""
    said = f"{error} {error.__cause__ or error.__context__}"
    cause = next((words for sign, words in DEATHS.items() if sign in said), str(error))
    return f"a process that loads data died: {cause}"


def exit_code(error: Exception) -> int | None:
    """2 usage or configuration, 3 data, 4 out of memory, 5 a worker died, 130 or 143 interrupted; None: a defect."""
    code = getattr(error, "exit_code", None)
    if isinstance(code, int):
        return code
    if isinstance(error, (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError)):
        return USAGE
    text = str(error)
    if isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text:
        return OUT_OF_MEMORY
    if isinstance(error, RuntimeError) and "DataLoader worker" in text:
        return WORKER_DIED
    return None


if __name__ == "__main__":
    main()
