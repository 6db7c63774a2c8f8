"""Prepare an empty server for the platform: databases, users, tables and grants. Every step can be repeated."""

from collections.abc import Callable, Iterable, Mapping
from datetime import date
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from db import migrations
from db.admin.retention import PREDICTIONS, add_partitions, store_partitions
from db.session import session
from db.store.plan import Change, apply_model, plan_model
from db.store.schema import StoreSchema
from db.store.store_tables import COLLATION
from utils.clock import utc_now
from utils.errors import HeldBack, SpecInvalid, StackError
from utils.settings import MLFLOW_DB, OPTUNA_DB, PLATFORM_DB, RESULTS_DB, STORE_DB, Role, Settings

DATABASES = (PLATFORM_DB, STORE_DB, RESULTS_DB, MLFLOW_DB, OPTUNA_DB)
USERS: tuple[Role, ...] = ("admin", "loader", "pipeline", "api", "reader", "mlflow", "maintenance")
MIGRATION_LOCK, LOCK_SECONDS = "evergreen_migration", 60

# Grants on whole databases, given by root. `_name` escapes the underscore, a wildcard in grants.
DATABASE_GRANTS: tuple[tuple[Role, str, str], ...] = (
    *(("admin", "ALL PRIVILEGES", database) for database in DATABASES),
    ("loader", "CREATE TEMPORARY TABLES", STORE_DB),
    *(("pipeline", "SELECT", database) for database in (PLATFORM_DB, STORE_DB)),
    ("pipeline", "CREATE, SELECT, INSERT", RESULTS_DB),
    ("pipeline", "ALL PRIVILEGES", OPTUNA_DB),
    *(("reader", "SELECT", database) for database in (PLATFORM_DB, STORE_DB, RESULTS_DB)),
    ("mlflow", "ALL PRIVILEGES", MLFLOW_DB),
    *(("maintenance", "SELECT, LOCK TABLES", database) for database in (PLATFORM_DB, STORE_DB)),
)
PARTITIONING = "ALTER, CREATE, INSERT, DROP"  # the privileges that adding and dropping partitions requires
# Grants on single tables, given by admin. ON DUPLICATE KEY UPDATE needs SELECT and UPDATE on the columns it names.
TABLE_GRANTS: tuple[tuple[Role, str, tuple[str, ...]], ...] = (
    ("loader", "SELECT, INSERT, UPDATE", ("load_batch",)),
    ("pipeline", "INSERT, UPDATE", ("retrain_decision", "training_run", "promotion_decision")),
    ("pipeline", "INSERT", ("snapshot", "deployment", "window_profile", "drift_result", "performance_result")),
    ("pipeline", "UPDATE (redacted_rows, redacted_sha256)", ("snapshot",)),
    ("pipeline", "INSERT", ("prediction_log",)),  # batch scoring
    ("pipeline", "INSERT, UPDATE", ("validation_report",)),
    ("loader", "SELECT", ("forgotten",)),
    ("maintenance", PARTITIONING, ("prediction_log",)),
    ("maintenance", "DELETE", ("prediction_feedback",)),
    ("maintenance", "INSERT", ("retention",)),
    ("maintenance", "UPDATE (state)", ("load_batch",)),
    ("pipeline", "INSERT", ("shadow",)),
    ("api", "SELECT", ("deployment", "shadow", "forgotten")),
    ("pipeline", "UPDATE (alerted_at)", ("dead_letter",)),
    ("api", "INSERT, SELECT (prediction_id), UPDATE (prediction_id)", ("prediction_log",)),
    ("api", "INSERT", ("prediction_feedback", "dead_letter")),
    ("api", "SELECT, INSERT, UPDATE", ("request_reject", "instance")),
)


def create_databases_and_users(settings: Settings) -> None:
    """Create the five databases and the seven users as root, with the passwords of `settings`.

    Raises: Unreachable, AccessDenied, SettingMissing.
    """
    with session(settings, "root", "information_schema") as connection:
        for database in DATABASES:
            connection.execute(
                text(f"CREATE DATABASE IF NOT EXISTS {database} CHARACTER SET utf8mb4 COLLATE {COLLATION}")
            )
        for role in USERS:
            login = {"user": settings.db_user(role), "password": settings.db_password(role)}
            connection.execute(text("CREATE USER IF NOT EXISTS :user@'%' IDENTIFIED BY :password"), login)
            connection.execute(text("ALTER USER :user@'%' IDENTIFIED BY :password"), login)
        for role, privileges, database in DATABASE_GRANTS:
            _grant(connection, settings, role, privileges, f"{_name(database)}.*", pass_on=role == "admin")


def upgrade(settings: Settings, *, today: date | None = None) -> list[str]:
    """Migrate the database `evergreen` to the newest revision. Return the changes, or [] if it is up to date.

    `today` is the first day that a new `prediction_log` has a partition for. The default is the current UTC day.
    """
    with session(settings, "admin") as connection:
        before = _revision(connection)
        config = _migrations()
        config.attributes.update(connection=connection, today=today or utc_now().date())
        command.upgrade(config, "head")
        after = _revision(connection)
    return [] if before == after else [f"migrated {_to_revision(after)}"]


