"""Waits for real processes that start slowly, do not start, or end."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from stack.programs import processes, starting
from stack.programs.logs import last_lines, size
from stack.programs.processes import work
from tests.services import wait_for
from utils.errors import GaveUp, StackError

STARTS_SLOWLY = """
import sys, time
from pathlib import Path
for number in range(15):
    print("step", number, flush=True)
    time.sleep(0.1)
Path(sys.argv[1]).touch()
time.sleep(999)
"""


@contextmanager
def program(code: str, log: Path, *arguments: object) -> Iterator["subprocess.Popen[bytes]"]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_the_wait_continues_while_a_program_writes_to_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "START_PATIENCE", 1.0)  # the whole start takes longer
    log, ready = tmp_path / "log", tmp_path / "ready"
    with program(STARTS_SLOWLY, log, ready) as process:
        starting.wait_for_process("it", process, ready.exists, log=log)
    assert last_lines(log, lines=1) == "step 14"


def test_the_wait_for_a_program_that_sleeps_ends_with_the_last_line_of_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starting, "START_PATIENCE", 1.0)
    log = tmp_path / "log"
    code = "import time; print('waiting for a lock', flush=True); time.sleep(999)"
    with program(code, log) as process:
        wait_for("its first line", lambda: size(log))
        with pytest.raises(GaveUp, match=r"gave up on it after .* last seen: waiting for a lock"):
            starting.wait_for_process("it", process, lambda: False, log=log)


def test_the_wait_for_a_program_that_ends_fails_with_the_last_line_of_its_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with (
        program("raise SystemExit('no such table')", log) as process,
        pytest.raises(StackError, match="it ended with 1; it last said: no such table"),
    ):
        starting.wait_for_process("it", process, lambda: False, log=log)


def test_work_counts_processor_time_also_of_a_child_but_not_polling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    polls = "import time\nwhile True: time.sleep(0.05)"
    with program(polls, log) as process:
        assert work(process.pid) == (0, 0)
    monkeypatch.setattr(processes, "CPU_STEP", 0.2)
    computes = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'while True: pass'])"
    with program(computes, log) as process:
        wait_for("work", lambda: work(process.pid)[0] > 2)
        for child in psutil.Process(process.pid).children():
            child.kill()
