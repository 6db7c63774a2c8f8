"""A draft as the text of a model file: YAML, each guess with a comment that says what it was guessed from."""

from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

import yaml

from pipelines.init.column_facts import Facts, Guess
from pipelines.init.draft import Draft, lengths
from utils.duration import show_duration

MIN_ROWS = 500  # the default of gates.min_rows
LONG = timedelta(days=365)


def model_file(found: Draft) -> str:
    """The model file as text, which parses as a `ModelSpec`."""
    return "\n".join(line.rstrip() for line in _lines(found)) + "\n"


def _lines(found: Draft) -> Iterator[str]:
    sample, source = found.sample, _comment(found.sample.source)
    yield f"# A first model file, guessed by `evergreen init` from {sample.said} of {source}."
    yield "# Each guess says what it was guessed from. Read it through and correct it;"
    yield f"# `evergreen models {found.model}` shows what it then means."
    yield "spec_version: 1"
    yield f"name: {_flow(found.model)}"
    yield _with(
        f"description: {_flow(f'{found.label.file_name}, from {sample.source}')}", "say what is predicted, and when"
    )
    yield _with(f"task: {found.task}", found.task_why)
    yield _with(f"entity: {_flow(found.entity.name)}", found.entity_why)
    yield ""
    yield from _source(found)
    yield ""
    yield "label:"
    yield _with(f"  column: {_flow(found.label.name)}", found.label_why)
    if found.classes:
        rows = ", ".join(f"{name} {found.label.counts[name]:,}" for name in found.classes[:6])
        last = "; the one you look for comes last" if len(found.classes) == 2 else ""
        yield _with(f"  classes: {_flow(list(found.classes))}", f"rows: {rows}{last}")
    if found.event_time:
        yield "  # maturity: 1d    # how long after its time a label may arrive; until then a prediction is not judged"
    yield ""
    yield from _features(found)
    yield ""
    yield from _training(found)


def _source(found: Draft) -> Iterator[str]:
    renamed = {c.file_name: c.name for c in _taken(found) if c.file_name != c.name}
    if not found.event_time:
        yield f"# No source.event_time: {_comment(found.time_why)}. Rows count as known from the beginning on."
        if not renamed:
            return
    yield "source:"
    if found.event_time:
        yield _with(f"  event_time: {_flow(found.event_time.name)}", found.time_why)
    if found.time_of_day:
        yield _with(
            f"  time_of_day: {_flow(found.time_of_day.name)}",
            f"{found.event_time.name if found.event_time else ''} holds dates, this the time of day",
        )
    if found.available_at:
        yield _with(
            f"  available_at: {_flow(found.available_at.name)}", "by its name: when the row could have been known"
        )
    if renamed:
        yield "  map:    # column of the file: its name here"
        yield from (f"    {_flow(name)}: {_flow(new)}" for name, new in renamed.items())


def _taken(found: Draft) -> list[Facts]:
    """Columns that the file may name: all but the private ones."""
    own = [found.entity, found.event_time, found.time_of_day, found.available_at, found.label]
    named = [column for column in own if column]
    return list({c.file_name: c for c in [*named, *found.having("feature"), *found.having("left out")]}.values())


def _features(found: Draft) -> Iterator[str]:
    yield "features:"
    if found.event_time:
        yield "  # max_age: 90d    # an older feature row counts as missing; without it any age will do"
    yield "  # Rows outside of min, max or values are refused, by loads and by the service. Take values away where"
    yield "  # new ones may come; give a max where nothing beyond it can be right: the greatest number is only told."
    yield "  columns:"
    shown = [(column, guessed) for column, guessed in found.columns if guessed.role != "private"]
    width = max(len(_flow(column.name)) for column, _ in shown)
    for column, guessed in shown:
        line = f"{_flow(column.name) + ':':<{width + 1}} {_flow_map(guessed.keys) if guessed.keys else ''}".rstrip()
        yield _with(f"    {line}" if guessed.role == "feature" else f"    # {line}", _why(guessed))
    private = [(column, guessed) for column, guessed in found.columns if guessed.role == "private"]
    yield (
        "  private:    # may stand in a file; never enters the store, a log or an artifact"
        if private
        else "  private: []"
    )
    for column, guessed in private:
        yield _with(f"    - {_flow(column.file_name)}", guessed.why)


def _why(guessed: Guess) -> str:
    return guessed.why if guessed.role == "feature" else f"left out: {guessed.why}"


def _training(found: Draft) -> Iterator[str]:
    yield "training:"
    times = lengths(found)
    if not times:
        test = int(found.label.rows * 0.2)
        yield _with(
            "  split: {by: entity, validation: 0.2, test: 0.2}", f"without time, by entity; about {test:,} test rows"
        )
    else:
        test = times["test_rows"]
        span = f"the rows span {_days(times['span'])}"
        if times["span"] >= LONG:
            yield _with("  window: auto", f"{span}: how far back to learn from is searched, too")
        else:
            yield _with("  # window: 180d", f"how far back to learn from; without it, all there is: {span}")
        test_part, validation = show_duration(times["test"]), show_duration(times["validation"])
        why = f"the newest rows judge: {test:,} in the last {test_part}"
        yield _with(f"  split: {{by: time, validation: {validation}, test: {test_part}}}", why)
    if test < MIN_ROWS:
        yield ""
        needed = f"without it, {MIN_ROWS} test rows are needed, and there are about {test:,}"
        yield _with(f"# gates: {{min_rows: {max(test // 2, 1)}}}", needed)


def _days(span: timedelta) -> str:
    return f"{span.days:,} days" if span.days else f"{span.seconds // 3600} hours"


def _with(line: str, comment: str) -> str:
    return f"{line}    # {_comment(comment)}"


def _comment(said: str) -> str:
    """`said` on one line, of characters that YAML allows in a comment."""
    return "".join(letter if letter.isprintable() else " " for letter in said)


def _flow(value: Any) -> str:
    """A value as YAML on one line, fit to stand in a list or a mapping; names such as `yes` and `null` are quoted."""
    return yaml.safe_dump([value], default_flow_style=True, width=1 << 30, allow_unicode=True).strip()[1:-1]


def _flow_map(keys: Mapping[str, Any]) -> str:
    return "{" + ", ".join(f"{name}: {_flow(value)}" for name, value in keys.items()) + "}"
