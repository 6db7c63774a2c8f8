"""How a model's prediction service is started, for everybody who starts one: the stack, tests and benchmarks."""

import sys

from api.shelf import Shelf
from utils.settings import Settings
from utils.version import ROOT

GRACE = 20  # seconds for what is in flight at the end; BentoML's own default is a day


def serve_command(
    settings: Settings, model: str, port: int, *, host: str = "127.0.0.1"
) -> tuple[list[str], dict[str, str]]:
    """Command line, and what its environment needs besides the settings' own variables.

    It is healthy when /readyz answers 200, which waits for the first model; /livez does not.
    """
    argv = [sys.executable, "-m", "bentoml", "serve", "api.service:service", "--working-dir", str(ROOT)]
    argv += ["--host", "127.0.0.1", "--port", str(port), "--timeout-graceful-shutdown", str(GRACE)]
    environment = {
        "EVERGREEN_MODEL": model,
        "BENTOML_HOME": str(Shelf(settings, model).home),
        "BENTOML_DO_NOT_TRACK": "True",
    }
    return argv, environment
