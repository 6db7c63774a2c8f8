"""The secrets of a stack, made once into `.env` (mode 600) and never changed afterwards."""

import base64
import secrets
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import SecretStr

from utils.private_files import write_private
from utils.settings import Settings, inherited_environment

# Whose server it is, knows these: they are made up only for the private one.
BELONGS_TO = {"mariadb_root_password": "mariadb_host", "airflow_password": "airflow_url"}
HEADER = "# Written by `make up`: secrets of this machine. Every other setting is described in .env.example.\n"


def ensure(settings: Settings) -> tuple[Settings, list[str]]:
    """Settings with every secret filled in, and the names of the variables written to the `.env` file for it.

    What the file or the environment sets stays as it is. The time zone is written once too, if none was chosen.
    """
    made: dict[str, object] = {name: SecretStr(_random(name)) for name in _missing(settings)}
    if "timezone" not in settings.model_fields_set:
        made["timezone"] = local_timezone()
    if not made:
        return settings, []
    lines = {
        f"EVERGREEN_{name.upper()}": value.get_secret_value() if isinstance(value, SecretStr) else str(value)
        for name, value in made.items()
    }
    add(settings.env_file, lines)
    return settings.model_copy(update=made), list(lines)


def _missing(settings: Settings) -> list[str]:
    secret_fields = [name for name, field in Settings.model_fields.items() if field.annotation is SecretStr]
    return [
        name
        for name in secret_fields
        if not getattr(settings, name).get_secret_value()
        and not (name in BELONGS_TO and getattr(settings, BELONGS_TO[name]))
    ]


def _random(field: str) -> str:
    # Fernet wants exactly 32 bytes in this alphabet; 256 bits suit the others as well.
    return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode() if "fernet" in field else secrets.token_hex(20)


def add(env_file: Path, values: dict[str, str]) -> None:
    """Fill empty lines like `NAME=` in place, append what has no line, and keep everything else."""
    target = env_file.resolve()  # a symbolic link stays one
    lines = target.read_text(encoding="utf-8").splitlines() if target.exists() else [HEADER.rstrip()]
    left = dict(values)
    for number, line in enumerate(lines):
        name, equals, given = line.partition("=")
        if equals and name.strip() in left and given.strip() in {"", '""', "''"}:
            lines[number] = f"{name.strip()}={left.pop(name.strip())}"
    lines += [f"{name}={value}" for name, value in left.items()]
    write_private(target, "\n".join(lines) + "\n")


def local_timezone() -> str:
    """This machine's time zone as an IANA name: from TZ, /etc/timezone or the link /etc/localtime; else UTC."""
    candidates = [inherited_environment().get("TZ", "").removeprefix(":")]
    if (named := Path("/etc/timezone")).is_file():
        candidates.append(named.read_text(encoding="utf-8").strip())
    if (link := Path("/etc/localtime")).is_symlink():
        candidates.append(str(link.readlink()).partition("zoneinfo/")[2])
    return next((name for name in candidates if _is_zone(name)), "UTC")


def _is_zone(name: str) -> bool:
    try:
        return bool(name) and bool(ZoneInfo(name))
    except (ZoneInfoNotFoundError, ValueError, OSError):  # unknown; not a relative path; a folder
        return False
