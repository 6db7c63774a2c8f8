"""The command that starts a model's prediction service, shared by the stack, tests and benchmarks.

`python -m api.launch` replaces its process by the service of EVERGREEN_MODEL. Containers start it this way.
"""

import os
import sys
import tempfile

from api.versions.bento_store import BentoStore
from utils.errors import SettingMissing
from utils.settings import Settings, load_settings
from utils.version import ROOT

GRACE = 20  # seconds for open requests at shutdown; BentoML's default is a day


def serve_command(settings: Settings, model: str, port: int) -> tuple[list[str], dict[str, str]]:
    """The command line, and the environment variables that it needs besides the variables of the settings.

    The service is healthy when /readyz answers 200. /readyz waits for the first model, /livez does not.
    """
    argv = [sys.executable, "-m", "api.serve", "serve", "api.service:service", "--working-dir", str(ROOT)]
    argv += ["--host", settings.bind, "--port", str(port), "--timeout-graceful-shutdown", str(GRACE)]
    environment = {
        "EVERGREEN_MODEL": model,
        "BENTOML_HOME": str(BentoStore(settings, model).home),
        "BENTOML_DO_NOT_TRACK": "True",
    }
    return argv, environment


def main() -> None:
    """Become the prediction service of EVERGREEN_MODEL.

    Raises: SettingMissing if EVERGREEN_MODEL is not set.
    """
    settings = load_settings()
    if not settings.model:
        raise SettingMissing(variable="EVERGREEN_MODEL", needed_for="a prediction service")
    argv, environment = serve_command(settings, settings.model, settings.serving_port)
    # At the start BentoML empties a folder of counters in its home. Replicas may share a Bento store, not this folder.
    environment["BENTOML_HOME"] = tempfile.mkdtemp(prefix="bentoml-")
    os.execvpe(argv[0], argv, {**os.environ, **environment})  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    main()
