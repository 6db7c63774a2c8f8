"""Stop a stack, and remove its files."""

import shutil

from stack.programs.folders import runtime
from stack.programs.processes import clear_leftovers
from stack.programs.supervisor import Supervisor
from utils.errors import StackError
from utils.settings import Settings
from utils.version import ROOT


def down(settings: Settings) -> int:
    """Stop every part in bounded time. Return the number of programs that ran. Data and secrets stay."""
    supervisor = Supervisor(settings)
    running = sum(1 for state in supervisor.states().values() if state.pid)
    if supervisor.running:
        supervisor.stop()
    return running + clear_leftovers(settings)


def clean(settings: Settings, *, secrets: bool = False) -> list[str]:
    """Stop everything and remove the state folder, with `secrets` the `.env` file too. Return the removed paths.

    Without `secrets` the `.env` file stays: it may hold settings that were written by hand, and a new stack can use
    its passwords. A team's own servers are not touched.

    Raises: StackError if `up` did not make the folder.
    """
    home, removed_paths = settings.home.resolve(), []
    if home.exists():
        if not (home / "supervisord.conf").is_file() or home in (ROOT, *ROOT.parents):
            raise StackError(f"{home} was not made by `evergreen up`: it is not removed")
        down(settings)
        runtime_folder = runtime(settings)  # outside of home if the path of home is long
        shutil.rmtree(home)
        shutil.rmtree(runtime_folder, ignore_errors=True)
        removed_paths.append(str(home))
    if secrets and settings.env_file.exists():
        settings.env_file.unlink()
        removed_paths.append(str(settings.env_file))
    return removed_paths
