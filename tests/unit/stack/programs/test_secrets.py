import stat
from itertools import pairwise
from pathlib import Path

import pytest
from cryptography.fernet import Fernet
from dotenv import dotenv_values
from pydantic import SecretStr

from stack.programs import secrets
from utils.settings import Settings, load_settings
from utils.version import ROOT


@pytest.fixture
def env_file(tmp_path: Path) -> Path:
    return tmp_path / ".env"


def settings_of(env_file: Path) -> Settings:
    return load_settings(env_file=env_file, home=env_file.parent / "home")


def test_every_secret_of_a_new_stack_is_generated_once_and_kept(env_file: Path) -> None:
    settings, written = secrets.ensure(settings_of(env_file))
    loaded = settings_of(env_file)
    secret_fields = [name for name, field in Settings.model_fields.items() if field.annotation is SecretStr]
    assert all(getattr(loaded, name).get_secret_value() for name in secret_fields)
    assert {f"EVERGREEN_{name.upper()}" for name in secret_fields} <= set(written)
    assert settings.model_dump() == loaded.model_dump()
    content = env_file.read_text()
    assert secrets.ensure(loaded) == (loaded, [])
    assert env_file.read_text() == content


def test_only_the_owner_can_read_the_secrets(env_file: Path) -> None:
    env_file.write_text("EVERGREEN_MLFLOW_PORT=5001\n")
    env_file.chmod(0o644)
    secrets.ensure(settings_of(env_file))
    assert stat.S_IMODE(env_file.stat().st_mode) == 0o600


def test_values_in_the_file_are_not_overwritten(env_file: Path) -> None:
    env_file.write_text(
        "# mine\nEVERGREEN_API_KEY='my key'\nEVERGREEN_DB_API_PASSWORD=\nOTHER=1\nEVERGREEN_TIMEZONE=Asia/Tokyo"
    )
    settings, written = secrets.ensure(settings_of(env_file))
    values = dotenv_values(env_file)
    assert env_file.read_text().startswith("# mine\nEVERGREEN_API_KEY='my key'\nEVERGREEN_DB_API_PASSWORD=")
    assert (values["EVERGREEN_API_KEY"], values["OTHER"], values["EVERGREEN_TIMEZONE"]) == ("my key", "1", "Asia/Tokyo")
    assert values["EVERGREEN_DB_API_PASSWORD"] == settings.db_api_password.get_secret_value() != ""
    assert "EVERGREEN_API_KEY" not in written
    assert "EVERGREEN_TIMEZONE" not in written


def test_values_of_the_environment_are_not_written(env_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERGREEN_API_KEY", "from the environment")
    settings, written = secrets.ensure(settings_of(env_file))
    assert settings.api_key.get_secret_value() == "from the environment"
    assert "EVERGREEN_API_KEY" not in written


def test_passwords_of_a_teams_own_servers_are_not_generated(env_file: Path) -> None:
    env_file.write_text("EVERGREEN_MARIADB_HOST=db.example\nEVERGREEN_AIRFLOW_URL=http://airflow.example\n")
    settings, _ = secrets.ensure(settings_of(env_file))
    assert settings.mariadb_root_password.get_secret_value() == settings.airflow_password.get_secret_value() == ""


def test_the_generated_fernet_key_is_valid(env_file: Path) -> None:
    settings, _ = secrets.ensure(settings_of(env_file))
    Fernet(settings.airflow_fernet_key.get_secret_value())


@pytest.mark.parametrize(("zone", "expected"), [("Europe/Berlin", "Europe/Berlin"), (":America/Lima", "America/Lima")])
def test_the_time_zone_comes_from_the_variable_tz(zone: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", zone)
    assert secrets.local_timezone() == expected


def test_a_value_of_tz_that_is_no_zone_name_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "EST5EDT4,M3.2.0")
    assert secrets.local_timezone() != "EST5EDT4,M3.2.0"


def test_the_example_file_shows_every_setting_with_its_description_and_default() -> None:
    lines = (ROOT / ".env.example").read_text().splitlines()
    entries: dict[str, tuple[str, str]] = {}
    for above, line in pairwise(lines):
        name, equals, value = line.removeprefix("# ").partition("=")
        if equals and name.startswith("EVERGREEN_"):
            entries[name] = (above, value)
    assert set(entries) == {f"EVERGREEN_{name.upper()}" for name in Settings.model_fields}
    for name, field in Settings.model_fields.items():
        comment, value = entries[f"EVERGREEN_{name.upper()}"]
        default = field.default
        if isinstance(default, Path):
            default = default.relative_to(ROOT)
        text = default.get_secret_value() if isinstance(default, SecretStr) else str(default)
        assert field.description is not None
        assert field.description in comment
        assert value == text
