"""Connections to MariaDB: an engine for each role, and short transactions that are rolled back on any error."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy.exc import DBAPIError

from utils.errors import AccessDenied, NotFound, Unreachable
from utils.settings import PLATFORM_DB, Role, Settings

DENIED = {1044, 1045, 1133, 1142, 1143, 1227, 1698}  # database, login, user, table, column, privilege, plugin
LOGIN = {1045, 1698}
BY_ROOT = {1044, 1133}  # only root can fix these: grants on databases, and users that an older version did not make
ABSENT = {1049, 1054, 1146}  # database, column, table
AWAY = {2002, 2003, 2006, 2013, 1040}  # socket, connect, gone, lost, too many connections
CONNECT_TIMEOUT = 5  # seconds


def engine(settings: Settings, role: Role, database: str = PLATFORM_DB, **connect_args: Any) -> Engine:
    """Return an engine for `role`. It connects on first use. The caller must dispose of it; `session` does so.

    `connect_args` are passed to the driver unchanged (`local_infile=True`, `read_timeout=1`).

    Raises: SettingMissing: the role's password is not set.
    """
    return create_engine(
        # The dialect for MariaDB. With the dialect for MySQL a UUID column would be CHAR(32).
        settings.db_url(role, database, scheme="mariadb+pymysql"),
        pool_pre_ping=True,
        hide_parameters=True,  # the text of an error may end in a log
        connect_args={"connect_timeout": CONNECT_TIMEOUT, "init_command": "SET time_zone = '+00:00'", **connect_args},
    )


@contextmanager
def session(settings: Settings, role: Role, database: str = PLATFORM_DB, **connect_args: Any) -> Iterator[Connection]:
    """Run the block in a transaction as `role`. It is committed at the end and rolled back on any error.

    Raises: Unreachable, AccessDenied, NotFound (in place of the driver's error), SettingMissing.
    """
    bound = engine(settings, role, database, **connect_args)
    try:
        with bound.begin() as connection:
            yield connection
    except DBAPIError as error:
        raise explained(error, settings=settings, role=role) from error
    finally:
        bound.dispose()


def explained(error: DBAPIError, *, settings: Settings, role: Role) -> Exception:
    """Return the project's error for a refused or lost connection or a missing table, else `error` itself."""
    code = error.orig.args[0] if error.orig and error.orig.args else None
    reason = str(error.orig.args[-1]) if error.orig and error.orig.args else ""
    if code in DENIED:
        command = "make up" if code in BY_ROOT else "evergreen migrate"
        reason += "" if code in LOGIN else f"; `{command}` gives missing grants"
        return AccessDenied(
            service="MariaDB", address=settings.mariadb_address, user=settings.db_user(role), reason=reason
        )
    if code in ABSENT:
        return NotFound(what=f"such table: {reason}", hint="run `evergreen migrate`")
    if code in AWAY:
        return Unreachable(service="MariaDB", address=settings.mariadb_address, reason=reason.split("(")[0].strip())
    return error
