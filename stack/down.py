"""Stop a stack. Remove its files."""

import shutil

from stack.programs.folders import runtime
from stack.programs.processes import clear_leftovers
from stack.programs.supervisor import Supervisor
from utils.errors import StackError
from utils.settings import Settings
from utils.version import ROOT


def down(settings: Settings) -> int:
    """Stop all programs of the stack. Return the number of programs that ran. Data and secrets are kept."""
    supervisor = Supervisor(settings)
    running = sum(1 for state in supervisor.states().values() if state.pid)
    if supervisor.running:
        supervisor.stop()
    return running + clear_leftovers(settings)


def clean(settings: Settings, *, secrets: bool = False) -> list[str]:
    """Stop the stack and remove its state folder. Return the removed paths.

    `secrets`: remove the `.env` file too. Without it the file is kept, because it may contain settings written by hand.
    A team's own servers are not touched.

    Raises: StackError if the folder was not created by `up`.
    """
    home, removed_paths = settings.home.resolve(), []
    if home.exists():
        if not (home / "supervisord.conf").is_file() or home in (ROOT, *ROOT.parents):
            raise StackError(f"{home} was not made by `evergreen up`: it is not removed")
        down(settings)
        runtime_folder = runtime(settings)  # not in `home` if the path of `home` is long
        shutil.rmtree(home)
        shutil.rmtree(runtime_folder, ignore_errors=True)
        removed_paths.append(str(home))
    if secrets and settings.env_file.exists():
        settings.env_file.unlink()
        removed_paths.append(str(settings.env_file))
    return removed_paths
