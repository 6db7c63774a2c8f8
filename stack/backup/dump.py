"""Dump databases and load a dump with MariaDB's own programs. Copy SQLite files that are in use."""

import re
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa

from stack.backup.archive import CHUNK, MemberStream
from stack.programs.mariadb import find_binary
from utils.errors import StackError
from utils.settings import Settings, inherited_environment

# The definer of MLflow's triggers. It is removed, because the user admin may not create triggers for another user.
DEFINER = re.compile(rb"^(/\*!500.*)DEFINER=`[^`]*`@`[^`]*`")


def dump(settings: Settings, databases: Sequence[str], sink: MemberStream) -> dict[str, int]:
    """Write `databases` as SQL to `sink`, compressed with zstd. Return the number of rows of each `database.table`.

    The dump is read in one transaction, so it shows one moment. Writers are not blocked. `databases` must not contain
    MariaDB's system database, which holds the password hashes of users.

    Raises: StackError with the program's last line, for example if a table is altered during the dump.
    """
    argv = [find_binary("mariadb-dump"), *_connection_options(settings), "--single-transaction", "--quick"]
    argv += ["--hex-blob", "--no-create-db", "--databases", *databases]
    out = pa.CompressedOutputStream(pa.PythonFile(sink, "w"), "zstd")
    with _capture_errors() as error_file:
        process = subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=error_file, env=_environment(settings), bufsize=CHUNK
        )
        with process, out:
            rows = count_rows(cast(IO[bytes], process.stdout), out)
        if process.returncode:
            raise StackError(f"mariadb-dump ended with {process.returncode}")
    return rows


def count_rows(lines: IO[bytes], out: Any) -> dict[str, int]:
    """Copy `lines` to `out`. Return the number of rows of each `database.table`.

    The rows of an INSERT follow its first line. Each row is one line, which begins with `(`.
    """
    rows: dict[str, int] = {}
    database = table = ""
    inserting = in_trigger = False
    for line in lines:
        if inserting and line.startswith(b"("):
            rows[table] += 1
        elif line.startswith(b"INSERT INTO `") and not in_trigger:
            inserting = True
            if not line.endswith(b" VALUES\n"):
                raise StackError("mariadb-dump writes rows in a form that can't be counted: use that of MariaDB 10.11")
        else:  # line breaks in values are escaped as \n
            inserting = False
            if line.startswith(b"DELIMITER"):  # ;; before a trigger, ; after it
                in_trigger = line.startswith(b"DELIMITER ;;")
            elif line.startswith(b"USE `"):
                database = line.split(b"`")[1].decode()
            elif line.startswith(b"CREATE TABLE `"):
                table = f"{database}.{line.split(b'`')[1].decode()}"
                rows[table] = 0
            line = DEFINER.sub(rb"\1", line)
        out.write(line)
    return rows


def load(settings: Settings, source: IO[bytes], *, report: Callable[[int], None]) -> None:
    """Run the SQL of a dump. Its databases must exist. `report` is called with the number of bytes read so far.

    Raises: StackError with the program's last line.
    """
    argv = [find_binary("mariadb"), *_connection_options(settings), "--batch"]
    with _capture_errors() as error_file, pa.input_stream(source, compression="zstd") as sql:
        process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=error_file, env=_environment(settings)
        )
        with process:
            try:
                while chunk := sql.read(CHUNK):
                    cast(IO[bytes], process.stdin).write(chunk)
                    report(source.tell())
            except BrokenPipeError:
                pass  # the program ended and wrote its error
            except BaseException:
                process.kill()
                raise
        if process.returncode:
            raise StackError(f"mariadb ended with {process.returncode}")


@contextmanager
def _capture_errors() -> Iterator[IO[bytes]]:
    """Yield a file for the error output of a program. Its last line is added to any StackError of the block."""
    with tempfile.TemporaryFile() as error_file:
        try:
            yield error_file
        except StackError as error:
            error_file.seek(0)
            lines = error_file.read().decode(errors="replace").strip().splitlines()
            raise StackError(f"{error}: {(lines or ['it did not say why'])[-1].strip()}") from None


def _connection_options(settings: Settings) -> list[str]:
    """The options to connect as the user admin, who has all rights in our databases and no rights in others."""
    # The private server has no TLS, but clients of MariaDB 11.4 require TLS by default.
    no_tls = [] if settings.mariadb_host else ["--skip-ssl"]
    return [
        "--no-defaults",  # must be first; ignores the users' option files
        *("--protocol=tcp", f"--host={settings.mariadb_host or '127.0.0.1'}", f"--port={settings.mariadb_port}"),
        *(f"--user={settings.db_user('admin')}", "--default-character-set=utf8mb4", "--max-allowed-packet=1G"),
        *no_tls,
    ]


def _environment(settings: Settings) -> dict[str, str]:
    """The password is passed in the environment, because every user can read a command line."""
    return {**inherited_environment(), "MYSQL_PWD": settings.db_password("admin")}


def copy_sqlite(database: Path, to: Path) -> None:
    """Copy a SQLite database that is in use. The copy shows one moment and needs no write-ahead log."""
    with (
        closing(sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True)) as live,
        closing(sqlite3.connect(to, autocommit=True)) as copy,
    ):
        live.backup(copy)
        copy.execute("PRAGMA journal_mode = DELETE")


def copy_airflow(database: Path, to: Path) -> list[str]:
    """Copy Airflow's SQLite database without its secrets. Return one line for each secret that a user must set again.

    Removed are the passwords and extras of connections, and encrypted variables. The key to decrypt them is not in a
    backup. The arguments of a deferred task are encrypted too, so such a task starts again from its beginning.
    """
    copy_sqlite(database, to)
    with closing(sqlite3.connect(to, autocommit=True)) as copy:
        copy.execute("PRAGMA secure_delete = ON")
        connections = [name for (name,) in copy.execute("SELECT conn_id FROM connection ORDER BY 1")]
        variables = [name for (name,) in copy.execute("SELECT key FROM variable WHERE is_encrypted ORDER BY 1")]
        for statement in _SECRET_REMOVAL:
            copy.execute(statement)
        copy.execute("VACUUM")
    notes = [
        f"password and extra of Airflow's connection {name}" for name in connections if name not in OUR_CONNECTIONS
    ]
    return notes + [f"Airflow's variable {name}" for name in variables]


OUR_CONNECTIONS = (
    "feature_store",
    "feature_loader",
    "feature_reader",
    "feature_maintenance",
)  # `up` sets the passwords
_SECRET_REMOVAL = (
    "UPDATE connection SET password = NULL, extra = NULL, is_encrypted = 0, is_extra_encrypted = 0",
    "DELETE FROM connection_test_request",
    "DELETE FROM variable WHERE is_encrypted",
    "DELETE FROM trigger WHERE id IN (SELECT trigger_id FROM task_instance)",
    "UPDATE task_instance SET state = NULL, trigger_id = NULL, next_method = NULL, next_kwargs = NULL"
    " WHERE trigger_id IS NOT NULL",
)
