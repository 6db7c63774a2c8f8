"""`evergreen init`: guess a first model file from a file of rows, check it against the rows, and write it."""

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
    """The outcome of `write_model_file`.

    path: the model file.
    said: one line on the guesses.
    notes: what the user should check first.
    summary: the guesses by key.
    """

    path: Path
    said: str
    notes: tuple[str, ...]
    summary: dict[str, Any]


def write_model_file(path: Path, *, model: str, folder: Path, asked: Asked, force: bool = False) -> Written:
    """Guess `folder`/`model`.yaml from the file at `path`, and write it as a whole or not at all.

    Raises: SpecInvalid if the name is invalid, or if the model file exists and `force` is not set; NotFound;
    DataRefused, also if a key can't be guessed and is not in `asked`.
    """
    target = folder / f"{model}.yaml"
    if not re.fullmatch(IDENTIFIER, model):
        problem = f"expected a small letter, then small letters, digits and _, at most 48, got {model[:60]!r}"
        raise SpecInvalid(file="the new model file", problems=[("name", problem)])
    if target.exists() and not force:
        raise SpecInvalid(file=str(target), problems=[("the file", "is there already: --force writes over it")])
    sample = sample_of(path)
    guesses = draft(sample, model=model, asked=asked)
    content = model_file(guesses)
    spec = ModelSpec.parse(yaml.safe_load(content), file=target.name)
    notes = tuple(_notes(guesses, refused(sample, spec)))
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{model}.yaml.new"
    temporary.write_text(content, encoding="utf-8")
    temporary.replace(target)
    return Written(target, _headline(guesses), notes, _summary(guesses, target, notes))


def refused(sample: Sample, spec: ModelSpec) -> tuple[int, str]:
    """The number of rows of the sample that a load would reject, and the first reason."""
    columns = Columns.of(sample.rows.column_names, spec=spec, source=sample.source)
    loaded = sample.rows.select(list(columns.taken))
    rejects = check(loaded, spec=spec, columns=columns, lines=range(1, len(loaded) + 1)).rejects
    if not rejects:
        return 0, ""
    line, column, value, reason = rejects[0]
    return len(rejects), f"row {line}, {column} = {value!r}: {reason}"


def _headline(guesses: Draft) -> str:
    features, private, left_out = (len(guesses.having(role)) for role in ("feature", "private", "left out"))
    time_text = f"at each {guesses.event_time.file_name}" if guesses.event_time else "without time"
    return (
        f"{guesses.task} of {guesses.label.file_name} by {guesses.entity.file_name}, {time_text}; {features} features,"
        f" {private} private, {left_out} left out; guessed from {guesses.sample.said}"
    )


def _notes(guesses: Draft, rejects: tuple[int, str]) -> list[str]:
    notes = [
        f"{column.file_name} is left out: {guess.why}"
        for column, guess in guesses.columns
        if guess.role == "left out" and "a leak" in guess.why
    ]
    if rejects[0]:
        notes.append(f"a load would refuse {rejects[0]:,} of these rows: {rejects[1]}")
    return notes


def _summary(guesses: Draft, target: Path, notes: tuple[str, ...]) -> dict[str, Any]:
    return {
        "file": target,
        "model": guesses.model,
        "rows": guesses.sample.rows.num_rows,
        "whole_file": guesses.sample.whole,
        "task": guesses.task,
        "label": guesses.label.file_name,
        "entity": guesses.entity.file_name,
        "event_time": guesses.event_time.file_name if guesses.event_time else None,
        **{
            key: [column.file_name for column in guesses.having(role)]
            for key, role in (("features", "feature"), ("private", "private"), ("left_out", "left out"))
        },
        "notes": notes,
    }
