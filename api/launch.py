"""How a model's prediction service is started, for everybody who starts one: the stack, tests and benchmarks.

`python -m api.launch` becomes the service of EVERGREEN_MODEL, as in a container.
"""

import os
import sys
import tempfile

from api.versions.bento_store import BentoStore
from utils.errors import SettingMissing
from utils.settings import Settings, load_settings
from utils.version import ROOT

GRACE = 20  # seconds for what is in flight at the end; BentoML's own default is a day


def serve_command(settings: Settings, model: str, port: int) -> tuple[list[str], dict[str, str]]:
    """Command line, and what its environment needs besides the settings' own variables.

    It is healthy when /readyz answers 200, which waits for the first model; /livez does not.
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
    """Raises: SettingMissing where no model is named."""
    settings = load_settings()
    if not settings.model:
        raise SettingMissing(variable="EVERGREEN_MODEL", needed_for="a prediction service")
    argv, environment = serve_command(settings, settings.model, settings.serving_port)
    # BentoML empties a folder of counters in its home at the start: replicas may share a Bento store, but not that.
    environment["BENTOML_HOME"] = tempfile.mkdtemp(prefix="bentoml-")
    os.execvpe(argv[0], argv, {**os.environ, **environment})  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    main()
