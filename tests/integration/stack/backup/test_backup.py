"""Backups of a real private stack without Airflow's servers, and restores into an empty folder."""

import hashlib
import json
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pydantic import SecretStr
from sqlalchemy import text

from api.log.spool import Spool, orphans
from db.history import trainings
from db.session import session
from pipelines import registry
from pipelines.runs import training_runs
from pipelines.runs.extract import read_rows
from pipelines.runs.snapshot import content_hash, read_snapshot
from pipelines.spec import find_spec
from stack.backup.archive import Archive, open_archive
from stack.backup.backup import DUMP, SETTINGS, BackupReport, backup
from stack.backup.restore import restore
from stack.down import down
from stack.programs import airflow_programs, secrets
from stack.programs.processes import ours
from tests.commands import EVERGREEN
from tests.private_stack import (
    END,
    MODEL,
    Stack,
    command,
    fill_airflow,
    new_stack,
    root,
    secrets_of,
    train_and_deploy,
    write_model,
)
from tests.services import wait_for
from utils.errors import DataRefused, IntegrityError, NotFound, StackError
from utils.settings import PLATFORM_DB, STORE_DB, Settings, load_settings

WEBHOOK = "https://hooks.example/T0/planted-webhook"


def no_progress(doing: str, done: int, total: int) -> None:
    """Ignore the progress."""


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="egb"))  # the path of tmp_path is too long for a socket
    try:
        yield path
    finally:
        shutil.rmtree(path)


@pytest.fixture(scope="module")
def source(folder: Path) -> Iterator[Stack]:
    """A running stack with a trained and deployed model."""
    variables = {"ALERT_WEBHOOK": WEBHOOK, "SERVING_WORKERS": 1, "TIMEZONE": "Asia/Tokyo"}
    stack = Stack(secrets.ensure(new_stack(folder / "a", **variables))[0])
    write_model(stack.settings.models_dir)
    try:
        stack.start()
        with ThreadPoolExecutor(1) as pool:
            airflow = pool.submit(fill_airflow, stack)
            train_and_deploy(stack)
            airflow.result()
        yield stack
    finally:
        down(stack.settings)


@dataclass(frozen=True, slots=True)
class BackupState:
    """A backup, and a request that the source stack answered before it.

    file: the path of the backup.
    report: the result of the backup.
    answer: the service's answer to a request with `row`.
    row: the row of the request.
    """

    file: Path
    report: BackupReport
    answer: dict[str, Any]
    row: dict[str, Any]


@pytest.fixture(scope="module")
def state(source: Stack, folder: Path) -> BackupState:
    row = {"customer_id": "C1", "annual_income": 52000, "outstanding_debt": 900, "credit_mix": "Standard"}
    answer = source.post("/predict", {"data": row})
    # Airflow's database stays open, so that the last write is only in the write-ahead log, not yet in the main file.
    with closing(sqlite3.connect(airflow_programs.folder(source.settings) / "airflow.db")) as airflow_db:
        airflow_db.execute("PRAGMA journal_mode = WAL")
        airflow_db.execute("UPDATE dag SET is_paused = 0")
        airflow_db.commit()
        file = folder / "kept.tar"
        report = backup(source.settings, file, now=END, progress=no_progress)
    return BackupState(file, report, answer, row)


@pytest.fixture(scope="module")
def target(state: BackupState, folder: Path) -> Iterator[Stack]:
    """A running stack with its own secrets and ports, restored into an empty folder."""
    settings = new_stack(folder / "b", DB_API_PASSWORD="mine")
    restore(settings, state.file, force=False, progress=no_progress)
    assert not (settings.home / "restoring").exists()
    stack = Stack(load_settings(env_file=settings.env_file))
    try:
        stack.start()
        yield stack
    finally:
        down(stack.settings)


def test_a_restored_stack_serves_the_same_version_and_the_same_prediction(state: BackupState, target: Stack) -> None:
    answer = target.post("/predict", {"data": state.row})
    names = ("prediction", "confidence", "probabilities", "model", "version")
    assert {name: answer[name] for name in names} == {name: state.answer[name] for name in names}
    logged_ids = {str(row["prediction_id"]) for row in target.query("SELECT prediction_id FROM prediction_log")}
    assert {state.answer["prediction_id"], answer["prediction_id"]} <= logged_ids


