"""`watch`: a row for each image that appears in a folder, until somebody ends it."""

from __future__ import annotations

import shlex
import shutil
import signal
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ipca_sklearn._utils._files import printable
from ipca_sklearn.cli import _arguments as options
from ipca_sklearn.cli._outputs import LINES, REPORTS, TABLES, Output, check_outputs, optional_output
from ipca_sklearn.cli._terminal import threshold_in_words, warn

if TYPE_CHECKING:
    from ipca_sklearn.watching import FolderWatcher

DRIFTED = 4  # exit code
N_IMAGES = 500  # of the report


def watch(
    model: options.ModelFile,
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder in which images appear, searched through all levels.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Table to append to, or to begin: .csv or .jsonl.")],
    defects: options.DefectsFile = None,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help=f"Write an HTML page of the latest {N_IMAGES} images, once a minute."),
    ] = None,
    drift_alarm: Annotated[
        bool, typer.Option("--drift-alarm", help="Warn when the scores are no longer what they were.")
    ] = False,
    stop_on_drift: Annotated[
        bool, typer.Option("--stop-on-drift", help="End with exit code 4 then. Implies --drift-alarm.")
    ] = False,
    command: Annotated[
        str | None,
        typer.Option(
            metavar="CMD", help="Run for each anomalous image, without a shell; its standard input is the row as JSON."
        ),
    ] = None,
    command_seconds: Annotated[float, typer.Option(min=0.1, help="Time limit of the command.")] = 10.0,
    settle: Annotated[
        float,
        typer.Option(
            min=0, help="Seconds without change before a file counts as complete; 0 if files are renamed into DIR."
        ),
    ] = 1.0,
    tries: Annotated[int, typer.Option(min=1, help="How often a file that cannot be read is tried.")] = 3,
    poll: Annotated[
        bool, typer.Option("--poll", help="List DIR every second, for network drives without change events.")
    ] = False,
    min_area: options.MinArea = 0,
    merge_distance: options.MergeDistance = 0,
    product: options.Product = None,
    device: options.Device = "auto",
) -> None:
    """Score images as they appear in a folder, and append a row for each to a table.

    Ends with Ctrl-C (exit code 130) or SIGTERM (143), after the row in work; the same command goes on from there, also
    after a kill or a power cut. An image that cannot be read is a row with its error.
    """
    from ipca_sklearn.cli._annotations import DefectLines
    from ipca_sklearn.cli._images import LatestReport, draw, score_images
    from ipca_sklearn.exceptions import AspectRatioWarning, MultiPageImageWarning
    from ipca_sklearn.inspection import model_card
    from ipca_sklearn.monitoring import DriftMonitor
    from ipca_sklearn.watching import FolderWatcher, RowFile, run_command
    from ipca_sklearn.watching import watch as watch_folder

    options.check_finite("pixels", {"--min-area": min_area, "--merge-distance": merge_distance})
    outputs = [Output("--output", output, TABLES), *optional_output("--defects", defects, LINES)]
    outputs += optional_output("--report", report, REPORTS)
    check_outputs(outputs, files=[model], folders=[folder])
    arguments = None if command is None else _arguments(command)
    options.check_finite("seconds", {"--command-seconds": command_seconds})
    watcher = FolderWatcher(folder, settle=settle, tries=tries, events=not poll)
    pipe = options.open_model(model, device, on_error="skip", product=product)
    watcher.batch_size = pipe[-1].step_size or watcher.batch_size
    # The same random state with each start: the scores of the table bring the monitor to where it was.
    monitor = DriftMonitor.from_detector(pipe, random_state=0) if drift_alarm or stop_on_drift else None
    page = None
    if report is not None:
        card = model_card(pipe, file=model)
        page = LatestReport(
            report,
            n_images=N_IMAGES,
            threshold=pipe[-1].offset_,
            title=f"{model.name}, {folder}",
            normal_scores=pipe[-1].calibration_scores_,
            # Not the file: it may change while the page is written again and again.
            model=f"{printable(model.name)} (SHA-256 {card.to_dict()['SHA-256'][:12]})",
            source=str(folder.absolute()),
            card=card,
        )

    def score(paths: Sequence[str]) -> Iterator[dict[str, Any]]:
        return score_images(pipe, [Path(path) for path in paths], min_area, merge_distance)

    counts: Counter[str] = Counter()
    with (
        ExitStack() as stack,
        watcher,
        RowFile(output) as rows,
        _stopped_by_signals(watcher) as received,
        warnings.catch_warnings(),
    ):
        lists = None if defects is None else DefectLines(defects, stack, append=True)
        for repeated in (AspectRatioWarning, MultiPageImageWarning):  # Python remembers each text by default
            warnings.simplefilter("always", repeated)
        typer.echo(f"watching {printable(folder)}; Ctrl-C ends it", err=True)
        typer.echo(threshold_in_words(pipe[-1].offset_), err=True)
        if page is not None:
            page.go_on(path for path, *_ in rows.image_keys())
        idle = None if page is None else page.write_if_due
        for row in watch_folder(score, watcher, rows, monitor=monitor, idle=idle):
            counts["images"] += 1
            counts["anomalous"] += row["label"] == -1
            counts["unreadable"] += row["score"] is None
            if lists is not None:
                lists.write(row)
            if arguments is not None and row["label"] == -1:
                of_table = {name: row.get(name) for name in rows.columns}
                failure = run_command(arguments, of_table, seconds=command_seconds)
                if failure is not None:
                    warn(f"--command {arguments[0]}: {failure} ({printable(row['path'])})")
            if page is not None:
                pictures = draw(pipe, row, False, page)["report"]
                page.add(row["path"], row["score"], p_value=row["p_value"], error=row["error"], **pictures)
            if row.get("drift") and not counts["drift"]:
                counts["drift"] += 1
                assert monitor is not None
                warn(
                    f"drift alarm at image {monitor.alarm_at_} of the table: scores are {monitor.direction_} since "
                    f"about image {monitor.changed_since_}. Look at the light, the camera and the position of the "
                    "parts. When the line is as it was, or the model has learnt its new look, name a new table to "
                    "start anew"
                )
                if stop_on_drift:
                    watcher.stop()
        if page is not None:
            page.write()
    typer.echo(
        f"{counts['images']} images scored, {counts['anomalous']} anomalous, {counts['unreadable']} cannot be read",
        err=True,
    )
    raise typer.Exit(128 + received[0] if received else DRIFTED)


@contextmanager
def _stopped_by_signals(watcher: FolderWatcher) -> Iterator[list[int]]:
    """Let Ctrl-C and SIGTERM end a watch after the row in work, a second one at once; yield those that came."""
    received: list[int] = []

    def stop(number: int, _: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        watcher.stop()

    old = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _arguments(command: str) -> list[str]:
    """Return the program and its arguments, if there is such a program."""
    try:
        arguments = shlex.split(command)
    except ValueError as error:
        raise ValueError(f"--command {command!r} cannot be split into arguments: {error}") from error
    if not arguments or shutil.which(arguments[0]) is None:
        raise ValueError(
            f"--command {command!r}: there is no such program. It is not run by a shell: for pipes and variables write "
            "a script, and name that"
        )
    return arguments
