"""The private MariaDB: its data folder, its command line, and the password of its root user."""

import os
import shutil
import subprocess
from pathlib import Path

import pymysql

from db.session import DENIED
from stack.programs.folders import runtime
from utils.errors import AccessDenied, StackError
from utils.settings import Settings, inherited_environment

BUFFER_POOL = "1G"  # bytes


def data_folder(settings: Settings) -> Path:
    return settings.home.resolve() / "mariadb"


def socket_path(settings: Settings) -> Path:
    return runtime(settings) / "mariadb.sock"


def initialise(folder: Path, *, root_password: str) -> bool:
    """Create the data folder if it is missing, and set root's password. Return True if the folder is new.

    No server may be running on `folder`. The password is set in MariaDB's bootstrap mode, in which no client can
    connect: it reads statements from standard input and opens no port or socket.

    Raises: StackError.
    """
    is_new = not folder.exists()
    _temporary_folder(folder).mkdir(mode=0o700, parents=True, exist_ok=True)
    if is_new:
        _create_data_folder(folder)
    _run(
        [find_binary("mariadbd"), *_common_options(folder), "--bootstrap"],
        doing="setting the root password of the private MariaDB",
        sql=_root_user_sql(root_password),
    )
    return is_new


def _create_data_folder(folder: Path) -> None:
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    install = [find_binary("mariadb-install-db"), *_common_options(unfinished), "--skip-test-db"]
    _run([*install, "--auth-root-authentication-method=normal"], doing="making the data folder of the private MariaDB")
    unfinished.chmod(0o700)
    unfinished.rename(folder)  # a data folder under its final name is always complete


def _root_user_sql(password: str) -> str:
    """SQL that sets the password of root@localhost and removes all other root users and anonymous users.

    Bootstrap mode reads one statement per line.
    """
    quoted = password.replace("\\", "\\\\").replace("'", "\\'")
    return "\n".join(
        (
            "FLUSH PRIVILEGES;",
            f"ALTER USER root@localhost IDENTIFIED BY '{quoted}';",
            "DELETE FROM mysql.global_priv WHERE user = '' OR (user = 'root' AND host <> 'localhost');",
            "",
        )
    )


def command(settings: Settings) -> tuple[str, ...]:
    """The command line of the server. It sets UTC and byte-wise comparison of text, unlike MariaDB's defaults."""
    return (
        find_binary("mariadbd"),
        *_common_options(data_folder(settings)),
        f"--socket={socket_path(settings)}",
        f"--pid-file={runtime(settings) / 'mariadb.pid'}",
        f"--port={settings.mariadb_port}",
        "--bind-address=127.0.0.1",
        "--default-time-zone=+00:00",
        "--character-set-server=utf8mb4",
        "--collation-server=utf8mb4_nopad_bin",
        f"--innodb-buffer-pool-size={BUFFER_POOL}",
        "--innodb-log-file-size=256M",
        "--max-connections=300",
    )


def _common_options(folder: Path) -> list[str]:
    as_root = ["--user=root"] if os.geteuid() == 0 else []
    return ["--no-defaults", f"--datadir={folder}", f"--tmpdir={_temporary_folder(folder)}", *as_root]


def _temporary_folder(folder: Path) -> Path:
    """The folder for temporary tables. Each server needs its own, because a starting server empties it."""
    return folder.with_name("mariadb-tmp")


def root_signs_in(settings: Settings) -> bool:
    """Whether root can sign in over TCP. Raises: AccessDenied if the server rejects the password."""
    try:
        pymysql.connect(
            host="127.0.0.1",
            port=settings.mariadb_port,
            user=settings.db_user("root"),
            password=settings.db_password("root"),
            connect_timeout=5,
        ).close()
    except pymysql.err.OperationalError as error:
        if error.args[0] in DENIED:
            user = settings.db_user("root")
            raise AccessDenied(service="MariaDB", address=settings.mariadb_address, user=user) from None
        return False
    return True


def find_binary(name: str) -> str:
    """The path of one of MariaDB's programs. It is searched for in sbin too, which is not on every user's PATH.

    Raises: StackError with the names of the missing packages.
    """
    path = inherited_environment().get("PATH", os.defpath)
    if binary := shutil.which(name, path=f"{path}:/usr/local/sbin:/usr/sbin:/usr/local/bin:/usr/bin"):
        return binary
    raise StackError(
        f"{name} is missing: install mariadb-server-core and mariadb-client-core, or set EVERGREEN_MARIADB_HOST"
    )


def _run(argv: list[str], *, doing: str, sql: str = "") -> None:
    # mariadb-install-db looks for the server on the PATH.
    path = inherited_environment().get("PATH", os.defpath)
    result = subprocess.run(
        argv,
        input=sql,
        text=True,
        capture_output=True,
        env={**inherited_environment(), "PATH": f"{path}:/usr/sbin:/usr/bin:/bin"},
    )
    if result.returncode or "[ERROR]" in result.stderr or "\nERROR" in result.stderr:
        error_lines = [line for line in (result.stdout + result.stderr).splitlines() if "ERROR" in line.upper()]
        raise StackError(
            f"{doing} failed (exit {result.returncode}): {(error_lines or [result.stderr[-300:]])[0].strip()}"
        )
