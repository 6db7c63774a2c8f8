"""All errors that Evergreen raises on purpose.

    EvergreenError
    ├── SettingMissing            a setting that this action needs is empty
    ├── SpecInvalid               a model file is wrong
    ├── UnknownModel              no model file has that name
    ├── Unreachable               MariaDB, MLflow or Airflow does not answer
    ├── AccessDenied              a server answered and refused the credentials
    ├── DataRefused               data can't be used as it is
    │   ├── MissingColumns
    │   ├── RowsRefused
    │   ├── RowContradicts
    │   ├── EmptyWindow
    │   ├── MissingLabels
    │   └── ValidationFailed
    ├── NotFound                  a version, snapshot, prediction or row that does not exist
    │   └── UnknownEntities
    ├── HeldBack                  maintenance skipped a change that could do harm
    ├── NothingToDo               there is no open decision or candidate to act on
    ├── DeploymentFailed          a version did not come up everywhere and was rolled back
    ├── IntegrityError            bytes or predictions are not what was recorded
    ├── TooSlow                   a version answers too slowly to serve
    ├── NotNow                    a prediction can't be answered now; the client should retry soon
    ├── NotLogged                 MariaDB refuses a prediction's row, so the client gets no answer
    └── StackError                a part on this machine can't be started
        └── GaveUp                a wait ended because nothing made progress

Each error takes facts and builds a one-line message: what was wrong, where, and what to do.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path


def _some(names: Iterable[str], limit: int = 8) -> str:
    all_names = list(names)
    rest = f" and {len(all_names) - limit} more" if len(all_names) > limit else ""
    return ", ".join(all_names[:limit]) + rest


class EvergreenError(Exception):
    """The base class. The CLI prints the message as one line and exits with `exit_code`."""

    exit_code = 1

    @property
    def without_values(self) -> str:
        """The message without values of rows. Readers of a log may not be allowed to see the rows."""
        return str(self)


class SettingMissing(EvergreenError):
    def __init__(self, *, variable: str, needed_for: str) -> None:
        super().__init__(f"{variable} is not set, and {needed_for} needs it: set it in .env")


class SpecInvalid(EvergreenError):
    """A model file can't be used. `problems` are pairs of (path of the key, what was expected)."""

    exit_code = 2

    def __init__(self, *, file: str, problems: Sequence[tuple[str, str]]) -> None:
        self.file, self.problems = file, tuple(problems)
        first = "; ".join(f"{path}: {expected}" for path, expected in self.problems[:5])
        more = f"; and {len(self.problems) - 5} more" if len(self.problems) > 5 else ""
        super().__init__(f"{file}: {first}{more}")


class UnknownModel(EvergreenError):
    exit_code = 2

    def __init__(self, *, model: str, available: Iterable[str]) -> None:
        names = _some(sorted(available)) or "none"
        super().__init__(f"there is no model named {model!r}: models are {names} (one YAML file each in models/)")


class Unreachable(EvergreenError):
    exit_code = 3

    def __init__(self, *, service: str, address: str, reason: str = "") -> None:
        self.service, self.address = service, address
        detail = f" ({reason})" if reason else ""
        super().__init__(f"{service} does not answer at {address}{detail}: is it up? `make status` shows every part")


class AccessDenied(EvergreenError):
    exit_code = 3

    def __init__(self, *, service: str, address: str, user: str, reason: str = "") -> None:
        detail = f" ({reason})" if reason else ""
        super().__init__(f"{service} at {address} refuses user {user!r}{detail}: check the password and grants")


class DataRefused(EvergreenError):
    exit_code = 4


class MissingColumns(DataRefused):
    def __init__(self, *, source: str, missing: Iterable[str], available: Iterable[str]) -> None:
        listed = _some(available, 40)
        rest = f"it has {listed}" if listed else "its first line names none that the model file knows"
        super().__init__(
            f"{source}: missing columns {_some(missing)}; {rest} (rename with source.map in the model file, or --map)"
        )


class RowsRefused(DataRefused):
    """Rows of a file or a query were refused.

    refused: the number of refused rows.
    rows: the number of rows read so far.
    first: line number in the file, column, value and reason of the first refused row.
    undone: the action that was not done with any row.
    allowed: the most rows that may be refused.
    file: the file that lists all refused rows.
    """

    def __init__(
        self,
        *,
        source: str,
        refused: int,
        rows: int,
        first: tuple[int, str, str, str],
        undone: str = "loaded",
        allowed: str = "",
        file: Path | None = None,
    ) -> None:
        self.refused, self.first, self.file = refused, first, file
        line, column, value, reason = first
        more = f", more than {allowed}," if allowed else ""
        super().__init__(
            f"{source}: {refused:,} of {rows:,} rows refused{more} and nothing was {undone}; "
            f"first: line {line}, {column} = {value!r}: {reason}" + (f"; all of them: {file}" if file else "")
        )

    @property
    def without_values(self) -> str:
        _, column, value, _ = self.first
        return str(self).replace(f"{column} = {value!r}", column, 1)


