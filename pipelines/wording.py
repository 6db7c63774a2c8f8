"""Describe the last decisions on a model, and the versions that served, in sentences. Every fact comes from a row."""

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
class Explanation:
    """The newest rows on a model, each from another history. A field is None if there is no such row.

    hold: the newest decision on retraining, if the decision was to hold.
    training: the newest decision to retrain.
    promotion: the newest verdict on a candidate.
    deployment: the newest row of `serving_history`.
    """

    model: str
    hold: Row | None
    training: Row | None
    promotion: Row | None
    deployment: Row | None


def explain(settings: Settings, model: str) -> Explanation:
    """Read the newest rows that explain why the present version of `model` serves.

    Raises: Unreachable, AccessDenied, SettingMissing.
    """
    with session(settings, "reader") as connection:
        newest_decision = timeline.last_retraining(connection, model)
        training = timeline.last_retraining(connection, model, action="retrain")
        promotion = timeline.last_promotion(connection, model)
        deployments = timeline.served(connection, model)
    hold = newest_decision if newest_decision and newest_decision["action"] == "hold" else None
    deployment = deployments[0] if deployments else None
    return Explanation(model, _as_dict(hold), _as_dict(training), _as_dict(promotion), _as_dict(deployment))


def serving_history(settings: Settings, model: str) -> list[Row]:
    """List the versions that served, with their times, the newest first (`db.history.timeline.served`).

    Raises: Unreachable, AccessDenied, SettingMissing.
    """
    with session(settings, "reader") as connection:
        return [dict(row) for row in timeline.served(connection, model)]


def describe_retraining(row: Row) -> str:
    """Describe a row of `retrain_decision` in one sentence."""
    outcome = "a training was asked for" if row["action"] == "retrain" else "no training was asked for"
    sentence = (
        f"{format_time(row['decided_at'])}: {outcome} ({row['cause']}): {row['reason']}. Decided by {row['caused_by']}"
    )
    if row["action"] == "hold":
        return f"{sentence}."
    if not row["run_id"]:
        return f"{sentence}; it waits for a run."
    state = STATES.get(row["run_state"], "which has not begun")
    return f"{sentence}; taken up by run {row['run_id']}, {state}."


def describe_promotion(row: Row) -> str:
    """Describe a row of `promotion_decision` in one or more sentences."""
    comparison = (
        f"compared with version {row['champion_version']}" if row["champion_version"] else "the first of its model"
    )
    text = f"{format_time(row['decided_at'])}: version {row['candidate_version']}, {comparison}, "
    text += f"{VERDICTS[row['verdict']]}: {row['reason']}. Trained by run {row['run_id']}"
    if row["snapshot_rows"] is not None:
        text += (
            f" on {row['snapshot_rows']:,} rows up to {format_time(row['window_end'])} (snapshot {row['snapshot_id']})"
        )
    text += f", because of {row['trained_because']}." if row["trained_because"] else "."
    if row["promoted_version"] and row["promoted_version"] != row["candidate_version"]:
        text += f" Version {row['promoted_version']} is the same recipe, fitted on the test rows too."
    if row["verdict"] == "promote" and not row["deployment_run_id"]:
        text += " It waits for deployment."
    return text


def describe_deployment(row: Row) -> str:
    """Describe a row of `serving_history` in two sentences."""
    replacement = f" in place of version {row['previous_version']}" if row["previous_version"] else ""
    text = (
        f"{format_time(row['since'])}: version {row['version']} {ACTIONS[row['action']]}{replacement}: {row['reason']}."
    )
    return f"{text} Done by {row['caused_by']}; {describe_outcome(row)}."


def describe_outcome(row: Row) -> str:
    """Describe the outcome of a row of `serving_history`."""
    if row["outcome"] == "live":
        return f"live at {format_time(row['outcome_at'])}, {row['outcome_reason']}"
    if row["outcome"] == "failed":
        return f"failed at {format_time(row['outcome_at'])}: {row['outcome_reason']}"
    return "not yet confirmed by the services" if row["until"] is None else "replaced before the services confirmed it"


def evidence_lines(evidence: Row) -> list[tuple[str, str]]:
    """The evidence of a decision as pairs of name and value. Empty values are left out."""
    lines: list[tuple[str, str]] = []
    for name, value in evidence.items():
        if isinstance(value, dict):
            lines += evidence_lines(value)
        elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
            lines += [(_as_words(name), _as_text(item)) for item in value]
        elif not _is_empty(value):
            lines.append((_as_words(name), _as_text(value)))
    return lines


def _as_text(value: object) -> str:
    if isinstance(value, dict):
        filled = {name: item for name, item in value.items() if not _is_empty(item)}
        return ", ".join(f"{_as_words(name)} {_as_text(item)}" for name, item in filled.items())
    if isinstance(value, list):
        return ", ".join(map(_as_text, value))
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def _is_empty(value: object) -> bool:
    return value is None or value is False or value in ("", [], {})


def _as_words(name: str) -> str:
    return name.replace("_", " ")


def format_time(time: datetime | None) -> str:
    """A time in UTC as text for people."""
    return f"{time:%Y-%m-%d %H:%M:%S} UTC" if time else "an unknown time"


def _as_dict(row: Mapping[Any, Any] | None) -> Row | None:
    return dict(row) if row is not None else None
