"""The spool: rows survive exactly and in order, a full spool raises, and the spool of a dead worker is found."""

import signal
import subprocess
import sys
from contextlib import suppress
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.log.spool import Depth, Spool, orphans
from utils.errors import NotNow

NOW = datetime(2026, 11, 1, 12)
VALUES = st.none() | st.text() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)


def numbers(folder):
    with orphans(folder) as spools:
        return [[row[0] for _, row in spool.take(after=0, most=99)] for spool in spools]


@given(rows=st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=5))
def test_rows_come_back_exactly_and_in_their_order(rows, tmp_path_factory):
    spool = Spool(tmp_path_factory.mktemp("spool"), "a")
    spool.put(rows, now=NOW)
    assert [tuple(row) for _, row in spool.take(after=0, most=99)] == rows
    spool.close()


def test_rows_survive_a_killed_process_and_other_workers_see_them_only_then(tmp_path):
    script = (
        "import sys, time; from datetime import datetime; from pathlib import Path; from api.log.spool import Spool\n"
        f"spool = Spool(Path({str(tmp_path)!r}), 'a'); spool.put([(1,), (2,)], now=datetime(2026, 1, 1))\n"
        "print('put', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == b"put\n"
        assert numbers(tmp_path) == []  # the worker is alive
        worker.send_signal(signal.SIGKILL)
    assert numbers(tmp_path) == [[1, 2]]
    assert numbers(tmp_path) == [[1, 2]]  # reading removes nothing


def test_an_adopted_spool_is_deleted_once_it_is_empty(tmp_path):
    dead = Spool(tmp_path, "dead")
    dead.put([(1,)], now=NOW)
    dead.close()
    with orphans(tmp_path) as spools:
        for spool in spools:
            spool.remove([number for number, _ in spool.take(after=0, most=9)])
    assert list(tmp_path.iterdir()) == []


def test_the_depth_has_the_number_of_rows_and_the_time_of_the_oldest(tmp_path):
    spool = Spool(tmp_path, "a")
    assert spool.depth() == Depth(0, None, 0.0)
    spool.put([(1,), (2,)], now=NOW)
    spool.put([(3,)], now=NOW + timedelta(seconds=9))
    assert (spool.depth().rows, spool.depth().oldest) == (3, NOW)
    spool.remove([1, 2])
    assert (spool.depth().rows, spool.depth().oldest) == (1, NOW + timedelta(seconds=9))
    spool.close()


def test_a_full_spool_takes_a_whole_batch_or_nothing_and_recovers_when_it_has_room(tmp_path):
    spool = Spool(tmp_path, "a", most_bytes=100_000)
    batch = [("x" * 1000,)] * 20
    count = 0
    with suppress(NotNow):
        while True:
            spool.put(batch, now=NOW)
            count += 20
    with pytest.raises(NotNow, match="the spool takes nothing: database or disk is full"):
        spool.put(batch, now=NOW)
    assert count > 0
    assert spool.depth().filled > 0.8
    assert spool.depth().rows == count == len(spool.take(after=0, most=999))
    spool.remove(range(count + 1))
    assert spool.depth().filled < 0.5
    spool.put(batch, now=NOW)
    assert len(spool.take(after=0, most=999)) == 20
    spool.close()


def test_the_reason_names_why_a_folder_can_not_be_written(tmp_path):
    (tmp_path / "file").touch()
    spool = Spool(tmp_path / "file", "a")
    with pytest.raises(NotNow, match=r"the spool takes nothing: (Not a directory|File exists)"):
        spool.put([(1,)], now=NOW)
    spool.close()


def test_rows_that_have_left_the_spool_are_not_in_its_file(tmp_path):
    spool = Spool(tmp_path, "a")
    spool.put([("CANARY",), ("stays",)], now=NOW)
    spool.remove([1])
    spool.checkpoint()
    assert b"CANARY" not in b"".join(path.read_bytes() for path in tmp_path.iterdir())
    spool.close()
