"""Guess the entity, time, label and task of a file of rows, and the roles of its other columns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from db.store.schema import ENTITY_LENGTH, RESERVED_COLUMNS
from pipelines.init.column_facts import (
    Facts,
    Guess,
    facts_of,
    guess,
    is_time_of_day,
    like_an_id,
    model_names,
    span_text,
)
from pipelines.init.leak_suspects import suspects
from pipelines.init.sample import Sample
from utils.errors import DataRefused

LABEL_NAMES = frozenset({"label", "target", "outcome", "class", "y", "answer"})
KNOWN_NAMES = frozenset({"available_at", "known_at"})
POSITIVE = frozenset({"yes", "true", "1", "y", "positive", "late", "fraud", "churned", "leaves", "bad"})
MOST_CLASSES = 50
FEW_NUMBERS = 10  # a whole-number label with more distinct values is a quantity
NO_TIME = "none"
SHORTEST = timedelta(hours=10)  # a shorter span is not split by time


@dataclass(frozen=True, slots=True)
class Asked:
    """The options of the user. Columns have their names in the file. None: to be guessed.

    event_time: a column, or `none` for data without time.
    """

    label: str | None = None
    entity: str | None = None
    event_time: str | None = None
    task: str | None = None


@dataclass(frozen=True, slots=True)
class Draft:
    """The guesses for one model file. Each `…_why` is the evidence for a guess."""

    model: str
    sample: Sample
    task: str
    task_why: str
    entity: Facts
    entity_why: str
    event_time: Facts | None
    time_why: str
    time_of_day: Facts | None
    available_at: Facts | None
    label: Facts
    label_why: str
    classes: tuple[str, ...]
    columns: tuple[tuple[Facts, Guess], ...]

    @property
    def split_why(self) -> str:
        """The reason for a split by entity, if the rows are split so."""
        return "too short a time to split by" if self.event_time else "without time"

    def having(self, role: str) -> list[Facts]:
        """The columns with the guessed `role`."""
        return [column for column, candidate in self.columns if candidate.role == role]


def draft(sample: Sample, *, model: str, asked: Asked) -> Draft:
    """Guess all keys of a model file.

    Raises: DataRefused if a key can't be guessed. The error names the option for the key and its possible values.
    """
    rows = sample.rows
    names = model_names(rows.column_names)
    columns = {name: facts_of(name, names[name], rows[name]) for name in rows.column_names}
    label, label_why = _label(sample, columns, model=model, asked=asked)
    rest = {name: column for name, column in columns.items() if name != label.file_name}
    event_time, available_at, time_why = _times(sample, rest, asked=asked)
    times = [column for column in (event_time, available_at) if column]
    time_of_day = _time_of_day(event_time, rest)
    key = [column.file_name for column in (event_time, time_of_day) if column]
    others = {name: column for name, column in rest.items() if column not in times}
    entity, entity_why = _entity(sample, others if asked.entity is None else rest, key=key, asked=asked)
    task, task_why = _task(sample, label, asked=asked)
    open_columns = [_with_allowed_name(column) for column in others.values() if column != entity]
    leaks = suspects(label, open_columns, task=task)
    guesses = [(column, _with_leak(guess(column), leaks.get(column.file_name))) for column in open_columns]
    if time_of_day and time_of_day.numbers is None:
        guesses = [pair for pair in guesses if pair[0].file_name != time_of_day.file_name]
    if not any(guessed.role == "feature" for _, guessed in guesses):
        why = "; ".join(f"{column.file_name}: {guessed.why}" for column, guessed in guesses[:3])
        raise DataRefused(f"{sample.source}: no column is left to learn from ({why or 'it has no other'})")
    return Draft(
        model=model,
        sample=sample,
        task=task,
        task_why=task_why,
        entity=entity,
        entity_why=entity_why,
        event_time=event_time,
        time_why=time_why,
        time_of_day=time_of_day,
        available_at=available_at if event_time else None,
        label=_with_allowed_name(label),
        label_why=label_why,
        classes=() if task == "regression" else _classes(label),
        columns=tuple(guesses),
    )


def _label(sample: Sample, columns: Mapping[str, Facts], *, model: str, asked: Asked) -> tuple[Facts, str]:
    if asked.label:
        return _column_named(sample, columns, asked.label, option="--label"), "named by --label"
    fitting = [c for c in columns.values() if c.name in LABEL_NAMES or model == c.name or model.endswith(f"_{c.name}")]
    if len(fitting) != 1:
        candidates = [c.file_name for c in fitting] or [c.file_name for c in columns.values() if c.distinct > 1]
        raise _ask(sample, "which column holds what is to be predicted", "--label", candidates)
    return fitting[0], "by its name; --label names another"


def _times(sample: Sample, columns: Mapping[str, Facts], *, asked: Asked) -> tuple[Facts | None, Facts | None, str]:
    """The columns of event time and of availability time, and the evidence."""
    time_columns = {name: c for name, c in columns.items() if c.times is not None and not c.blank}
    availability = next((c for c in time_columns.values() if c.name in KNOWN_NAMES), None)
    if asked.event_time == NO_TIME and NO_TIME not in columns:
        return None, None, "said by --event-time none"
    if asked.event_time:
        column = _column_named(sample, columns, asked.event_time, option="--event-time")
        if column.times is None:
            raise DataRefused(f"{sample.source}: --event-time: {column.file_name} does not hold times like 2026-11-21")
        return column, availability if availability != column else None, f"named by --event-time; {span_text(column)}"
    fitting = [
        c
        for c in time_columns.values()
        if c != availability and not c.words & {"birth", "dob", "birthday", "birthdate"}
    ]
    if len(fitting) > 1:
        raise _ask(sample, "when a row was true", "--event-time", [*(c.file_name for c in fitting), NO_TIME])
    if not fitting:
        return None, None, "no column holds a time like 2026-11-21 in every row"
    return fitting[0], availability, f"the only column with a time in every row; {span_text(fitting[0])}"


def _time_of_day(event_time: Facts | None, columns: Mapping[str, Facts]) -> Facts | None:
    if (
        event_time is None
        or not pc.all(pc.equal(event_time.times, pc.floor_temporal(event_time.times, unit="day"))).as_py()
    ):
        return None
    fitting = [column for column in columns.values() if column.times is None and is_time_of_day(column)]
    return fitting[0] if len(fitting) == 1 else None


def _entity(sample: Sample, columns: Mapping[str, Facts], *, key: Sequence[str], asked: Asked) -> tuple[Facts, str]:
    if asked.entity:
        entity = _column_named(sample, columns, asked.entity, option="--entity")
        return entity, f"named by --entity; {entity.summary}"
    fitting = [c for c in columns.values() if _may_be_entity(c) and _is_key(sample.rows, [c.file_name, *key])]
    like_ids = [column for column in fitting if like_an_id(column)]
    if len(matches := like_ids if len(like_ids) == 1 else fitting) == 1:
        repetition = f", once at each {' and '.join(key)}" if key else ""
        return matches[0], f"{matches[0].summary}{repetition}"
    candidates = [c.file_name for c in fitting] or [c.file_name for c in columns.values() if like_an_id(c)]
    raise _ask(sample, "whose rows these are (each once" + (" at a time" if key else "") + ")", "--entity", candidates)


def _may_be_entity(column: Facts) -> bool:
    if column.blank or column.unreadable or (column.numbers is not None and not column.whole):
        return False
    unique = column.distinct == column.rows
    return (unique or like_an_id(column)) and int(pc.max(pc.utf8_length(column.text)).as_py() or 0) <= ENTITY_LENGTH


def _is_key(rows: pa.Table, names: Sequence[str]) -> bool:
    """Whether rows that agree in `names` agree in all columns. A load requires that."""
    keys = rows.group_by(list(names)).aggregate([]).num_rows
    if keys == rows.num_rows:
        return True
    comparable = [name for name in rows.column_names if not pa.types.is_nested(rows[name].type)]
    return bool(keys == rows.group_by(comparable).aggregate([]).num_rows)


def _task(sample: Sample, label: Facts, *, asked: Asked) -> tuple[str, str]:
    if label.distinct < 2:
        raise DataRefused(
            f"{sample.source}: {label.file_name} holds {label.distinct} value(s), nothing to predict: give --label"
        )
    quantity = label.numbers is not None and (not label.whole or label.distinct > FEW_NUMBERS)
    task = asked.task or ("regression" if quantity else "binary" if label.distinct == 2 else "multiclass")
    if task == "regression" and label.numbers is None:
        raise DataRefused(f"{sample.source}: --task regression: {label.file_name} does not hold numbers")
    if (task == "binary") != (label.distinct == 2) and task != "regression":
        raise DataRefused(
            f"{sample.source}: --task {task}: {label.file_name} holds {label.distinct:,} different values"
        )
    if task == "multiclass" and label.distinct > MOST_CLASSES:
        raise DataRefused(
            f"{sample.source}: {label.file_name} holds {label.distinct:,} values, too many classes: give --label"
        )
    return task, "named by --task" if asked.task else f"{label.file_name}: {label.summary}"


def _classes(label: Facts) -> tuple[str, ...]:
    """The classes, sorted by name. Of two, the positive one is last: a word like "yes", or else the rarer one."""
    names = sorted(label.counts)
    if len(names) > 2:
        return tuple(names)
    positive_words = [name for name in names if name.strip().lower() in POSITIVE]
    positive = positive_words[0] if len(positive_words) == 1 else min(names, key=lambda name: label.counts[name])
    return tuple(sorted(names, key=lambda name: name == positive))


def _with_allowed_name(column: Facts) -> Facts:
    """Return the column with another name if Evergreen reserves its name."""
    return replace(column, name=f"{column.name}_given") if column.name in RESERVED_COLUMNS else column


def _with_leak(candidate: Guess, leak: str | None) -> Guess:
    if leak is None or candidate.role != "feature":
        return candidate
    return Guess("left out", f"{leak}: a leak, unless it is known when a prediction is made", candidate.keys)


def _column_named(sample: Sample, columns: Mapping[str, Facts], name: str, *, option: str) -> Facts:
    column = columns.get(name) or next(
        (c for c in columns.values() if name.lower() in {c.file_name.lower(), c.name}), None
    )
    if column is None:
        raise _ask(sample, f"there is no column {name!r} for it", option, list(columns))
    return column


def _ask(sample: Sample, question: str, option: str, choices: Sequence[str]) -> DataRefused:
    choices_text = ", ".join(choices[:40]) + (f" and {len(choices) - 40} more" if len(choices) > 40 else "")
    return DataRefused(f"{sample.source}: say {question} by {option}: {choices_text or 'no column fits'}")


def lengths(guesses: Draft) -> dict[str, Any]:
    """The lengths of validation and test, from the times of the sample. Empty if there is no split by time."""
    if guesses.event_time is None or guesses.event_time.times is None:
        return {}
    times = np.sort(guesses.event_time.times.drop_null().cast(pa.int64()).to_numpy())
    span = timedelta(microseconds=int(times[-1] - times[0]))
    if span < SHORTEST:
        return {}
    unit = timedelta(days=1) if span >= timedelta(days=20) else timedelta(hours=1)
    longest, shortest = int(span * 0.2 / unit), 7 if span >= timedelta(days=70) else 1
    test = min(max(shortest, _units_with(times, 600, unit)), max(longest, 1), 28 * (timedelta(days=1) // unit))
    test_rows = int(np.sum(times > times[-1] - test * unit // timedelta(microseconds=1)))
    return {
        "span": span,
        "unit": unit,
        "test": test * unit,
        "validation": max(test // 2, 1) * unit,
        "test_rows": test_rows,
    }


def _units_with(times: np.ndarray[Any, np.dtype[np.int64]], rows: int, unit: timedelta) -> int:
    """The number of time units before the newest row that contain `rows` rows."""
    if len(times) < rows:
        return 1_000_000
    return -(-timedelta(microseconds=int(times[-1] - times[-rows])) // unit)
