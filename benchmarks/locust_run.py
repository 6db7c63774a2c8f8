"""`python -m benchmarks.locust_run [MODEL] [locust's options]`: locust on the service of MODEL, or of credit_score.

Its page says how many users ask, and shows what they get; `--headless -u 20 -t 1m` does without a page.
"""

import os
import sys
from pathlib import Path

from pipelines.spec import find_spec
from stack.programs import serving_urls
from utils.settings import load_settings


def main() -> None:
    """Raises: UnknownModel."""
    given = sys.argv[1:]
    model = given.pop(0) if given and not given[0].startswith("-") else "credit_score"
    settings = load_settings()
    find_spec(settings.models_dir, model)
    url = serving_urls(settings)[model]
    locust = [sys.executable, "-m", "locust", "-f", str(Path(__file__).with_name("locustfile.py")), "--host", url]
    key = settings.api_key.get_secret_value()
    os.execve(  # noqa: S606 - no shell is wanted
        locust[0], [*locust, "--web-host", "127.0.0.1", *given], {**os.environ, "EVERGREEN_API_KEY": key}
    )


if __name__ == "__main__":
    main()
