"""Tables of results: column names that MariaDB rejects, and batches that are still being written."""

from datetime import datetime

import pyarrow as pa
import pytest
from sqlalchemy import text

from db.log.prediction_ids import new_id
from db.session import session
from db.store.result_tables import appended
from utils.errors import DataRefused
from utils.settings import RESULTS_DB

NOW = datetime(2026, 11, 21, 12)


def test_classes_that_differ_only_in_capitals_are_rejected_with_advice_to_use_a_file(settings):
    columns = pa.schema({"probability_a": pa.float64(), "probability_A": pa.float64(), "prediction_id": pa.string()})
    with (
        pytest.raises(DataRefused, match="Duplicate column name 'probability_A': write them to a file"),
        appended(settings, "capitals", model="m", columns=columns),
    ):
        pass


def test_two_batches_fill_one_table_at_the_same_time(settings):
    columns = pa.schema({"prediction": pa.float64(), "prediction_id": pa.string()})
    with appended(settings, "shared", model="m", columns=columns) as write_first:
        write_first([{"batch_id": new_id(NOW), "prediction": 1.0, "prediction_id": str(new_id(NOW))}])
        with appended(settings, "shared", model="m", columns=columns) as write_second:
            write_second([{"batch_id": new_id(NOW), "prediction": 2.0, "prediction_id": str(new_id(NOW))}])
        with session(settings, "reader", RESULTS_DB) as connection:
            assert connection.scalars(text("SELECT prediction FROM shared")).all() == [2.0]
    with session(settings, "reader", RESULTS_DB) as connection:
        assert set(connection.scalars(text("SELECT prediction FROM shared"))) == {1.0, 2.0}
