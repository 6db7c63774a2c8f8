"""The command `evergreen migrate`."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from cli.output import Json, as_json, err, out
from utils.errors import UnknownModel
from utils.settings import load_settings

if TYPE_CHECKING:  # importing SQLAlchemy is slow
    from db.store.plan import Change


def register(app: typer.Typer) -> None:
    """Add these commands to `app`."""
    app.command()(migrate)


def migrate(
    create: Annotated[
        bool, typer.Option("--create", help="First make databases and users, as EVERGREEN_MARIADB_ROOT_USER.")
    ] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Only show what would be done.")] = False,
    drop: Annotated[
        list[str] | None,
        typer.Option("--drop", metavar="MODEL.COLUMN", help="A column of the store whose values may be lost; repeat."),
    ] = None,
    json: Json = False,
) -> None:
    """Bring the tables to what the model files ask for: show the plan, then apply it.

    New features become columns, and categories may become text. What would lose data is refused unless --drop names it;
    a feature that left its model file keeps its column. It never asks.

    Examples: `evergreen migrate --plan`, `evergreen migrate`, `evergreen migrate --drop churn.region`
    """
    from db.admin import bootstrap
    from pipelines.spec import load_spec, model_names

    if plan and create:
        raise typer.BadParameter("--plan changes nothing, --create does: give one of them")
    settings = load_settings()
    specs = [load_spec(settings.models_dir / f"{name}.yaml") for name in model_names(settings.models_dir)]
    schemas, models = [spec.store for spec in specs], [spec.name for spec in specs]
    dropped = _columns_to_drop(drop or (), models=models)
    if create:
        bootstrap.create_databases_and_users(settings)
    changes_planned: list[Change] = []
    messages: list[str] = []

    def show(changes: "Sequence[Change]") -> None:
        changes_planned.extend(changes)
        if not json:
            _show(changes)

    if plan:
        show(bootstrap.plan(settings, schemas, drop=dropped))
    else:
        with err.status("migrating"):
            messages = bootstrap.migrate(settings, schemas, drop=dropped, show=show)
    if json:
        as_json({"models": models, "plan": _as_rows(changes_planned), "done": messages})
    elif messages:
        out.print(f"done: {len(messages)} changes", markup=False)


def _columns_to_drop(names: Iterable[str], *, models: Sequence[str]) -> dict[str, set[str]]:
    """Return the columns that --drop names, by model."""
    columns: dict[str, set[str]] = {}
    for name in names:
        model, dot, column = name.partition(".")
        if not (dot and column):
            raise typer.BadParameter(f"--drop: expected MODEL.COLUMN, got {name!r}")
        if model not in models:
            raise UnknownModel(model=model, available=models)
        columns.setdefault(model, set()).add(column)
    return columns


def _as_rows(changes: "Sequence[Change]") -> list[dict[str, str]]:
    """Return the plan as rows for JSON."""
    return [
        {"model": c.model, "action": c.action, "table": c.table, "column": c.column, "plan": c.planned} for c in changes
    ]


def _show(changes: "Sequence[Change]") -> None:
    for change in changes:
        out.print(change.planned, markup=False, soft_wrap=True)
    if all(change.action == "keep" for change in changes):
        out.print("nothing to do: all tables are there", markup=False)
