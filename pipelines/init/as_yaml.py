"""Write a draft as YAML. A comment gives the evidence for each guess."""

from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

import yaml

from pipelines.init.column_facts import Facts, Guess
from pipelines.init.draft import Draft, lengths
from utils.duration import show_duration

MIN_ROWS = 500  # the default of gates.min_rows
LONG = timedelta(days=365)


def model_file(draft: Draft) -> str:
    """The text of the model file. It parses as a `ModelSpec`."""
    return "\n".join(line.rstrip() for line in _lines(draft)) + "\n"


def _lines(draft: Draft) -> Iterator[str]:
    sample, source = draft.sample, _comment(draft.sample.source)
    yield f"# A first model file, guessed by `evergreen init` from {sample.said} of {source}."
    yield "# Each guess says what it was guessed from. Read it through and correct it;"
    yield f"# `evergreen models {draft.model}` shows what it then means."
    yield "spec_version: 1"
    yield f"name: {_flow(draft.model)}"
    yield _with_comment(
        f"description: {_flow(f'{draft.label.file_name}, from {sample.source}')}", "say what is predicted, and when"
    )
    yield _with_comment(f"task: {draft.task}", draft.task_why)
    yield _with_comment(f"entity: {_flow(draft.entity.name)}", draft.entity_why)
    yield ""
    yield from _source(draft)
    yield ""
    yield "label:"
    yield _with_comment(f"  column: {_flow(draft.label.name)}", draft.label_why)
    if draft.classes:
        rows = ", ".join(f"{name} {draft.label.counts[name]:,}" for name in draft.classes[:6])
        last = "; the one you look for comes last" if len(draft.classes) == 2 else ""
        yield _with_comment(f"  classes: {_flow(list(draft.classes))}", f"rows: {rows}{last}")
    if draft.event_time:
        yield "  # maturity: 1d    # how long after its time a label may arrive; until then a prediction is not judged"
    yield ""
    yield from _features(draft)
    yield ""
    yield from _training(draft)


def _source(draft: Draft) -> Iterator[str]:
    renamed = {column.file_name: column.name for column in _named_columns(draft) if column.file_name != column.name}
    if not draft.event_time:
        yield f"# No source.event_time: {_comment(draft.time_why)}. Rows count as known from the beginning on."
        if not renamed:
            return
    yield "source:"
    if draft.event_time:
        yield _with_comment(f"  event_time: {_flow(draft.event_time.name)}", draft.time_why)
    if draft.time_of_day:
        yield _with_comment(
            f"  time_of_day: {_flow(draft.time_of_day.name)}",
            f"{draft.event_time.name if draft.event_time else ''} holds dates, this the time of day",
        )
    if draft.available_at:
        yield _with_comment(
            f"  available_at: {_flow(draft.available_at.name)}", "by its name: when the row could have been known"
        )
    if renamed:
        yield "  map:    # column of the file: its name here"
        yield from (f"    {_flow(name)}: {_flow(new)}" for name, new in renamed.items())


def _named_columns(draft: Draft) -> list[Facts]:
    """The columns that the model file may name: all but the private ones."""
    roles = [draft.entity, draft.event_time, draft.time_of_day, draft.available_at, draft.label]
    special = [column for column in roles if column]
    columns = [*special, *draft.having("feature"), *draft.having("left out")]
    return list({column.file_name: column for column in columns}.values())


def _features(draft: Draft) -> Iterator[str]:
    yield "features:"
    if draft.event_time:
        yield "  # max_age: 90d    # an older feature row counts as missing; without it any age will do"
    yield "  # Rows outside of min, max or values are refused, by loads and by the service. Take values away where"
    yield "  # new ones may come; give a max where nothing beyond it can be right: the greatest number is only told."
    yield "  columns:"
    public = [(column, guess) for column, guess in draft.columns if guess.role != "private"]
    width = max(len(_flow(column.name)) for column, _ in public)
    for column, guess in public:
        line = f"{_flow(column.name) + ':':<{width + 1}} {_flow_map(guess.keys) if guess.keys else ''}".rstrip()
        yield _with_comment(f"    {line}" if guess.role == "feature" else f"    # {line}", _why(guess))
    private = [(column, guess) for column, guess in draft.columns if guess.role == "private"]
    yield (
        "  private:    # may stand in a file; never enters the store, a log or an artifact"
        if private
        else "  private: []"
    )
    for column, guess in private:
        yield _with_comment(f"    - {_flow(column.file_name)}", guess.why)


def _why(guess: Guess) -> str:
    return guess.why if guess.role == "feature" else f"left out: {guess.why}"


def _training(draft: Draft) -> Iterator[str]:
    yield "training:"
    times = lengths(draft)
    if not times:
        test = int(draft.label.rows * 0.2)
        yield _with_comment(
            "  split: {by: entity, validation: 0.2, test: 0.2}", f"without time, by entity; about {test:,} test rows"
        )
    else:
        test = times["test_rows"]
        span = f"the rows span {_days(times['span'])}"
        if times["span"] >= LONG:
            yield _with_comment("  window: auto", f"{span}: how far back to learn from is searched, too")
        else:
            yield _with_comment("  # window: 180d", f"how far back to learn from; without it, all there is: {span}")
        test_part, validation = show_duration(times["test"]), show_duration(times["validation"])
        why = f"the newest rows judge: {test:,} in the last {test_part}"
        yield _with_comment(f"  split: {{by: time, validation: {validation}, test: {test_part}}}", why)
    if test < MIN_ROWS:
        yield ""
        needed = f"without it, {MIN_ROWS} test rows are needed, and there are about {test:,}"
        yield _with_comment(f"# gates: {{min_rows: {max(test // 2, 1)}}}", needed)


def _days(span: timedelta) -> str:
    return f"{span.days:,} days" if span.days else f"{span.seconds // 3600} hours"


def _with_comment(line: str, comment: str) -> str:
    return f"{line}    # {_comment(comment)}"


def _comment(text: str) -> str:
    """`text` on one line, with only the characters that YAML allows in a comment."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _flow(value: Any) -> str:
    """A value as YAML on one line, for a list or a mapping. Names like `yes` and `null` are quoted."""
    return yaml.safe_dump([value], default_flow_style=True, width=1 << 30, allow_unicode=True).strip()[1:-1]


def _flow_map(keys: Mapping[str, Any]) -> str:
    return "{" + ", ".join(f"{name}: {_flow(value)}" for name, value in keys.items()) + "}"