def test_every_snapshot_has_its_recorded_hash_whether_read_from_its_file_or_from_the_store(target: Stack) -> None:
    rows = target.query("SELECT snapshot_id FROM snapshot")
    assert rows
    for row in rows:
        snapshot = read_snapshot(row["snapshot_id"], settings=target.settings)
        run = training_runs.load_run(target.settings, "t/kept")
        assert content_hash(read_rows(run, settings=target.settings)) == snapshot.manifest.content_sha256


def test_the_run_and_the_model_of_an_old_prediction_can_be_found_after_a_restore(
    state: BackupState, target: Stack
) -> None:
    with session(target.settings, "reader") as connection:
        row = trainings.lineage(connection, state.answer["prediction_id"])
    assert row is not None
    tags = registry.version_tags(target.settings, MODEL, state.answer["version"])
    assert tags["run_id"] == "t/kept"
    assert registry.load(target.settings, MODEL, state.answer["version"]).spec == target.spec


def test_the_triggers_of_mlflow_are_restored_with_our_user_as_definer(source: Stack, target: Stack) -> None:
    names, definers = (
        [
            root(stack.settings, f"SELECT {column} FROM information_schema.triggers ORDER BY 1")
            for stack in (source, target)
        ]
        for column in ("trigger_name", "DISTINCT definer")
    )
    assert names[0] == names[1] != []
    assert definers == [[("evergreen_mlflow@%",)], [("evergreen_admin@%",)]]


def test_airflow_keeps_which_dags_are_paused_and_its_connections_without_passwords(
    state: BackupState, target: Stack
) -> None:
    assert target.airflow("SELECT is_paused FROM dag") == [(0,)]
    assert target.airflow("SELECT conn_id, host, password, extra FROM connection ORDER BY 1") == [
        ("crm", "db.example", None, None),
        ("feature_store", "db.example", None, None),
    ]
    assert state.report.left_out == ["password and extra of Airflow's connection crm", "Airflow's variable token"]


def test_the_target_keeps_its_settings_and_secrets_and_takes_missing_settings_from_the_backup(
    source: Stack, target: Stack
) -> None:
    source_settings, target_settings = source.settings, target.settings
    assert (
        (target_settings.serving_workers, target_settings.timezone)
        == (source_settings.serving_workers, source_settings.timezone)
        == (1, "Asia/Tokyo")
    )
    assert target_settings.serving_port != source_settings.serving_port
    assert target_settings.db_password("api") == "mine"
    assert not set(secrets_of(target_settings)) & set(secrets_of(source_settings))
    assert target_settings.alert_webhook == ""
    assert stat.S_IMODE(target_settings.env_file.stat().st_mode) == 0o600


def read_members(archive: Archive) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the content of each member. The dump is decompressed."""
    for name in [*archive.names(), "manifest.json"]:
        content = archive.read(name)
        if name == DUMP:
            content = pa.input_stream(pa.py_buffer(content), compression="zstd").read()
        yield name, content


def test_no_member_of_the_archive_holds_a_secret(source: Stack, state: BackupState) -> None:
    plain_secrets = [WEBHOOK, *secrets_of(source.settings)]
    assert len(plain_secrets) > 10
    encrypted = [row[0] for row in source.airflow("SELECT password FROM connection UNION SELECT val FROM variable")]
    hashes = [row[0] for row in root(source.settings, "SELECT authentication_string FROM mysql.user")]
    assert len([value for value in hashes if value]) > 5
    with open_archive(state.file) as archive:
        members = dict(read_members(archive))
    for name, content in members.items():
        for value in filter(None, [*plain_secrets, *encrypted, *hashes]):
            assert value.encode() not in content, f"{name} holds {value[:4]}…"
    assert MODEL.encode() in members[DUMP]  # the search finds values that are there
    assert b"EVERGREEN_SERVING_WORKERS=1\n" in members[SETTINGS]
    assert not [name for name in members if "passwords" in name or name.endswith(".cfg")]


def test_only_the_owner_can_read_the_backup_and_its_manifest_lists_its_members(
    source: Stack, state: BackupState
) -> None:
    assert stat.S_IMODE(state.file.stat().st_mode) == 0o600
    with tarfile.open(state.file) as tar:  # a tar program can read the file
        members = {member.name: member.size for member in tar.getmembers()}
        manifest = json.loads(tar.extractfile("manifest.json").read())  # type: ignore[union-attr]
        current = json.loads(tar.extractfile(f"home/bento/{MODEL}/current.json").read())  # type: ignore[union-attr]
    assert {name: entry["size"] for name, entry in manifest["members"].items()}.items() <= members.items()
    assert manifest["revision"] == source.query("SELECT version_num FROM alembic_version")[0]["version_num"]
    assert current["version"] == state.answer["version"]
    for table in (f"{STORE_DB}.{MODEL}_features", f"{STORE_DB}.{MODEL}_labels", f"{PLATFORM_DB}.load_batch"):
        assert manifest["rows"][table] == source.query(f"SELECT COUNT(*) AS n FROM {table}")[0]["n"] > 0
    assert set(manifest["versions"]) >= {"python", "mariadb", "mlflow", "apache-airflow"}
    assert state.report.rows == sum(manifest["rows"].values())


def test_rows_that_arrive_during_a_backup_are_in_both_tables_or_in_neither(source: Stack, folder: Path) -> None:
    """During the backup, each transaction of a writer adds a row to a table in each of two databases."""
    program = f"""
