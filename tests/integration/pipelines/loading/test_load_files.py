"""Loads of real-world files: bad rows among good ones, other column names, standard input, and a killed load."""

import csv
import json
import secrets
import signal
import stat
import subprocess
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import text

from db.admin import bootstrap
from db.session import session
from db.store.batch import LoadReport
from db.store.loads import latest_commit_seq
from pipelines.loading import files
from pipelines.loading.loader import Options, load_file, overlaid
from pipelines.loading.rejects import MaxRejects
from pipelines.spec import ModelSpec
from tests.commands import EVERGREEN, evergreen
from tests.integration.conftest import environment_of
from tests.services import wait_for
from utils.errors import DataRefused, NotFound, RowsRefused
from utils.settings import STORE_DB, Settings

NOW = datetime(2026, 10, 1, 12)
SECRET = "000-12-3456"
HEADER = "customer,day,amount,kind,note,ssn,paid\n"


@dataclass(frozen=True)
class Model:
    """A small model with its own name, and the folder with its model file and the command's state."""

    spec: ModelSpec
    settings: Settings
    folder: Path
    environment: dict[str, str]

    def load(
        self, content: str, *, name: str = "rows.csv", spec: ModelSpec | None = None, **options: Any
    ) -> LoadReport:
        path = self.folder / name
        path.write_text(content)
        spec = spec or self.spec
        load_options = Options(**options)
        return load_file(path, spec=spec, settings=self.settings, caused_by="test", now=NOW, options=load_options)

    def command(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return evergreen("load", self.spec.name, *arguments, environment=self.environment, stdin=stdin)

    def entities(self) -> list[str]:
        with session(self.settings, "reader", STORE_DB) as connection:
            query = text(f"SELECT DISTINCT entity_id FROM {self.spec.store.features_table} ORDER BY entity_id")
            return list(connection.scalars(query))

    def batches(self) -> list[dict[str, Any]]:
        with session(self.settings, "reader") as connection:
            batch_rows = connection.execute(
                text("SELECT * FROM load_batch WHERE model = :model ORDER BY batch_id"), {"model": self.spec.name}
            )
            return [dict(row) for row in batch_rows.mappings()]


@pytest.fixture
def model(settings: Settings, tmp_path: Path) -> Model:
    file = {
        "name": f"m{secrets.token_hex(4)}",
        "task": "binary",
        "entity": "customer",
        "source": {"event_time": "day"},
        "label": {"column": "paid", "classes": ["No", "Yes"]},
        "features": {
            "columns": {
                "amount": {"type": "numeric", "min": 0},
                "kind": {"type": "categorical", "values": ["a", "b"]},
                "note": {"type": "text"},
            },
            "private": ["ssn"],
        },
    }
    (tmp_path / f"{file['name']}.yaml").write_text(yaml.safe_dump(file))
    spec = ModelSpec.parse(file, file="m.yaml")
    bootstrap.migrate(settings, [spec.store])
    own_settings = settings.model_copy(update={"home": tmp_path})
    return Model(spec, own_settings, tmp_path, environment_of(settings, tmp_path))


def row(i: int, **overrides: object) -> str:
    values = {"customer": f"c{i:05}", "day": "2026-01-02", "amount": i, "kind": "a", "note": "x", "ssn": SECRET}
    return ",".join(str(value) for value in {**values, "paid": "Yes", **overrides}.values()) + "\n"


def rows(count: int, wrong: dict[int, str] | None = None) -> str:
    return HEADER + "".join((wrong or {}).get(i, row(i)) for i in range(count))


def test_good_rows_are_loaded_and_bad_rows_are_listed_with_line_column_value_and_reason(model: Model) -> None:
    wrong = {
        3: row(3, note='"two\nlines"'),
        5: row(5, amount=-1),
        7: "c,too,few\n",
        9: row(9, day="2026-02-30", ssn=SECRET),
    }
    report = model.load(rows(1000, wrong), max_rejects=MaxRejects(share=0.01))
    assert (report.rows, report.features_added, report.labels_added, report.rejects) == (1000, 997, 997, 3)
    assert len(model.entities()) == 997
    assert report.rejects_file is not None
    content = report.rejects_file.read_text()
    assert list(csv.reader(content.splitlines())) == [
        ["line", "column", "value", "reason"],
        ["8", "amount", "-1", "is below the minimum 0"],
        ["10", "number of values", "3", "its first line has 7"],
        ["12", "day", "2026-02-30", "is not a time like 2026-11-21 or 2026-11-21T08:30:00+01:00"],
    ]
    assert report.reasons["amount: is below the minimum 0"] == 1
    assert SECRET not in content
    assert stat.S_IMODE(report.rejects_file.stat().st_mode) == 0o600
    assert [batch["rejects"] for batch in model.batches()] == [3]


def test_a_corrected_file_adds_the_refused_row_and_its_list_is_deleted(model: Model) -> None:
    first_report = model.load(rows(200, {5: row(5, amount="?")}), max_rejects=MaxRejects(share=0.01))
    second_report = model.load(rows(200), max_rejects=MaxRejects(share=0.01))
    assert (second_report.features_added, second_report.unchanged, second_report.rejects_file) == (1, 398, None)
    assert first_report.rejects_file is not None
    assert not first_report.rejects_file.exists()


@pytest.mark.parametrize(
    ("allowed", "goes_in"), [("0", False), ("1", False), ("2", True), ("1%", False), ("2%", True), ("100%", True)]
)
def test_too_many_bad_rows_refuse_the_whole_load_and_leave_their_list(
    model: Model, allowed: str, goes_in: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "CHUNK_BYTES", 1_000)
    content = rows(100, {50: row(50, kind="z"), 99: row(99, kind="z")})
    if goes_in:
        assert model.load(content, max_rejects=MaxRejects.parse(allowed)).features_added == 98
        return
    with pytest.raises(
        RowsRefused, match=r"2 of 100 rows refused.* nothing was loaded; first: line 52, kind"
    ) as refused:
        model.load(content, max_rejects=MaxRejects.parse(allowed))
    assert refused.value.file is not None
    assert len(refused.value.file.read_text().splitlines()) == 3
    assert str(refused.value.file) in str(refused.value)
    assert model.entities() == []
    assert [(batch["state"], batch["rejects"]) for batch in model.batches()] == [("abandoned", 2)]


@pytest.mark.parametrize("text", ["", "-1", "1.5", "%", "101%", "few"])
def test_an_invalid_limit_of_rejects_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a number of rows like 20"):
        MaxRejects.parse(text)


def test_reading_a_file_of_only_bad_rows_stops_before_its_end(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "CHUNK_BYTES", 100_000)
    bad = HEADER + row(1, kind="z") * 40_000
    with pytest.raises(RowsRefused) as refused:
        model.load(bad, max_rejects=MaxRejects(share=0.01))
    assert 10_000 <= refused.value.refused < 20_000


def test_overlapping_files_add_only_their_differences(model: Model) -> None:
    model.load(rows(100), name="january.csv")
    january_and_february = HEADER + "".join(row(i) for i in range(50, 150)) + row(3, amount=77)
    report = model.load(january_and_february, name="february.csv")
    assert (report.features_added, report.labels_added, report.corrections, report.unchanged) == (51, 50, 1, 101)


def test_a_dry_run_reports_the_result_and_changes_nothing(model: Model) -> None:
    model.load(rows(100))
    batches = model.batches()
    content = HEADER + "".join(row(i) for i in range(90, 110)) + row(3, amount=77) + row(4, amount="?")
    report = model.load(content, dry_run=True, max_rejects=MaxRejects(count=1))
    assert (report.rows, report.features_added, report.labels_added) == (22, 11, 10)
    assert (report.unchanged, report.corrections, report.rejects) == (21, 1, 1)
    assert (report.commit_seq, report.batch_id, model.batches(), len(model.entities())) == (None, None, batches, 100)
    load_report = model.load(content, max_rejects=MaxRejects(count=1))
    assert (load_report.features_added, load_report.unchanged, load_report.corrections) == (11, 21, 1)


def test_columns_may_have_other_names_in_one_file(model: Model) -> None:
    content = "Kunde,Datum,amount,Art,note,seen\nc1,2026-01-02,1,a,x,2026-02-03\n"
    names = {"Kunde": "customer", "Art": "kind"}
    model.load(content, spec=overlaid(model.spec, names=names, event_time="Datum", available_at="seen"))
    model.load(
        content.replace("c1", "c2"), spec=overlaid(model.spec, names={**names, "Datum": "day"}, available_at="2d")
    )
    with session(model.settings, "reader", STORE_DB) as connection:
        query = f"SELECT entity_id, event_time, available_at FROM {model.spec.store.features_table} ORDER BY entity_id"
        assert [tuple(columns) for columns in connection.execute(text(query))] == [
            ("c1", datetime(2026, 1, 2), datetime(2026, 2, 3)),
            ("c2", datetime(2026, 1, 2), datetime(2026, 1, 4)),
        ]


def test_a_row_known_after_a_lag_is_corrected_by_a_later_load(model: Model) -> None:
    spec = overlaid(model.spec, names={}, available_at="+2d")
    model.load(rows(1), spec=spec)
    assert model.load(HEADER + row(0, amount=9), spec=spec).corrections == 1


def test_a_private_column_can_not_be_mapped_to_a_feature(model: Model) -> None:
    with pytest.raises(DataRefused, match="missing columns note"):
        model.load(rows(1).replace("note", "other"), spec=overlaid(model.spec, names={"ssn": "note"}))


def test_the_command_reads_patterns_and_standard_input(model: Model) -> None:
    for i in range(3):
        (model.folder / f"part{i}.csv").write_text(HEADER + row(i))
    process = model.command(str(model.folder / "part*.csv"), "--json")
    assert [json.loads(line)["features_added"] for line in process.stdout.splitlines()] == [1, 1, 1], process.stderr
    process = model.command("-", "--map", "who=customer", stdin=rows(5).replace("customer", "who"))
    assert "standard input: 5 rows" in process.stdout, process.stderr
    assert len(model.entities()) == 5
    process = model.command(str(model.folder / "other*.csv"))
    assert (process.returncode, process.stdout) == (NotFound.exit_code, "")
    assert "there is no file that fits" in process.stderr


def test_the_command_prints_number_reasons_and_list_of_the_refused_rows(model: Model) -> None:
    (model.folder / "rows.csv").write_text(rows(200, {5: row(5, amount="?")}))
    process = model.command(str(model.folder / "rows.csv"), "--json")
    report = json.loads(process.stdout)
    assert (report["rejects"], report["reasons"]) == (1, {"amount: is not a number": 1})
    rejects_file = Path(report["rejects_file"])
    assert rejects_file.is_relative_to(model.folder / "rejects" / model.spec.name)
    process = model.command(str(model.folder / "rows.csv"), "--dry-run")
    assert "refused: 1 rows (1 × amount: is not a number): see" in process.stderr
    assert "nothing was changed" in process.stdout
    process = model.command(str(model.folder / "rows.csv"), "--max-rejects", "0")
    assert (process.returncode, process.stdout) == (4, "")
    assert str(rejects_file) in process.stderr
    assert model.command("rows.csv", "--max-rejects", "some").returncode == 2


def stream(model: Model, megabytes: int, *arguments: str) -> "subprocess.Popen[bytes]":
    """Start a load from standard input and write `megabytes` of rows. The standard input stays open."""
    command = [EVERGREEN, "load", model.spec.name, "-", *arguments]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=model.environment
    )
    assert process.stdin is not None
    process.stdin.write(HEADER.encode())
    note = "n" * 3_900
    block = "".join(row(i, note=note) for i in range(256)).encode()  # a megabyte
    for _ in range(megabytes):
        process.stdin.write(block)
    process.stdin.flush()
    return process