class RowContradicts(DataRefused):
    """Two rows have the same entity, event time and availability time, but other values. Times are UTC."""

    def __init__(self, *, source: str, entity: str, event_time: datetime, known_at: datetime) -> None:
        self.entity = entity
        super().__init__(
            f"{source}: entity {entity!r} at {event_time} UTC has other values than another row for the same time,"
            f" available at {known_at}: a correction needs a later time of availability"
        )

    @property
    def without_values(self) -> str:
        return str(self).replace(f"entity {self.entity!r}", "an entity", 1)


class EmptyWindow(DataRefused):
    def __init__(self, *, model: str, start: datetime | None, end: datetime) -> None:
        since = f"{start:%Y-%m-%d %H:%M}" if start else "the beginning"
        super().__init__(
            f"{model}: no label between {since} and {end:%Y-%m-%d %H:%M} UTC: "
            "load newer labels, or give a window end inside the data"
        )


class MissingLabels(DataRefused):
    def __init__(self, *, model: str, detail: str) -> None:
        super().__init__(f"{model}: {detail}")


class ValidationFailed(DataRefused):
    """Training data breaks rules. `violations` are one line each, the worst first. `report` is the full report."""

    def __init__(self, *, model: str, violations: Sequence[str], report: str) -> None:
        self.violations = tuple(violations)
        first = "; ".join(self.violations[:3])
        super().__init__(
            f"{model}: training data breaks {len(self.violations)} rule(s): {first}. Mend the source, or let "
            f"`validation` in the model file make the rule a warning; all in validation/report.html: {report}"
        )


class NotFound(EvergreenError):
    exit_code = 5

    def __init__(self, *, what: str, where: str = "", hint: str = "") -> None:
        place = f" in {where}" if where else ""
        super().__init__(f"there is no {what}{place}" + (f": {hint}" if hint else ""))


class UnknownEntities(NotFound):
    """Entities are not in the feature store. `unknown` are pairs of (place in the request from 0, id)."""

    def __init__(self, *, model: str, entity: str, unknown: Sequence[tuple[int, str]]) -> None:
        self.unknown = tuple(unknown)
        listed = _some(dict.fromkeys(repr(name) for _, name in self.unknown))
        super().__init__(
            what=f"{entity} {listed}",
            where=f"the feature store of {model}",
            hint="load its features, or send them to /predict",
        )

    @property
    def without_values(self) -> str:
        return f"{len(self.unknown)} entities are not in the feature store"


class HeldBack(EvergreenError):
    def __init__(self, *, what: str, reason: str) -> None:
        super().__init__(f"{what} stay as they are: {reason}")


class NothingToDo(EvergreenError):
    exit_code = 6

    def __init__(self, *, model: str, reason: str) -> None:
        super().__init__(f"{model}: nothing to do: {reason}")


class DeploymentFailed(EvergreenError):
    exit_code = 7

    def __init__(self, *, model: str, version: int, reason: str, serving: int | None) -> None:
        serving_text = f"version {serving} serves on" if serving is not None else "no version serves"
        super().__init__(f"{model}: version {version} was not deployed: {reason}; {serving_text}")


class IntegrityError(EvergreenError):
    exit_code = 8

    def __init__(self, *, what: str, expected: str, found: str) -> None:
        super().__init__(f"{what}: expected {expected}, found {found}: it was changed or damaged since it was recorded")


class TooSlow(EvergreenError):
    exit_code = 8

    def __init__(self, *, reason: str) -> None:
        super().__init__(f"too slow to serve: {reason}: train it with fewer or shallower trees")


class NotNow(EvergreenError):
    """A prediction can't be answered now. `retry_after`: seconds. `cause`: the error's counter, one of `CAUSES`."""

    CAUSES = ("no model", "busy", "away", "spool")

    def __init__(self, *, reason: str, retry_after: int = 1, cause: str = "away") -> None:
        self.retry_after, self.cause = retry_after, cause
        super().__init__(f"{reason}: try again in {retry_after} s")


class NotLogged(EvergreenError):
    def __init__(self, *, reason: str) -> None:
        super().__init__(f"the prediction could not be logged and is not answered: {reason}")


class StackError(EvergreenError):
    exit_code = 9


class GaveUp(StackError):
    """A wait ended without success.

    waited: seconds of the whole wait.
    still: seconds without progress.
    state: the last observed state.
    """

    def __init__(self, *, what: str, waited: float, still: float, state: object = None) -> None:
        last = "" if state is None else f"; last seen: {' | '.join(str(state).splitlines())}"
        super().__init__(f"gave up on {what} after {waited:.0f} s, the last {still:.0f} s without any progress{last}")
