"""`backup`: write the state of a running stack into one file, from which another machine can continue.

    home/spool/…           answered predictions that are not in MariaDB yet
    databases.sql.zst      evergreen, evergreen_store, evergreen_results, mlflow and optuna, all at one moment
    home/mlflow/…          MLflow's artifacts: the models, plots, reports
    home/snapshots/…       the snapshots that runs trained on
    home/bento/…           the versions that services have fetched, and the version that serves (current.json)
    home/airflow/airflow.db   Airflow's runs, paused DAGs and assets, without passwords
    models/*.yaml          the model files
    settings.env           .env without its secrets
    manifest.json          versions, sizes, hashes, and the number of rows per table

The spools are copied first, then the databases, then the other files. A file is written before the row that names it,
and it does not change afterwards. So every file that a row of the dump names can be copied. A file that is newer than
the dump has no row there, which does no harm.
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
from stack.backup.archive import ArchiveWriter, Progress
from stack.backup.dump import copy_airflow, copy_sqlite, dump
from stack.programs import airflow_programs
from utils.errors import StackError
from utils.settings import MLFLOW_DB, Settings
from utils.version import code_commit

DUMP, AIRFLOW_DB, SETTINGS = "databases.sql.zst", "home/airflow/airflow.db", "settings.env"  # names of members
PACKAGES = ("apache-airflow", "mlflow", "bentoml", "catboost")
# Settings that a backup omits: paths of this machine, and a webhook address, which is a secret.
OMITTED = {"home", "models_dir", "env_file", "alert_webhook"}


@dataclass(frozen=True, slots=True)
class BackupReport:
    """The result of a backup.

    file: the path of the backup.
    size: its size in bytes.
    seconds: the duration.
    made_at: the time of the backup, UTC.
    tables: the number of tables.
    rows: the number of rows in all tables.
    files: the number of members.
    left_out: one line for each thing that a user must set again by hand.
    """

    file: Path
    size: int
    seconds: float
    made_at: datetime
    tables: int
    rows: int
    files: int
    left_out: list[str]


def backup(settings: Settings, file: Path, *, now: datetime, progress: Progress) -> BackupReport:
    """Write a backup of the running stack to `file`. An existing file is replaced. `now` is in UTC.

    Only the owner can read the file.

    Raises: StackError, Unreachable, AccessDenied, SettingMissing. After an error there is no new file.
    """
    start = time.monotonic()
    databases, server, revision = _read_server_state(settings)
    with _temporary_file(file) as new_file:
        with new_file.open("wb") as target:
            writer = ArchiveWriter(target, progress)
            _add_spools(settings, writer, temporary_folder=new_file.parent)
            with writer.member(DUMP, doing="databases", modified=time.time()) as sink:
                rows = dump(settings, databases, sink)
            left_out = _add_files(settings, writer, temporary_folder=new_file.parent)
            with writer.member(SETTINGS, doing="settings", modified=time.time()) as sink:
                sink.write("".join(f"{name}={value}\n" for name, value in portable_settings(settings).items()).encode())
            writer.finish(
                {
                    "made_at": now.isoformat() + "Z",
                    "seconds": round(time.monotonic() - start, 1),
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
        size = new_file.stat().st_size
        new_file.replace(file)
    seconds = round(time.monotonic() - start, 1)
    return BackupReport(file, size, seconds, now, len(rows), sum(rows.values()), len(writer.members), left_out)


@contextmanager
def _temporary_file(file: Path) -> Iterator[Path]:
    """Create an empty file in a temporary folder beside `file`. The folder is removed at the end of the block."""
    if not file.parent.is_dir():
        raise StackError(f"there is no folder {file.parent} for the backup: make it first")
    try:
        with tempfile.TemporaryDirectory(dir=file.parent, prefix=f".{file.name}-") as folder:  # mode 700
            new_file = Path(folder) / file.name
            new_file.touch(0o600)
            yield new_file
    except OSError as error:
        raise StackError(f"no backup was made in {file.parent}: {error.strerror or error}") from error


def our_databases(settings: Settings) -> list[str]:
    """The databases with this stack's data. If a team has its own MLflow, MLflow's database is not one of them."""
    return [name for name in DATABASES if name != MLFLOW_DB or not settings.mlflow_url]


def _read_server_state(settings: Settings) -> tuple[list[str], str, str | None]:
    """Return our existing databases, the version of MariaDB, and the Alembic revision of the platform's tables."""
    with session(settings, "admin") as connection:
        existing = set(connection.execute(text("SELECT schema_name FROM information_schema.schemata")).scalars())
        server = str(connection.scalar(text("SELECT version()")))
        revision = MigrationContext.configure(connection).get_current_revision()
    return [name for name in our_databases(settings) if name in existing], server, revision


