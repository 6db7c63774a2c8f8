"""The secrets of a stack. They are generated once, written to `.env` (mode 600) and not changed afterwards."""

import base64
import secrets
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import SecretStr

from utils.private_files import write_private
from utils.settings import Settings, inherited_environment

# Secret → setting of a team's own server. If the team has such a server, it sets the secret, and none is generated.
SERVER_SETTING = {"mariadb_root_password": "mariadb_host", "airflow_password": "airflow_url"}
HEADER = "# Written by `make up`: secrets of this machine. Every other setting is described in .env.example.\n"


def ensure(settings: Settings) -> tuple[Settings, list[str]]:
    """Generate every missing secret. Return the complete settings, and the names of the variables written to `.env`.

    Values that the file or the environment sets are kept. A missing time zone is written too.
    """
    new_values: dict[str, object] = {name: SecretStr(_generate_secret(name)) for name in _missing_secrets(settings)}
    if "timezone" not in settings.model_fields_set:
        new_values["timezone"] = local_timezone()
    if not new_values:
        return settings, []
    lines = {
        f"EVERGREEN_{name.upper()}": value.get_secret_value() if isinstance(value, SecretStr) else str(value)
        for name, value in new_values.items()
    }
    add(settings.env_file, lines)
    return settings.model_copy(update=new_values), list(lines)


def _missing_secrets(settings: Settings) -> list[str]:
    secret_fields = [name for name, field in Settings.model_fields.items() if field.annotation is SecretStr]
    return [
        name
        for name in secret_fields
        if not getattr(settings, name).get_secret_value()
        and not (name in SERVER_SETTING and getattr(settings, SERVER_SETTING[name]))
    ]


def _generate_secret(field: str) -> str:
    # Fernet needs exactly 32 bytes in URL-safe base64.
    return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode() if "fernet" in field else secrets.token_hex(20)


def add(env_file: Path, values: dict[str, str]) -> None:
    """Add `values` to the file: fill empty lines like `NAME=`, append missing names, and keep all other lines."""
    target = env_file.resolve()  # keeps a symbolic link
    lines = target.read_text(encoding="utf-8").splitlines() if target.exists() else [HEADER.rstrip()]
    missing = dict(values)
    for number, line in enumerate(lines):
        name, equals, current = line.partition("=")
        if equals and name.strip() in missing and current.strip() in {"", '""', "''"}:
            lines[number] = f"{name.strip()}={missing.pop(name.strip())}"
    lines += [f"{name}={value}" for name, value in missing.items()]
    write_private(target, "\n".join(lines) + "\n")


def local_timezone() -> str:
    """This machine's time zone as an IANA name, from TZ, /etc/timezone or the link /etc/localtime. UTC if unknown."""
    candidates = [inherited_environment().get("TZ", "").removeprefix(":")]
    if (timezone_file := Path("/etc/timezone")).is_file():
        candidates.append(timezone_file.read_text(encoding="utf-8").strip())
    if (localtime := Path("/etc/localtime")).is_symlink():
        candidates.append(str(localtime.readlink()).partition("zoneinfo/")[2])
    return next((name for name in candidates if _is_zone(name)), "UTC")


def _is_zone(name: str) -> bool:
    try:
        return bool(name) and bool(ZoneInfo(name))
    except (ZoneInfoNotFoundError, ValueError, OSError):  # the name is unknown, no relative path, or a folder
        return False
