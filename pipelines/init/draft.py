"""What a file of rows is about: its entity, time, label and task, and what each further column could be."""

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
    span_said,
)
from pipelines.init.leak_suspects import suspects
from pipelines.init.sample import Sample
from utils.errors import DataRefused

LABEL_NAMES = frozenset({"label", "target", "outcome", "class", "y", "answer"})
KNOWN_NAMES = frozenset({"available_at", "known_at"})
POSITIVE = frozenset({"yes", "true", "1", "y", "positive", "late", "fraud", "churned", "leaves", "bad"})
MOST_CLASSES = 50
FEW_NUMBERS = 10  # a whole-number label with more different values is a quantity
NO_TIME = "none"
SHORTEST = timedelta(hours=10)  # a shorter span is not split by time


@dataclass(frozen=True, slots=True)
class Asked:
    """What the user said; columns by their name in the file. None: to be guessed."""

    label: str | None = None
    entity: str | None = None
    event_time: str | None = None  # or `none`
    task: str | None = None


@dataclass(frozen=True, slots=True)
class Draft:
    """All guesses of one model file, each with what it was guessed from."""

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
        """Why the rows are split by entity, where they are."""
        return "too short a time to split by" if self.event_time else "without time"

    def having(self, role: str) -> list[Facts]:
        """The columns that are guessed to be `role`."""
        return [column for column, guessed in self.columns if guessed.role == role]