def _add_files(settings: Settings, writer: ArchiveWriter, *, temporary_folder: Path) -> list[str]:
    """Add the files of the state folder and the model files. Return one line for each thing that was left out."""
    home, left_out = settings.home, []
    for doing, files in (
        ("MLflow's files", _walk_files(home / "mlflow")),
        ("snapshots", (path for path in _walk_files(home / "snapshots") if not path.name.startswith("."))),
        (
            "Bento stores",
            (path for path in _walk_files(home / "bento") if _is_needed(path.relative_to(home / "bento"))),
        ),
        ("addresses", [home / "serving_ports.json"]),
    ):
        for path in files:
            with suppress(FileNotFoundError):  # maintenance has removed the file, because no row in use names it
                writer.add(f"home/{path.relative_to(home)}", path, doing=doing)
    for path in sorted(settings.models_dir.glob("*.yaml")):
        writer.add(f"models/{path.name}", path, doing="model files")
    database = airflow_programs.folder(settings) / "airflow.db"
    if database.exists() and not settings.airflow_url:
        copy = temporary_folder / "airflow.db"
        left_out += copy_airflow(database, copy)
        writer.add(AIRFLOW_DB, copy, doing="Airflow's metadata")
        copy.unlink()
    for name, address in (("MLflow", settings.mlflow_url), ("Airflow", settings.airflow_url)):
        left_out += [f"all of {name}, which is your own"] if address else []
    return left_out


def _add_spools(settings: Settings, writer: ArchiveWriter, *, temporary_folder: Path) -> None:
    """Add the spools. They are copied before the dump, so each row is in the spool or in the dump."""
    for database in sorted(settings.spool.glob("*/*.db")):
        copy = temporary_folder / database.name
        with suppress(sqlite3.OperationalError):  # the service has emptied and removed the spool
            copy_sqlite(database, copy)
            writer.add(f"home/{database.relative_to(settings.home)}", copy, doing="spools")
        copy.unlink(missing_ok=True)


def _walk_files(folder: Path) -> Iterator[Path]:
    for folder_path, folders, file_names in os.walk(folder):
        folders.sort()
        yield from (Path(folder_path) / name for name in sorted(file_names))


def _is_needed(path: Path) -> bool:
    """Whether a service needs the file. BentoML's working files are not needed. `path` begins with the model's name."""
    return len(path.parts) > 1 and (path.parts[1] == "models" or path.parts[1:] == ("current.json",))


def portable_settings(settings: Settings) -> dict[str, str]:
    """The variables in `.env` that a backup may contain: no secrets, and no paths of this machine."""
    env_variables = dotenv_values(settings.env_file)
    allowed = {f"EVERGREEN_{name.upper()}" for name in portable_fields()}
    return {
        name: value for name, value in env_variables.items() if name in allowed and value and not _has_password(value)
    }


def portable_fields() -> Iterable[str]:
    """The names of the settings that a backup may contain."""
    return (n for n, field in Settings.model_fields.items() if field.annotation is not SecretStr and n not in OMITTED)


def _has_password(value: str) -> bool:
    try:
        return "://" in value and "@" in urlsplit(value).netloc
    except ValueError:
        return True
