"""Stop a stack, and remove what it left on disk."""

import shutil

from stack.programs.folders import runtime
from stack.programs.processes import clear_leftovers
from stack.programs.supervisor import Supervisor
from utils.errors import StackError
from utils.settings import Settings
from utils.version import ROOT


def down(settings: Settings) -> int:
    """Stop every part, in bounded time; the number of programs that ran. Data and secrets stay."""
    supervisor = Supervisor(settings)
    running = sum(1 for state in supervisor.states().values() if state.pid)
    if supervisor.running:
        supervisor.stop()
    return running + clear_leftovers(settings)


def clean(settings: Settings, *, secrets: bool = False) -> list[str]:
    """Stop everything and remove the state folder; with `secrets` the `.env` file too. Returns what was removed.

    Without `secrets` the file stays: it may hold settings that were written by hand, and its passwords fit new data
    as well as old. A team's own servers are not touched.

    Raises: StackError where the folder was not made by `up`.
    """
    home, removed = settings.home.resolve(), []
    if home.exists():
        if not (home / "supervisord.conf").is_file() or home in (ROOT, *ROOT.parents):
            raise StackError(f"{home} was not made by `evergreen up`: it is not removed")
        down(settings)
        short = runtime(settings)  # elsewhere, where the path of home is long
        shutil.rmtree(home)
        shutil.rmtree(short, ignore_errors=True)
        removed.append(str(home))
    if secrets and settings.env_file.exists():
        settings.env_file.unlink()
        removed.append(str(settings.env_file))
    return removed
