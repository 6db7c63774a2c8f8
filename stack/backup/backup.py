"""`backup`: everything a stack needs to continue elsewhere, in one file, taken while everything runs.

    databases.sql.zst      evergreen, evergreen_store, evergreen_results, mlflow, optuna, at one moment
    home/mlflow/…          MLflow's artifacts: the models, plots, reports
    home/snapshots/…       what was trained on
    home/bento/…           versions that services fetched, and which of them serves (current.json)
    home/airflow/airflow.db   runs, pauses, Assets; without passwords
    models/*.yaml          the model files
    settings.env           .env without its secrets
    manifest.json          versions, sizes, hashes, rows of each table

The databases come first and the files after them. A registered version, a snapshot and a fetched model are written
before the row that names them and never change afterwards, so every file that a row of the dump names is there when
its turn comes; what was added meanwhile has no row, and harms nobody.
"""

import os
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlsplit

from alembic.runtime.migration import MigrationContext
from dotenv import dotenv_values
from pydantic import SecretStr
from sqlalchemy import text

from db.admin.bootstrap import DATABASES
from db.session import session
from stack.backup.archive import Progress, Writer
from stack.backup.dump import copy_airflow, copy_sqlite, dump
from stack.programs import airflow_programs
from utils.errors import StackError
from utils.settings import MLFLOW_DB, Settings
from utils.version import code_commit

DUMP, AIRFLOW, SETTINGS = "databases.sql.zst", "home/airflow/airflow.db", "settings.env"
PACKAGES = ("apache-airflow", "mlflow", "bentoml", "catboost")
# Settings that stay: paths of this machine, and an address that is a secret itself.
STAYS = {"home", "models_dir", "env_file", "alert_webhook"}


@dataclass(frozen=True, slots=True)
class BackupReport:
    """`rows` of all tables; `left_out`: what must be given again by hand, one line each."""

    file: Path
    size: int
    seconds: float
    made_at: datetime
    tables: int
    rows: int
    files: int
    left_out: list[str]


def backup(settings: Settings, file: Path, *, now: datetime, progress: Progress) -> BackupReport:
    """Write a backup of the running stack to `file`, in place of any that was there; `now` is UTC.

    The file appears when it is complete, readable by its owner only.

    Raises: StackError, Unreachable, AccessDenied, SettingMissing; then there is no new file.
    """
    begun = time.monotonic()
    databases, server, revision = _server(settings)
    with _aside(file) as aside:
        with aside.open("wb") as target:
            writer = Writer(target, progress)
            _spools(settings, writer, near=aside.parent)
            with writer.member(DUMP, doing="databases", modified=time.time()) as sink:
                rows = dump(settings, databases, sink)
            left_out = _files(settings, writer, near=aside.parent)
            with writer.member(SETTINGS, doing="settings", modified=time.time()) as sink:
                sink.write("".join(f"{name}={value}\n" for name, value in plain_settings(settings).items()).encode())
            writer.finish(
                {
                    "made_at": now.isoformat() + "Z",
                    "seconds": round(time.monotonic() - begun, 1),
                    "commit": code_commit(),
                    "revision": revision,
                    "versions": {"python": sys.version.split()[0], "mariadb": server}
                    | {name: version(name) for name in PACKAGES},
                    "databases": list(databases),
                    "rows": rows,
                    "left_out": left_out,
                }
            )
            target.flush()
            os.fsync(target.fileno())
        size = aside.stat().st_size
        aside.replace(file)
    seconds = round(time.monotonic() - begun, 1)
    return BackupReport(file, size, seconds, now, len(rows), sum(rows.values()), len(writer.members), left_out)


