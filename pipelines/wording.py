"""The last decisions on a model, and what it served, as people would tell them: facts from the rows, in words."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from db.history import timeline
from db.session import session
from utils.settings import Settings

VERDICTS = {"promote": "may serve", "reject": "may not serve", "wait": "has to wait for more labels"}
ACTIONS = {"deploy": "was put into service", "rollback": "was put back into service"}
STATES = {"running": "which runs", "finished": "which has finished", "failed": "which failed"}

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Why:
    """The newest rows, each None where there is none. `hold`: where the newest decision was not to train.

    `training`: the newest decision that asked for a training. `deployment`: a row of `served`.
    """

    model: str
    hold: Row | None
    training: Row | None
    promotion: Row | None
    deployment: Row | None


def why(settings: Settings, model: str) -> Why:
    """Raises: Unreachable, AccessDenied, SettingMissing."""
    with session(settings, "reader") as connection:
        newest = timeline.last_retraining(connection, model)
        training = timeline.last_retraining(connection, model, action="retrain")
        promotion, served = timeline.last_promotion(connection, model), timeline.served(connection, model)
    held = newest if newest and newest["action"] == "hold" else None
    return Why(model, _plain(held), _plain(training), _plain(promotion), _plain(served[0] if served else None))


def served(settings: Settings, model: str) -> list[Row]:
    """What served when, the newest first (`db.history.timeline.served`).

    Raises: Unreachable, AccessDenied, SettingMissing.
    """
    with session(settings, "reader") as connection:
        return [dict(row) for row in timeline.served(connection, model)]


def retraining_words(row: Row) -> str:
    """One sentence for a row of `retrain_decision`."""
    decided = "a training was asked for" if row["action"] == "retrain" else "no training was asked for"
    said = f"{moment(row['decided_at'])}: {decided} ({row['cause']}): {row['reason']}. Decided by {row['caused_by']}"
    if row["action"] == "hold":
        return f"{said}."
    if not row["run_id"]:
        return f"{said}; it waits for a run."
    state = STATES.get(row["run_state"], "which has not begun")
    return f"{said}; taken up by run {row['run_id']}, {state}."


def promotion_words(row: Row) -> str:
    """One or two sentences for a row of `promotion_decision`."""
    against = (
        f"compared with version {row['champion_version']}" if row["champion_version"] else "the first of its model"
    )
    said = f"{moment(row['decided_at'])}: version {row['candidate_version']}, {against}, {VERDICTS[row['verdict']]}"
    said += f": {row['reason']}. Trained by run {row['run_id']}"
    if row["snapshot_rows"] is not None:
        said += f" on {row['snapshot_rows']:,} rows up to {moment(row['window_end'])} (snapshot {row['snapshot_id']})"
    said += f", because of {row['trained_because']}." if row["trained_because"] else "."
    if row["promoted_version"] and row["promoted_version"] != row["candidate_version"]:
        said += f" Version {row['promoted_version']} is the same recipe, fitted on the test rows too."
    if row["verdict"] == "promote" and not row["deployment_run_id"]:
        said += " It waits for deployment."
    return said


def deployment_words(row: Row) -> str:
    """One or two sentences for a row of `served`."""
    instead = f" in place of version {row['previous_version']}" if row["previous_version"] else ""
    said = f"{moment(row['since'])}: version {row['version']} {ACTIONS[row['action']]}{instead}: {row['reason']}."
    return f"{said} Done by {row['caused_by']}; {outcome_words(row)}."


def outcome_words(row: Row) -> str:
    """What came of a row of `served`."""
    if row["outcome"] == "live":
        return f"live at {moment(row['outcome_at'])}, {row['outcome_reason']}"
    if row["outcome"] == "failed":
        return f"failed at {moment(row['outcome_at'])}: {row['outcome_reason']}"
    return "not yet confirmed by the services" if row["until"] is None else "replaced before the services confirmed it"


def inputs(evidence: Row) -> list[tuple[str, str]]:
    """What a decision went by, a line each as (name, value); what was empty is left out."""
    lines: list[tuple[str, str]] = []
    for name, value in evidence.items():
        if isinstance(value, dict):
            lines += inputs(value)
        elif isinstance(value, list) and any(isinstance(each, dict) for each in value):
            lines += [(_spaced(name), _shown(each)) for each in value]
        elif not _is_empty(value):
            lines.append((_spaced(name), _shown(value)))
    return lines


def _shown(value: object) -> str:
    if isinstance(value, dict):
        known = {name: each for name, each in value.items() if not _is_empty(each)}
        return ", ".join(f"{_spaced(name)} {_shown(each)}" for name, each in known.items())
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def _is_empty(value: object) -> bool:
    return value is None or value is False or value in ("", [], {})


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def moment(at: datetime | None) -> str:
    """`at` for people; UTC."""
    return f"{at:%Y-%m-%d %H:%M:%S} UTC" if at else "an unknown time"


def _plain(row: Mapping[Any, Any] | None) -> Row | None:
    return dict(row) if row is not None else None
