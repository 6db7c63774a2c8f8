"""`evergreen init`: a first model file, guessed from a file of rows and held against them before it is written."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipelines.init.as_yaml import model_file
from pipelines.init.draft import Asked, Draft, draft
from pipelines.init.sample import Sample, sample_of
from pipelines.loading.checking import check
from pipelines.loading.columns import Columns
from pipelines.spec import IDENTIFIER, ModelSpec
from utils.errors import SpecInvalid


@dataclass(frozen=True, slots=True)
class Written:
    """A model file that was written; `notes` are what its user should look at first."""

    path: Path
    said: str
    notes: tuple[str, ...]
    summary: dict[str, Any]


def write_model_file(path: Path, *, model: str, folder: Path, asked: Asked, force: bool = False) -> Written:
    """Write `folder`/`model`.yaml, guessed from the file at `path`; whole or not at all.

    Raises: SpecInvalid where the name can't be one or the model file is there already and `force` is not given;
    NotFound; DataRefused, also where something can't be guessed and `asked` does not say it.
    """
    target = folder / f"{model}.yaml"
    if not re.fullmatch(IDENTIFIER, model):
        problem = f"expected a small letter, then small letters, digits and _, at most 48, got {model[:60]!r}"
        raise SpecInvalid(file="the new model file", problems=[("name", problem)])
    if target.exists() and not force:
        raise SpecInvalid(file=str(target), problems=[("the file", "is there already: --force writes over it")])
    sample = sample_of(path)
    found = draft(sample, model=model, asked=asked)
    content = model_file(found)
    spec = ModelSpec.parse(yaml.safe_load(content), file=target.name)
    notes = tuple(_notes(found, refused(sample, spec)))
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f".{model}.yaml.new"
    aside.write_text(content, encoding="utf-8")
    aside.replace(target)
    return Written(target, _said(found), notes, _summary(found, target, notes))


def refused(sample: Sample, spec: ModelSpec) -> tuple[int, str]:
    """How many rows of the sample a load would refuse, and the first reason."""
    columns = Columns.of(sample.rows.column_names, spec=spec, source=sample.source)
    taken = sample.rows.select(list(columns.taken))
    rejects = check(taken, spec=spec, columns=columns, lines=range(1, len(taken) + 1)).rejects
    if not rejects:
        return 0, ""
    line, column, value, reason = rejects[0]
    return len(rejects), f"row {line}, {column} = {value!r}: {reason}"


def _said(found: Draft) -> str:
    features, private, out = (len(found.having(role)) for role in ("feature", "private", "left out"))
    timed = f"at each {found.event_time.file_name}" if found.event_time else "without time"
    return (
        f"{found.task} of {found.label.file_name} by {found.entity.file_name}, {timed}; {features} features,"
        f" {private} private, {out} left out; guessed from {found.sample.said}"
    )


def _notes(found: Draft, wrong: tuple[int, str]) -> list[str]:
    notes = [
        f"{column.file_name} is left out: {guessed.why}"
        for column, guessed in found.columns
        if guessed.role == "left out" and "a leak" in guessed.why
    ]
    if wrong[0]:
        notes.append(f"a load would refuse {wrong[0]:,} of these rows: {wrong[1]}")
    return notes


def _summary(found: Draft, target: Path, notes: tuple[str, ...]) -> dict[str, Any]:
    return {
        "file": target,
        "model": found.model,
        "rows": found.sample.rows.num_rows,
        "whole_file": found.sample.whole,
        "task": found.task,
        "label": found.label.file_name,
        "entity": found.entity.file_name,
        "event_time": found.event_time.file_name if found.event_time else None,
        **{
            key: [column.file_name for column in found.having(role)]
            for key, role in (("features", "feature"), ("private", "private"), ("left_out", "left out"))
        },
        "notes": notes,
    }