@contextmanager
def _aside(file: Path) -> Iterator[Path]:
    """An empty file in a folder of its own beside `file`, both gone at the end of the block."""
    if not file.parent.is_dir():
        raise StackError(f"there is no folder {file.parent} for the backup: make it first")
    try:
        with tempfile.TemporaryDirectory(dir=file.parent, prefix=f".{file.name}-") as folder:  # mode 700
            aside = Path(folder) / file.name
            aside.touch(0o600)
            yield aside
    except OSError as error:
        raise StackError(f"no backup was made in {file.parent}: {error.strerror or error}") from error


def our_databases(settings: Settings) -> list[str]:
    """Those that hold this stack's data; with a team's own MLflow, that one's database is not among them."""
    return [name for name in DATABASES if name != MLFLOW_DB or not settings.mlflow_url]


def _server(settings: Settings) -> tuple[list[str], str, str | None]:
    """Our databases that there are, the server's version, and the revision of the platform's tables."""
    with session(settings, "admin") as connection:
        there = set(connection.execute(text("SELECT schema_name FROM information_schema.schemata")).scalars())
        server = str(connection.scalar(text("SELECT version()")))
        revision = MigrationContext.configure(connection).get_current_revision()
    return [name for name in our_databases(settings) if name in there], server, revision


def _files(settings: Settings, writer: Writer, *, near: Path) -> list[str]:
    """Add the state folder's files and the model files; returns what was left out, in words."""
    home, left_out = settings.home, []
    for doing, files in (
        ("MLflow's files", _below(home / "mlflow")),
        ("snapshots", (path for path in _below(home / "snapshots") if not path.name.startswith("."))),
        ("Bento stores", (path for path in _below(home / "bento") if _served(path.relative_to(home / "bento")))),
        ("addresses", [home / "serving_ports.json"]),
    ):
        for path in files:
            with suppress(FileNotFoundError):  # maintenance removed it: no row that matters names it
                writer.add(f"home/{path.relative_to(home)}", path, doing=doing)
    for path in sorted(settings.models_dir.glob("*.yaml")):
        writer.add(f"models/{path.name}", path, doing="model files")
    database = airflow_programs.folder(settings) / "airflow.db"
    if database.exists() and not settings.airflow_url:
        copy = near / "airflow.db"
        left_out += copy_airflow(database, copy)
        writer.add(AIRFLOW, copy, doing="Airflow's metadata")
        copy.unlink()
    for name, address in (("MLflow", settings.mlflow_url), ("Airflow", settings.airflow_url)):
        left_out += [f"all of {name}, which is your own"] if address else []
    return left_out


def _spools(settings: Settings, writer: Writer, *, near: Path) -> None:
    """Add what services have answered and not yet logged; before the dump, so that no row is in neither."""
    for database in sorted(settings.spool.glob("*/*.db")):
        copy = near / database.name
        with suppress(sqlite3.OperationalError):  # it has been emptied and removed
            copy_sqlite(database, copy)
            writer.add(f"home/{database.relative_to(settings.home)}", copy, doing="spools")
        copy.unlink(missing_ok=True)


def _below(folder: Path) -> Iterator[Path]:
    for where, folders, names in os.walk(folder):
        folders.sort()
        yield from (Path(where) / name for name in sorted(names))


def _served(path: Path) -> bool:
    """Whether `path`, which begins with the model's name, is more than BentoML's working files."""
    return len(path.parts) > 1 and (path.parts[1] == "models" or path.parts[1:] == ("current.json",))


def plain_settings(settings: Settings) -> dict[str, str]:
    """The variables that `.env` sets and that are neither secret nor paths of this machine."""
    given = dotenv_values(settings.env_file)
    plain = {f"EVERGREEN_{name.upper()}" for name in plain_fields()}
    return {name: value for name, value in given.items() if name in plain and value and not _has_password(value)}


def plain_fields() -> Iterable[str]:
    """Names of the settings that a backup may hold."""
    return (n for n, field in Settings.model_fields.items() if field.annotation is not SecretStr and n not in STAYS)


def _has_password(value: str) -> bool:
    try:
        return "://" in value and "@" in urlsplit(value).netloc
    except ValueError:
        return True
