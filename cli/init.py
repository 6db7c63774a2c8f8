"""The command `evergreen init`: it writes a first model file from a file of rows."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from cli.output import Json, as_json, err, out
from utils.settings import load_settings


def register(app: typer.Typer) -> None:
    """Add this command to `app`."""
    app.command()(init)


def init(
    model: Annotated[str, typer.Argument(help="Name of the new model: small letters, digits and _.")],
    file: Annotated[Path, typer.Option("--from", help="Rows to guess from: .csv, .csv.gz or .parquet.")],
    label: Annotated[str | None, typer.Option(help="The column with what is to be predicted.")] = None,
    entity: Annotated[str | None, typer.Option(help="The column that says whose row it is.")] = None,
    event_time: Annotated[str | None, typer.Option(help="The column with the time of a row, or none.")] = None,
    task: Annotated[Literal["binary", "multiclass", "regression"] | None, typer.Option(help="Kind of task.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a model file that is there.")] = False,
    json: Json = False,
) -> None:
    """Write a first model file, guessed from the first rows of a file, for you to correct.

    Each guess carries a comment that says what it was guessed from. What can't be guessed is asked for by an option.

    Examples: `evergreen init orders --from orders.csv`, `evergreen init churn2 --from customers.parquet --label left`
    """
    from pipelines.init.draft import Asked
    from pipelines.init.write import write_model_file

    settings = load_settings()
    options = Asked(label=label, entity=entity, event_time=event_time, task=task)
    with err.status(f"reading {file.name}"):
        draft = write_model_file(file, model=model, folder=settings.models_dir, asked=options, force=force)
    if json:
        as_json(draft.summary)
        return
    for line in draft.notes:
        err.print(f"note: {line}", markup=False, soft_wrap=True)
    out.print(f"wrote {draft.path}: {draft.said}", markup=False, soft_wrap=True)
    out.print(
        f"next: read it through and correct it, then `evergreen models {model}`, `evergreen migrate`"
        f" and `evergreen load {model} {file}`",
        markup=False,
        soft_wrap=True,
    )