def peak_megabytes(process: "subprocess.Popen[bytes]") -> int:
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) >> 10


def test_memory_does_not_grow_with_the_size_of_the_input(model: Model) -> None:
    peaks = []
    for megabytes in (100, 600):
        process = stream(model, megabytes)
        peaks.append(peak_megabytes(process))  # the rest is in the buffers of the pipe and of the reader
        out, err = process.communicate()
        assert process.returncode == 0, err
        assert f"standard input: {megabytes * 256:,} rows" in out.decode()
    assert peaks[1] < peaks[0] + 64, peaks
    assert len(model.entities()) == 256


def test_a_killed_load_is_invisible_and_can_be_run_again(model: Model) -> None:
    model.load(rows(10))
    content = "".join(row(i, note="n" * 1_000) for i in range(24_000))  # more than one chunk
    process = subprocess.Popen(
        [EVERGREEN, "load", model.spec.name, "-"], stdin=subprocess.PIPE, env=model.environment, text=True
    )
    assert process.stdin is not None
    process.stdin.write(HEADER + content)
    process.stdin.flush()
    wait_for("an open batch", lambda: any(batch["state"] == "open" for batch in model.batches()))
    wait_for("rows of it", lambda: len(model.entities()) > 10)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdin.close()
    assert [batch["state"] for batch in model.batches()] == ["committed", "open"]
    assert latest_commit_seq(model.settings, model.spec.name) == 1
    assert len(model.entities()) > 10  # the rows exist, but readers ignore their batch
    report = model.load(rows(300), name="again.csv")
    assert (report.features_added, report.unchanged, report.commit_seq) == (290, 20, 2)
    assert [batch["state"] for batch in model.batches()] == ["committed", "abandoned", "committed"]
    assert len(model.entities()) == 300
