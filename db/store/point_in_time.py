"""Read the store: labels with the features that were known at their time, from any past state of the store."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, Select, Table, false, literal_column, select

from db.arrow import read_arrow
from db.session import session
from db.store.schema import TIMELESS, StoreSchema
from db.store.store_tables import store_tables
from db.tables import load_batch
from utils.ahead import map_ahead
from utils.settings import STORE_DB, Settings

Int64s = NDArray[np.int64]
MICROSECOND = timedelta(microseconds=1)
CHUNK_LABELS = 50_000  # labels whose feature rows are read and joined at once
READERS = 4  # threads; one waits for the disk while another transfers rows


def training_rows(
    settings: Settings,
    schema: StoreSchema,
    *,
    start: datetime | None,
    until: datetime,
    window_end: datetime,
    commit_seq: int,
) -> Iterator[pa.Table]:
    """Yield one row for each label with start < event_time <= until, from the store's state at `commit_seq`.

    If a label has several versions, the newest one available at `window_end` counts. Each label has the features known
    at its event time (for data without time: at `window_end`). A label without features stays, with missing values.
    Columns: entity_id, event_time (UTC), the label, the features. Rows are sorted by entity_id and event_time.

    The rows come in tables of about `CHUNK_LABELS` rows. The first table has the columns even if it has no rows. All
    labels are in memory, about 100 bytes each, but the features of only four tables at a time.
    Raises: Unreachable, AccessDenied, SettingMissing.
    """
    visible = _visible_batches(settings, schema.model, commit_seq)
    labels_query, query = training_queries(schema, start=start, until=until, window_end=window_end)
    labels = _newest_labels(settings, schema, labels_query, visible)

    def read(part: pa.Table) -> tuple[pa.Table, pa.Table]:
        return part, _read(
            settings, query.where(*_between(query.selected_columns.entity_id, part["entity_id"])), visible
        )

    for part, features in map_ahead(read, _parts(labels), threads=READERS):
        yield _join_features(part, features, schema, window_end)


def training_queries(
    schema: StoreSchema, *, start: datetime | None, until: datetime, window_end: datetime
) -> tuple[Select[Any], Select[Any]]:
    """Return the queries for the label rows and feature rows of `training_rows`, from all batches."""
    tables = store_tables(schema)
    if not schema.timed:
        start, until = None, window_end  # all rows have the same event time; only the availability time counts
    oldest = start - schema.max_age - MICROSECOND if start and schema.max_age else None
    labels = _rows(tables.labels, after=start, until=until, known_by=window_end)
    return labels, _rows(tables.features, after=oldest, until=until, known_by=until)


def training_frame(settings: Settings, schema: StoreSchema, **window: Any) -> pd.DataFrame:
    """Return all of `training_rows` as one frame."""
    frame: pd.DataFrame = pa.concat_tables(training_rows(settings, schema, **window)).to_pandas()
    return frame


def _newest_labels(settings: Settings, schema: StoreSchema, query: Select[Any], visible: Int64s) -> pa.Table:
    """Return the newest version of each label, sorted by entity and event time."""
    labels = _read(settings, query, visible)
    (entities,) = _ranks(labels["entity_id"])
    newest = newest_versions(entities, _micros(labels["event_time"]), _micros(labels["available_at"]))
    return labels.select(["entity_id", "event_time", schema.label.name]).take(newest).combine_chunks()


def _parts(labels: pa.Table) -> Iterator[pa.Table]:
    """Yield `labels`, sorted by entity, in at least one part of about `CHUNK_LABELS` rows. Parts share no entity."""
    entities, first = labels["entity_id"], 0
    while True:
        last = min(first + CHUNK_LABELS, len(labels))
        while last < len(labels) and entities[last] == entities[last - 1]:
            last += 1
        yield labels.slice(first, last - first)
        first = last
        if first >= len(labels):
            return


def _between(entity_id: ColumnElement[str], entities: pa.ChunkedArray) -> list[ColumnElement[bool]]:
    """Return the condition that an entity lies within the sorted `entities`. If there are none, no row matches."""
    if not len(entities):
        return [false()]
    # An id may be any text, so it is written as hexadecimal digits.
    low, high = (f"_utf8mb4 x'{entities[end].as_py().encode().hex()}'" for end in (0, -1))
    return [entity_id >= literal_column(low), entity_id <= literal_column(high)]


def _join_features(labels: pa.Table, features: pa.Table, schema: StoreSchema, window_end: datetime) -> pa.Table:
    """Return `labels` with the features that were known at their times."""
    label_entities, feature_entities = _ranks(labels["entity_id"], features["entity_id"])
    times = _micros(labels["event_time"])
    winners = as_known(
        feature_entities,
        _micros(features["event_time"]),
        _micros(features["available_at"]),
        label_entities,
        times if schema.timed else np.full_like(times, (window_end - TIMELESS) // MICROSECOND),
        max_age=schema.max_age // MICROSECOND if schema.max_age else None,
    )
    matched = features.take(pa.array(winners, mask=winners < 0))
    for column in schema.features:
        labels = labels.append_column(column.name, matched[column.name])
    return labels


def labels_between(
    settings: Settings, schema: StoreSchema, *, after: datetime, until: datetime, known_by: datetime
) -> pd.DataFrame:
    """Return the newest version of each label with after <= event_time <= until that was available at `known_by`.

    For data without time every label counts. Columns: entity_id, event_time, truth, and commit_seq, the load that first
    added the label. Rows are sorted by entity_id and event_time. Raises: Unreachable, AccessDenied, SettingMissing.
    """
    table = store_tables(schema).labels
    query = select(
        table.c.entity_id,
        table.c.event_time,
        table.c.available_at,
        table.c.batch_id,
        table.c[schema.label.name].label("truth"),
    ).where(table.c.available_at <= known_by)
    if schema.timed:
        query = query.where(table.c.event_time >= after, table.c.event_time <= until)
    committed = select(load_batch.c.batch_id, load_batch.c.commit_seq).where(
        load_batch.c.model == schema.model, load_batch.c.state == "committed"
    )
    with session(settings, "pipeline") as connection:
        order: dict[int, int] = {row.batch_id: row.commit_seq for row in connection.execute(committed)}
    rows: pd.DataFrame = _read(settings, query, np.array([*order], dtype=np.int64)).to_pandas()
    rows["commit_seq"] = rows["batch_id"].map(order).astype("int64")
    keys = ["entity_id", "event_time"]
    rows = rows.sort_values([*keys, "available_at"])
    newest = rows.drop_duplicates(keys, keep="last").set_index(keys)
    newest["commit_seq"] = rows.groupby(keys)["commit_seq"].min()
    return newest.reset_index()[[*keys, "truth", "commit_seq"]]


def newest_versions(entities: Int64s, event_times: Int64s, available_at: Int64s) -> Int64s:
    """Return the index of the row with the greatest `available_at` for each (entity, event time), in order."""
    order = np.lexsort((available_at, event_times, entities))
    entity, event_time = entities[order], event_times[order]
    last = np.ones(len(order), dtype=bool)
    last[:-1] = (entity[1:] != entity[:-1]) | (event_time[1:] != event_time[:-1])
    return order[last]


def as_known(
    feature_entities: Int64s,
    event_times: Int64s,
    available_at: Int64s,
    label_entities: Int64s,
    label_times: Int64s,
    *,
    max_age: int | None,
) -> Int64s:
    """Return for each label the index of the feature row that was known at its time, or -1.

    Times and `max_age` are integers of one unit. A feature row fits a label at t if event_time <= t, available_at <= t
    and t - event_time <= max_age. The row with the greatest (event_time, available_at) wins.

    A row is usable from u = max(event_time, available_at) on. The rows are ranked by (entity, event_time, available_at)
    and merged with the labels in the order of (entity, u or t). Then the winner is the running maximum of the rank.
    O(n log n).
    """
    by_rank = _order(feature_entities, event_times, available_at)
    usable_from = np.maximum(event_times, available_at)[by_rank]
    entities = np.concatenate((feature_entities[by_rank], label_entities))
    moments = np.concatenate((usable_from, label_times))
    is_label = np.arange(len(entities)) >= len(by_rank)
    ranks = np.where(is_label, -1, np.arange(len(entities)))
    merged = _order(entities, moments, is_label.astype(np.int64))
    best = np.empty(len(entities), dtype=np.int64)
    best[merged] = np.maximum.accumulate(ranks[merged]) if len(merged) else ranks
    winner = best[is_label]
    has_winner = winner >= 0
    rows = by_rank[winner[has_winner]]
    is_valid = feature_entities[rows] == label_entities[has_winner]
    if max_age is not None:
        is_valid &= label_times[has_winner] - event_times[rows] <= max_age
    result = np.full(len(label_entities), -1, dtype=np.int64)
    result[np.flatnonzero(has_winner)[is_valid]] = rows[is_valid]
    return result


def _order(entities: Int64s, times: Int64s, last: Int64s) -> Int64s:
    """Return the order of rows by entity, then time, then `last`. All are integers, and entities count from 0.

    Entity and time are combined into one number if it fits into 63 bits and `last` does not matter. Sorting it is ten
    times faster than sorting by three keys.
    """
    if len(times):
        first, span = int(times.min()), int(times.max()) - int(times.min()) + 1
        if (int(entities.max()) + 1) * span < 2**62:
            combined = entities * span + (times - first)
            order = np.argsort(combined)
            ordered = combined[order]
            ties = ordered[1:] == ordered[:-1]
            if not ties.any() or not (last[order[1:]] != last[order[:-1]])[ties].any():
                return order
    return np.lexsort((last, times, entities))


def _visible_batches(settings: Settings, model: str, commit_seq: int) -> Int64s:
    """Return ids of the batches that a reader at `commit_seq` sees.

    It is the first query, so it also checks the credentials. connectorx needs 30 s to report a wrong password.
    """
    committed = select(load_batch.c.batch_id).where(
        load_batch.c.model == model, load_batch.c.state == "committed", load_batch.c.commit_seq <= commit_seq
    )
    with session(settings, "pipeline") as connection:
        return np.array(connection.scalars(committed).all(), dtype=np.int64)


def _rows(table: Table, *, after: datetime | None, until: datetime, known_by: datetime) -> Select[Any]:
    rows = select(table).where(table.c.event_time <= until, table.c.available_at <= known_by)
    return rows if after is None else rows.where(table.c.event_time > after)


def _read(settings: Settings, query: Select[Any], visible: Int64s) -> pa.Table:
    """Return the rows of `query` from one of the `visible` batches. No later load can change them."""
    rows = read_arrow(settings, query, database=STORE_DB)
    is_visible = pc.is_in(rows["batch_id"], pa.array(visible))
    return rows if pc.all(is_visible).as_py() is not False else rows.filter(is_visible)


def _ranks(*columns: pa.ChunkedArray) -> list[Int64s]:
    """Return each column of names as integers in the names' order. A name has the same integer in all columns."""
    chunks = [chunk for column in columns for chunk in column.cast(pa.large_string()).chunks]
    encoded = pa.chunked_array(chunks, pa.large_string()).combine_chunks().dictionary_encode()
    order = pc.rank(encoded.dictionary, tiebreaker="dense").to_numpy().astype(np.int64)
    codes = order[encoded.indices.to_numpy()] if len(encoded) else np.array([], dtype=np.int64)
    return np.split(codes, np.cumsum([len(column) for column in columns])[:-1])


def _micros(times: pa.ChunkedArray) -> Int64s:
    result: Int64s = times.cast(pa.timestamp("us")).cast(pa.int64()).to_numpy()
    return result