import sys, pymysql
c = pymysql.connect(host="127.0.0.1", port={source.settings.mariadb_port}, user="root", password=sys.argv[1])
q = c.cursor()
while True:
    q.execute("INSERT INTO evergreen.pair VALUES ()"); q.execute("INSERT INTO optuna.pair VALUES ()"); c.commit()
"""
    with session(source.settings, "root", "mysql") as connection:
        for name in ("evergreen.pair", "optuna.pair"):
            connection.execute(text(f"CREATE TABLE {name} (n INT AUTO_INCREMENT PRIMARY KEY)"))
    writer = subprocess.Popen([sys.executable, "-c", program, source.settings.db_password("root")])
    try:
        wait_for("rows", lambda: root(source.settings, "SELECT COUNT(*) FROM optuna.pair")[0][0] > 100)
        backup(source.settings, folder / "busy.tar", now=END, progress=no_progress)
        assert writer.poll() is None
    finally:
        writer.kill()
        writer.wait()
        with session(source.settings, "root", "mysql") as connection:
            connection.execute(text("DROP TABLE evergreen.pair, optuna.pair"))
    with open_archive(folder / "busy.tar") as archive:
        rows = archive.manifest["rows"]
    assert rows["evergreen.pair"] == rows["optuna.pair"] >= 100


def test_rows_in_the_spool_of_a_running_worker_are_in_the_backup(source: Stack, folder: Path) -> None:
    spool = Spool(source.settings.spool / "m", "alive")
    spool.put([("answered",)], now=END)
    try:
        backup(source.settings, folder / "spooled.tar", now=END, progress=no_progress)
    finally:
        spool.remove([1])
        spool.close()
    with tarfile.open(folder / "spooled.tar") as archive:
        archive.extract("home/spool/m/alive.db", folder / "out", filter="data")
    with orphans(folder / "out" / "home" / "spool" / "m") as spools:
        assert [spool.take(after=0, most=9) for spool in spools] == [[(1, ["answered"])]]


def test_a_restore_rejects_damaged_truncated_and_other_files_and_leaves_no_files(
    state: BackupState, folder: Path
) -> None:
    settings = new_stack(folder / "d")
    content = state.file.read_bytes()
    with tarfile.open(state.file) as tar:
        damaged_byte = tar.getmember(DUMP).offset_data + 1000
        manifest_start = tar.getmember("manifest.json").offset_data
    damaged = folder / "damaged.tar"
    for message, damaged_content in {
        DUMP: content[:damaged_byte] + bytes([content[damaged_byte] ^ 1]) + content[damaged_byte + 1 :],
        "manifest.json": content[: manifest_start + 20] + b"7" + content[manifest_start + 21 :],
        "a whole backup": content[: len(content) // 2],
        "found invalid header": b"no tar at all" * 100,
        "manifest.json at its end": content[: manifest_start - 512],
    }.items():
        damaged.write_bytes(damaged_content)
        with pytest.raises(IntegrityError, match=message):
            restore(settings, damaged, force=False, progress=no_progress)
    with pytest.raises(NotFound):
        restore(settings, folder / "absent.tar", force=False, progress=no_progress)
    assert [path.name for path in settings.home.iterdir()] == ["run"]


def test_a_restore_rejects_a_backup_of_newer_code_and_names_the_commit_to_use(state: BackupState, folder: Path) -> None:
    newer = folder / "newer.tar"
    with tarfile.open(state.file) as source_tar, tarfile.open(newer, "w") as newer_tar:
        for member in source_tar.getmembers():
            content = source_tar.extractfile(member).read()  # type: ignore[union-attr]
            if member.name == "manifest.json":
                manifest = content = json.dumps({**json.loads(content), "revision": "9999", "commit": "abc"}).encode()
            if member.name == "manifest.json.sha256":
                content = f"{hashlib.sha256(manifest).hexdigest()}  manifest.json\n".encode()
            newer_tar.addfile(replace_size(member, len(content)), pa.BufferReader(content))
    with pytest.raises(DataRefused, match=r"revision 9999; here 0004.*check out abc"):
        restore(new_stack(folder / "e"), newer, force=False, progress=no_progress)


def replace_size(member: tarfile.TarInfo, size: int) -> tarfile.TarInfo:
    member.size = size
    return member


def test_a_restore_replaces_data_only_with_force_and_rejects_a_running_stack(
    source: Stack, state: BackupState, folder: Path
) -> None:
    with pytest.raises(StackError, match="make down"):
        restore(source.settings, state.file, force=True, progress=no_progress)
    settings = new_stack(folder / "f")
    (settings.home / "snapshots").mkdir(parents=True)
    (settings.home / "snapshots" / "old.parquet").touch()
    settings.models_dir.mkdir()
    (settings.models_dir / f"{MODEL}.yaml").write_text("name: mine")
    with pytest.raises(DataRefused, match=r"snapshots; .*kept_score\.yaml, which differs.*FORCE=1"):
        restore(settings, state.file, force=False, progress=no_progress)
    assert (settings.home / "snapshots" / "old.parquet").exists()
    kill_during_restore(settings, state.file)
    assert (settings.home / "snapshots" / "old.parquet").exists()
    process = command(settings, "restore", str(state.file), "--force")
    assert "`make up` continues from there" in process.stdout
    assert "not in the backup: password and extra of Airflow's connection crm" in process.stderr
    assert not (settings.home / "snapshots" / "old.parquet").exists()
    assert not ours(settings.model_copy(update={"home": settings.home / "restoring" / "home"}))
    assert find_spec(settings.models_dir, MODEL) == source.spec
    with pytest.raises(DataRefused, match="mariadb"):
        restore(settings, state.file, force=False, progress=no_progress)


def kill_during_restore(settings: Settings, file: Path) -> None:
    restoring = settings.home / "restoring" / "home"
    argv = [EVERGREEN, "restore", str(file), "--force"]
    process = subprocess.Popen(argv, env={**os.environ, "EVERGREEN_ENV_FILE": str(settings.env_file)})
    try:
        wait_for("the MariaDB of the restore", lambda: (restoring / "mariadb" / STORE_DB).exists())
    finally:
        process.kill()
        process.wait()
    # The MariaDB of the killed restore still runs. The next restore ends it.
    assert ours(settings.model_copy(update={"home": restoring}))


def test_a_backup_that_cannot_sign_in_or_has_no_folder_leaves_no_file(source: Stack, folder: Path) -> None:
    wrong_password = source.settings.model_copy(update={"db_admin_password": SecretStr("wrong")})
    for settings, file in ((wrong_password, folder / "never.tar"), (source.settings, folder / "absent" / "never.tar")):
        with pytest.raises(Exception, match=r"refuses user|no folder"):
            backup(settings, file, now=END, progress=no_progress)
        assert not file.exists()
    assert not list(folder.glob(".never*"))


def test_the_command_backup_writes_to_the_current_folder_and_prints_the_path_as_json(
    source: Stack, folder: Path
) -> None:
    report = json.loads(command(source.settings, "backup", "--json", cwd=folder).stdout)
    assert (folder / report["file"]).stat().st_size == report["size"]
