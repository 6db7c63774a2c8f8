"""The commands `backup` and `restore`: they write the whole state to one file and read it back."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import DownloadColumn, Progress, TextColumn, TimeElapsedColumn, TransferSpeedColumn

from cli.output import Json, as_json, err, out
from utils.clock import utc_now
from utils.settings import load_settings


def register(app: typer.Typer) -> None:
    """Add these commands to `app`."""
    app.command()(backup)
    app.command()(restore)


def backup(
    file: Annotated[
        Path | None, typer.Argument(help="Where to; default: evergreen-TIME.tar in this folder.", show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """Write everything needed to continue elsewhere into one file, while everything runs.

    Databases, MLflow's files, snapshots, Bento stores, Airflow's runs, model files, and settings without the secrets.

    Examples:

        evergreen backup

        evergreen backup /mnt/backups/tonight.tar --json
    """
    from stack.backup.backup import backup as write

    now = utc_now()
    with ByteProgress(quiet=json) as progress:
        default = Path(f"evergreen-{now:%Y%m%dT%H%M%SZ}.tar")
        report = write(load_settings(), file or default, now=now, progress=progress)
    if json:
        return as_json(asdict(report))
    counts = f"{report.rows:,} rows of {report.tables} tables, {report.files:,} members"
    out.print(f"{report.file}: {_size(report.size)} in {report.seconds:.1f} s: {counts}", markup=False, soft_wrap=True)
    _left_out(report.left_out)
    return None


def restore(
    file: Annotated[Path, typer.Argument(help="What `evergreen backup` wrote.")],
    force: Annotated[bool, typer.Option("--force", help="Replace the data that is here already.")] = False,
    json: Json = False,
) -> None:
    """Make the state folder that of a backup; `make up` then continues from there.

    The file is checked first. Secrets in .env are kept, and those that are missing are made.

    Examples:

        evergreen restore evergreen-20261121T031500Z.tar

        EVERGREEN_HOME=/srv/evergreen evergreen restore tonight.tar --force
    """
    from stack.backup.restore import restore as read

    with ByteProgress(quiet=json) as progress:
        report = read(load_settings(), file, force=force, progress=progress)
    if json:
        return as_json(asdict(report))
    counts = f"{report.rows:,} rows of {report.tables} tables, {report.files:,} files"
    out.print(
        f"restored the state of {report.made_at} in {report.seconds:.1f} s: {counts}; `make up` continues from there",
        markup=False,
        soft_wrap=True,
    )
    _left_out(report.left_out)
    return None


def _left_out(things: list[str]) -> None:
    for thing in things:
        err.print(f"not in the backup: {thing}", markup=False, soft_wrap=True)


def _size(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


class ByteProgress:
    """A line with the current action, bytes, bytes a second and time. It is hidden without a terminal."""

    def __init__(self, *, quiet: bool) -> None:
        columns = (TextColumn("{task.description:<20}"), DownloadColumn(), TransferSpeedColumn(), TimeElapsedColumn())
        self._bar = Progress(*columns, console=err, transient=True)
        self._bar.disable = quiet or not err.is_terminal
        self._task = self._bar.add_task("…", total=None)

    def __enter__(self) -> "ByteProgress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, action: str, completed: int, total: int) -> None:
        self._bar.update(self._task, description=action, completed=completed, total=total or None)
