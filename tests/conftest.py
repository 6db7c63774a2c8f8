"""Fixtures for every test: a real MariaDB, started once a session and migrated for the shipped models."""

import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from xdist.scheduler import LoadScopeScheduling

from db.admin import bootstrap
from db.store.schema import Column, StoreSchema
from pipelines.spec import ModelSpec, find_spec
from tests.servers import MariaDB, mariadb_server
from utils.settings import Role, Settings, load_settings
from utils.version import ROOT

# No deadline: the duration of an example depends on the load of the machine.
hypothesis.settings.register_profile("evergreen", deadline=None)
hypothesis.settings.load_profile("evergreen")


class ByServers(LoadScopeScheduling):  # type: ignore[misc]
    """Run tests that share servers in one process: the tests of one file, and all tests of e2e."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "tests/e2e" if file.startswith("tests/e2e/") else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    return ByServers(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests that take minutes, so that no process runs one alone at the end."""
    folders = ["e2e", "integration"]  # tests directly in the folder, not in its subfolders
    items.sort(key=lambda item: folders.index(name) if (name := item.path.parent.name) in folders else len(folders))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the texts that tests record under `shown`, from every worker process."""
    for report in terminalreporter.getreports("passed"):
        for name, text in report.user_properties:
            if name == "shown":
                terminalreporter.write_line(f"{text}\n")


ROLES: tuple[Role, ...] = ("admin", "loader", "pipeline", "api", "reader", "mlflow", "maintenance")


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariaDB]:
    """A private server, without the platform's databases."""
    folder = Path(tempfile.mkdtemp(prefix="eg"))  # not tmp_path: its name is too long for a socket
    try:
        with mariadb_server(folder) as server:
            yield server
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def credit_score() -> ModelSpec:
    return find_spec(ROOT / "models", "credit_score")


@pytest.fixture(scope="session")
def bare_settings(mariadb: MariaDB, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings with the server's address and random passwords. The server has no users or databases yet."""
    home = tmp_path_factory.mktemp("home")
    passwords = {f"db_{role}_password": secrets.token_hex(12) for role in ROLES}
    return load_settings(
        home=home,
        env_file=home / ".env",
        models_dir=ROOT / "models",
        mariadb_port=mariadb.port,
        mariadb_root_password=mariadb.root_password,
        **passwords,
    )


@pytest.fixture(scope="session")
def settings(bare_settings: Settings, credit_score: ModelSpec) -> Settings:
    """Settings of a server with databases, users, the platform's tables and credit_score's store tables, all empty."""
    bootstrap.create_databases_and_users(bare_settings)
    bootstrap.migrate(bare_settings, [credit_score.store])
    return bare_settings


@pytest.fixture
def new_schema(settings: Settings) -> Callable[..., StoreSchema]:
    """A function that creates tables of a new model: features `amount`, `kind` and `note`, label `outcome`."""

    def make(*, timed: bool = True, max_age: timedelta | None = timedelta(days=90)) -> StoreSchema:
        schema = StoreSchema(
            model=f"m{secrets.token_hex(4)}",
            features=(Column("amount", "number"), Column("kind", "category"), Column("note", "text")),
            label=Column("outcome", "category"),
            timed=timed,
            max_age=max_age if timed else None,
        )
        bootstrap.migrate(settings, [schema])
        return schema

    return make