def grant(settings: Settings, models: Iterable[StoreSchema]) -> None:
    """Give each user the privileges that it needs on the platform's tables and on the tables of `models`."""
    with session(settings, "admin") as connection:
        for role, privileges, tables in TABLE_GRANTS:
            for table in tables:
                _grant(connection, settings, role, privileges, f"{PLATFORM_DB}.{table}")
        for schema in models:
            for table in (schema.features_table, schema.labels_table):
                _grant(connection, settings, "loader", "SELECT, INSERT, DELETE", f"{STORE_DB}.{table}")
                _grant(connection, settings, "maintenance", f"{PARTITIONING}, DELETE", f"{STORE_DB}.{table}")
            _grant(connection, settings, "loader", "SELECT, INSERT, UPDATE", f"{STORE_DB}.{schema.latest_table}")
            _grant(connection, settings, "api", "SELECT", f"{STORE_DB}.{schema.latest_table}")


def plan(
    settings: Settings, schemas: Iterable[StoreSchema], *, drop: Mapping[str, set[str]] | None = None
) -> list[Change]:
    """Return the changes that `migrate` would make. Changes with action `refuse` are refused. Nothing is changed.

    `drop`: model to the columns whose values may be lost.
    Raises: NotFound, SpecInvalid: a column in `drop` does not exist or is in use. Unreachable, AccessDenied,
    SettingMissing.
    """
    with session(settings, "admin") as connection:
        before, newest = _revision(connection), ScriptDirectory.from_config(_migrations()).get_current_head()
        changes = [] if before == newest else [Change("", "migrate", "", "", _to_revision(newest))]
        for schema in schemas:
            changes += plan_model(connection, schema, drop=(drop or {}).get(schema.model, ()))
    return changes


def migrate(
    settings: Settings,
    schemas: Iterable[StoreSchema],
    *,
    today: date | None = None,
    drop: Mapping[str, set[str]] | None = None,
    show: Callable[[list[Change]], None] | None = None,
) -> list[str]:
    """Migrate the platform's tables and the tables of `schemas`, and give the grants. Return the changes, or [].

    `show` receives the plan before the first change. Only one migration runs at a time.
    Raises: SpecInvalid, NotFound: a change would lose data that `drop` (model to columns) does not name, so nothing was
    changed. Unreachable, AccessDenied, SettingMissing, StackError.
    """
    models, day = list(schemas), today or utc_now().date()
    with session(settings, "admin") as connection:
        locked = connection.scalar(text("SELECT GET_LOCK(:name, :seconds)"), _LOCK)
        if locked != 1:
            raise StackError(f"another migration has been running for {LOCK_SECONDS} s: wait for it and try again")
        changes = plan(settings, models, drop=drop)
        if show:
            show(changes)
        _check_refusals(changes)
        messages = upgrade(settings, today=day)
        for schema in models:
            messages += apply_model(settings, schema, [c for c in changes if c.model == schema.model], today=day)
        messages += _make_partitions(settings, models, today=day)
        grant(settings, models)
        connection.execute(text("SELECT RELEASE_LOCK(:name)"), _LOCK)
    return messages


def _make_partitions(settings: Settings, models: Iterable[StoreSchema], *, today: date) -> list[str]:
    """Make the partitions that maintenance could not make while the stack was down, before rows need them."""
    messages: list[str] = []
    for table in (PREDICTIONS, *(table for schema in models for table in store_partitions(schema))):
        try:
            names = add_partitions(settings, table, today=today, role="admin", pauses=())
        except HeldBack:  # not urgent: rows go to p_later until maintenance makes the partitions or reports the failure
            continue
        if names:
            messages.append(f"made {len(names)} partitions of {table.database}.{table.name} up to {names[-1]}")
    return messages


def _check_refusals(changes: Iterable[Change]) -> None:
    """Check that no change is refused. Raises: SpecInvalid for the first model with refused changes."""
    problems: dict[str, list[tuple[str, str]]] = {}
    for change in changes:
        if change.action == "refuse":
            problems.setdefault(change.model, []).append((change.column, change.what))
    for model, model_problems in problems.items():
        raise SpecInvalid(file=f"{model}.yaml", problems=model_problems)


_LOCK = {"name": MIGRATION_LOCK, "seconds": LOCK_SECONDS}


def _migrations() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    return config


def _to_revision(revision: str | None) -> str:
    return f"database {PLATFORM_DB} to revision {revision}"


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _name(database: str) -> str:
    return "`" + database.replace("_", r"\_") + "`"


def _grant(
    connection: Connection, settings: Settings, role: Role, privileges: str, where: str, *, pass_on: bool = False
) -> None:
    option = " WITH GRANT OPTION" if pass_on else ""
    connection.execute(text(f"GRANT {privileges} ON {where} TO :user@'%'{option}"), {"user": settings.db_user(role)})
