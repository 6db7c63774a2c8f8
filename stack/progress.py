"""Progress output: one line per finished step, with its duration. A terminal also shows the running steps."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.status import Status

NAME_WIDTH = 26


class Step:
    """A running step. `note` is printed after the step's name at the end of the step."""

    def __init__(self) -> None:
        self.note = ""


class Steps:
    """The steps of a command, which may run in parallel threads. Use the object as a context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._active: list[str] = []
        self._lock = threading.Lock()
        self._status = Status("", console=console)

    def __enter__(self) -> "Steps":
        if self._console.is_terminal:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._status.stop()

    @contextmanager
    def step(self, name: str) -> Iterator[Step]:
        """Measure the duration of the block. Print it as done, or as failed if the block raises an exception."""
        begun, step = time.monotonic(), Step()
        self._show(started=name)
        try:
            yield step
        except BaseException:
            self._show(ended=name)
            self.line(name, seconds=time.monotonic() - begun, mark="[red]✗[/red]")
            raise
        self._show(ended=name)
        self.line(name, seconds=time.monotonic() - begun, note=step.note)

    def line(self, name: str, *, seconds: float, note: str = "", mark: str = "[green]✓[/green]") -> None:
        padded = escape(name.ljust(NAME_WIDTH))
        self._console.print(f"{mark} {padded} {seconds:6.1f} s  [dim]{escape(note)}[/dim]".rstrip(), soft_wrap=True)

    def say(self, text: str) -> None:
        self._console.print(escape(text), soft_wrap=True)

    def _show(self, *, started: str = "", ended: str = "") -> None:
        with self._lock:
            if started:
                self._active.append(started)
            if ended:
                self._active.remove(ended)
            self._status.update(", ".join(self._active))