def draft(sample: Sample, *, model: str, asked: Asked) -> Draft:
    """Guess everything that a model file says.

    Raises: DataRefused where something can't be guessed, naming the option that says it, and what it may be.
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
    open_columns = [_allowed(column) for column in others.values() if column != entity]
    leaks = suspects(label, open_columns, task=task)
    guessed = [(column, _with_leak(guess(column), leaks.get(column.file_name))) for column in open_columns]
    if time_of_day and time_of_day.numbers is None:
        guessed = [pair for pair in guessed if pair[0].file_name != time_of_day.file_name]
    if not any(found.role == "feature" for _, found in guessed):
        why = "; ".join(f"{column.file_name}: {found.why}" for column, found in guessed[:3])
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
        label=_allowed(label),
        label_why=label_why,
        classes=() if task == "regression" else _classes(label),
        columns=tuple(guessed),
    )


def _label(sample: Sample, columns: Mapping[str, Facts], *, model: str, asked: Asked) -> tuple[Facts, str]:
    if asked.label:
        return _named(sample, columns, asked.label, option="--label"), "named by --label"
    called = [c for c in columns.values() if c.name in LABEL_NAMES or model == c.name or model.endswith(f"_{c.name}")]
    if len(called) != 1:
        found = [c.file_name for c in called] or [c.file_name for c in columns.values() if c.distinct > 1]
        raise _ask(sample, "which column holds what is to be predicted", "--label", found)
    return called[0], "by its name; --label names another"


def _times(sample: Sample, columns: Mapping[str, Facts], *, asked: Asked) -> tuple[Facts | None, Facts | None, str]:
    """The columns of event time and of availability, and why."""
    timed = {name: c for name, c in columns.items() if c.times is not None and not c.blank}
    known = next((c for c in timed.values() if c.name in KNOWN_NAMES), None)
    if asked.event_time == NO_TIME and NO_TIME not in columns:
        return None, None, "said by --event-time none"
    if asked.event_time:
        named = _named(sample, columns, asked.event_time, option="--event-time")
        if named.times is None:
            raise DataRefused(f"{sample.source}: --event-time: {named.file_name} does not hold times like 2026-11-21")
        return named, known if known != named else None, f"named by --event-time; {span_said(named)}"
    fitting = [c for c in timed.values() if c != known and not c.words & {"birth", "dob", "birthday", "birthdate"}]
    if len(fitting) > 1:
        raise _ask(sample, "when a row was true", "--event-time", [*(c.file_name for c in fitting), NO_TIME])
    if not fitting:
        return None, None, "no column holds a time like 2026-11-21 in every row"
    return fitting[0], known, f"the only column with a time in every row; {span_said(fitting[0])}"


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
        named = _named(sample, columns, asked.entity, option="--entity")
        return named, f"named by --entity; {named.said}"
    fitting = [c for c in columns.values() if _may_be_entity(c) and _is_key(sample.rows, [c.file_name, *key])]
    called = [column for column in fitting if like_an_id(column)]
    if len(chosen := called if len(called) == 1 else fitting) == 1:
        beside = f", once at each {' and '.join(key)}" if key else ""
        return chosen[0], f"{chosen[0].said}{beside}"
    found = [c.file_name for c in fitting] or [c.file_name for c in columns.values() if like_an_id(c)]
    raise _ask(sample, "whose rows these are (each once" + (" at a time" if key else "") + ")", "--entity", found)


def _may_be_entity(column: Facts) -> bool:
    if column.blank or column.readable or (column.numbers is not None and not column.whole):
        return False
    unique = column.distinct == column.rows
    return (unique or like_an_id(column)) and int(pc.max(pc.utf8_length(column.text)).as_py() or 0) <= ENTITY_LENGTH


def _is_key(rows: pa.Table, names: Sequence[str]) -> bool:
    """Whether rows that are the same in `names` are the same in all their columns, as a load wants it."""
    keys = rows.group_by(list(names)).aggregate([]).num_rows
    if keys == rows.num_rows:
        return True
    plain = [name for name in rows.column_names if not pa.types.is_nested(rows[name].type)]
    return bool(keys == rows.group_by(plain).aggregate([]).num_rows)


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
    return task, "named by --task" if asked.task else f"{label.file_name}: {label.said}"


def _classes(label: Facts) -> tuple[str, ...]:
    """In the order of their names; of two, the one that is looked for last: the one that says yes, or the rarer one."""
    names = sorted(label.counts)
    if len(names) > 2:
        return tuple(names)
    yes = [name for name in names if name.strip().lower() in POSITIVE]
    positive = yes[0] if len(yes) == 1 else min(names, key=lambda name: label.counts[name])
    return tuple(sorted(names, key=lambda name: name == positive))


def _allowed(column: Facts) -> Facts:
    """The column under a name that Evergreen does not use itself."""
    return replace(column, name=f"{column.name}_given") if column.name in RESERVED_COLUMNS else column


def _with_leak(found: Guess, leak: str | None) -> Guess:
    if leak is None or found.role != "feature":
        return found
    return Guess("left out", f"{leak}: a leak, unless it is known when a prediction is made", found.keys)


def _named(sample: Sample, columns: Mapping[str, Facts], given: str, *, option: str) -> Facts:
    found = columns.get(given) or next(
        (c for c in columns.values() if given.lower() in {c.file_name.lower(), c.name}), None
    )
    if found is None:
        raise _ask(sample, f"there is no column {given!r} for it", option, list(columns))
    return found


def _ask(sample: Sample, what: str, option: str, found: Sequence[str]) -> DataRefused:
    listed = ", ".join(found[:40]) + (f" and {len(found) - 40} more" if len(found) > 40 else "")
    return DataRefused(f"{sample.source}: say {what} by {option}: {listed or 'no column fits'}")


def lengths(found: Draft) -> dict[str, Any]:
    """How long validation and test are, and the longest age of a feature row, from the times of the sample."""
    if found.event_time is None or found.event_time.times is None:
        return {}
    times = np.sort(found.event_time.times.drop_null().cast(pa.int64()).to_numpy())
    span = timedelta(microseconds=int(times[-1] - times[0]))
    if span < SHORTEST:
        return {}
    unit = timedelta(days=1) if span >= timedelta(days=20) else timedelta(hours=1)
    most, least = int(span * 0.2 / unit), 7 if span >= timedelta(days=70) else 1
    test = min(max(least, _units_with(times, 600, unit)), max(most, 1), 28 * (timedelta(days=1) // unit))
    newest = int(np.sum(times > times[-1] - test * unit // timedelta(microseconds=1)))
    return {
        "span": span,
        "unit": unit,
        "test": test * unit,
        "validation": max(test // 2, 1) * unit,
        "test_rows": newest,
    }


def _units_with(times: np.ndarray[Any, np.dtype[np.int64]], rows: int, unit: timedelta) -> int:
    """How many units of time back from the newest row hold `rows` rows."""
    if len(times) < rows:
        return 1_000_000
    return -(-timedelta(microseconds=int(times[-1] - times[-rows])) // unit)
