"""Health checks of the programs: one short request per program."""

import pymysql
import requests

from stack.programs.program import Program
from utils.settings import Settings

HEALTH_SECONDS = 3.0  # timeout of a check
MARIADB = "mariadb"


def is_healthy(program: Program, settings: Settings) -> bool:
    """Whether the program is healthy now."""
    if program.name == MARIADB:
        return mariadb_answers(settings)
    return answers(program.health, key=program.health_key)


def answers(address: str, *, key: str = "") -> bool:
    """Whether `address` answers 200. With `key`, its JSON must also report that component as healthy."""
    try:
        response = requests.get(address, timeout=HEALTH_SECONDS)
        return response.ok and (not key or response.json()[key]["status"] == "healthy")
    except (requests.RequestException, ValueError, KeyError, TypeError):
        return False


def mariadb_answers(settings: Settings) -> bool:
    """Whether the database user `reader` can sign in and ping the server."""
    host, port = settings.mariadb_host or "127.0.0.1", settings.mariadb_port
    user, password = settings.db_user("reader"), settings.db_reader_password.get_secret_value()
    try:
        with pymysql.connect(
            host=host, port=port, user=user, password=password, connect_timeout=3, read_timeout=3
        ) as connection:
            connection.ping()
        return True
    except pymysql.MySQLError:
        return False
