"""`watch`: a row for each image that appears in a folder, until somebody ends it."""

from __future__ import annotations

import shlex
import shutil
import signal
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from math import isfinite
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from ipca_sklearn._utils._files import printable
from ipca_sklearn.cli._alarms import WORSE
from ipca_sklearn.cli._annotations import DefectLines
from ipca_sklearn.cli._common import Device, ModelFile, Product, open_model
from ipca_sklearn.cli._latest import N_IMAGES, LatestReport
from ipca_sklearn.cli._outputs import LINES, REPORTS, TABLES, Output, check_outputs
from ipca_sklearn.cli._predict import DefectsFile, MergeDistance, MinArea, check_region_options, draw
from ipca_sklearn.cli._predict import rows as score_rows
from ipca_sklearn.cli._text import warn
from ipca_sklearn.exceptions import AspectRatioWarning, MultiPageImageWarning
from ipca_sklearn.inspection import model_card
from ipca_sklearn.inspection._provenance import describe_model
from ipca_sklearn.monitoring import DriftMonitor
from ipca_sklearn.watching import FolderWatcher, RowFile, run_command
from ipca_sklearn.watching import watch as watch_folder

DRIFTED = 4  # exit code


def watch(
    model: ModelFile,
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder in which images appear, searched through all levels.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Table to append to, or to begin: .csv or .jsonl.")],
    defects: DefectsFile = None,
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
        float, typer.Option(min=0, help="Seconds that a file must have stood still. 0 if files are renamed into DIR.")
    ] = 1.0,
    tries: Annotated[int, typer.Option(min=1, help="How often a file that cannot be read is tried.")] = 3,
    poll: Annotated[
        bool, typer.Option("--poll", help="List DIR every second, for network drives without change events.")
    ] = False,
    min_area: MinArea = 0,
    merge_distance: MergeDistance = 0,
    product: Product = None,
    device: Device = "auto",
) -> None:
    """Score images as they appear in a folder, and append a row for each to a table.

    Ends with Ctrl-C (exit code 130) or SIGTERM (143), after the row in work; the same command goes on from there, also
    after a kill or a power cut. The columns are path, size in bytes, time of change in nanoseconds since 1970, those of
    `predict`, and whether there was a drift alarm. An image that cannot be read is a row with its error.
    """
    check_region_options(min_area, merge_distance)
    check_outputs(
        [
            Output("--output", output, TABLES),
            None if defects is None else Output("--defects", defects, LINES),
            None if report is None else Output("--report", report, REPORTS),
        ],
        files=[model],
        folders=[folder],
    )
    arguments = None if command is None else _arguments(command)
    if not isfinite(command_seconds):
        raise ValueError(f"--command-seconds {command_seconds}: name a finite number of seconds")
    watcher = FolderWatcher(folder, settle=settle, tries=tries, events=not poll)
    pipe = open_model(model, device, on_error="skip", product=product)
    watcher.batch_size = pipe[-1].step_size or watcher.batch_size
    # The same random state with each start: the scores of the table bring the monitor to where it was.
    monitor = DriftMonitor.from_detector(pipe, random_state=0) if drift_alarm or stop_on_drift else None
    page = None
    if report is not None:
        page = LatestReport(
            report,
            threshold=pipe[-1].offset_,
            title=f"{model.name}, {folder}",
            normal_scores=pipe[-1].calibration_scores_,
            model=describe_model(model),  # once: the page is written again and again
            source=str(folder.absolute()),
            card=model_card(pipe, file=model),
        )

    def score(paths: Sequence[str]) -> Iterator[dict[str, Any]]:
        return score_rows(pipe, [Path(path) for path in paths], min_area, merge_distance)

    counts: Counter[str] = Counter()
    with (
        ExitStack() as stack,
        watcher,
        RowFile(output) as rows,
        _Signals(watcher) as signals,
        warnings.catch_warnings(),
    ):
        lists = None if defects is None else DefectLines(defects, stack, append=True)
        for repeated in (AspectRatioWarning, MultiPageImageWarning):  # Python remembers each text by default
            warnings.simplefilter("always", repeated)
        typer.echo(f"watching {printable(folder)}; Ctrl-C ends it", err=True)
        typer.echo(f"images that score below {pipe[-1].offset_:.4g} are anomalous: {WORSE}", err=True)
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
                failure = run_command(
                    arguments, {name: row.get(name) for name in rows.columns}, seconds=command_seconds
                )
                if failure is not None:
                    warn(f"--command {arguments[0]}: {failure} ({printable(row['path'])})")
            if page is not None:
                page.add(row, draw(pipe, row, False, page.page)["report"])
            if row.get("drift") and not counts["drift"]:
                counts["drift"] += 1
                assert monitor is not None
                warn(_drift(monitor))
                if stop_on_drift:
                    watcher.stop()
        if page is not None:
            page.write()
    typer.echo(
        f"{counts['images']} images scored, {counts['anomalous']} anomalous, {counts['unreadable']} cannot be read",
        err=True,
    )
    raise typer.Exit(DRIFTED if signals.received is None else 128 + signals.received)


class _Signals:
    """While in use, Ctrl-C and SIGTERM end a watch after the row in work; a second one at once."""

    def __init__(self, watcher: FolderWatcher) -> None:
        self.received: int | None = None
        self._watcher = watcher
        self._old: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._old[number] = signal.signal(number, self._stop)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _stop(self, number: int, _: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number
        self._watcher.stop()


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


def _drift(monitor: DriftMonitor) -> str:
    return (
        f"drift alarm at image {monitor.alarm_at_} of the table: scores are {monitor.direction_} since about "
        f"image {monitor.changed_since_}. Look at the light, the camera and the position of the parts. When the line "
        "is as it was, or the model has learnt its new look, name a new table to start anew"
    )
