"""`python -m tests.load.run [MODEL] [locust's options]`: locust on the running service of MODEL, or of credit_score.

The page of locust sets the number of users and shows the results. With `--headless` there is no page. Users start
within ten seconds and send requests for half a minute. The exit code says whether the limits of the locustfile were
kept after all users had started.
"""

import os
import sys
import tempfile
from pathlib import Path

from sqlalchemy import select

from db.session import session
from db.store.store_tables import store_tables
from pipelines.spec import find_spec
from stack.programs.program_list import serving_urls
from utils.errors import EvergreenError
from utils.settings import STORE_DB, load_settings

HEADLESS = ("-u", "20", "-r", "2", "-t", "40s", "--only-summary", "--reset-stats")
PAGE = "127.0.0.1", 8089
IDS = 10_000  # entities of the store to ask for


def main() -> None:
    """Raises: UnknownModel, Unreachable, AccessDenied."""
    arguments = sys.argv[1:]
    model = arguments.pop(0) if arguments and not arguments[0].startswith("-") else "credit_score"
    settings = load_settings()
    spec = find_spec(settings.models_dir, model)
    latest = store_tables(spec.store).latest
    with session(settings, "reader", STORE_DB) as connection:
        ids = connection.scalars(select(latest.c.entity_id).limit(IDS)).all()
    # A file without a name, which locust inherits, so that no ids of people stay on disk.
    file = tempfile.TemporaryFile("w", encoding="utf-8")  # noqa: SIM115
    file.write("\n".join(name for name in ids if name.splitlines() == [name]))
    file.flush()
    os.set_inheritable(file.fileno(), True)
    url = serving_urls(settings)[model]
    locust = [sys.executable, "-m", "locust", "-f", str(Path(__file__).with_name("locustfile.py")), "--host", url]
    locust += ["--ids", f"/dev/fd/{file.fileno()}"]
    if "--headless" in arguments:
        locust += HEADLESS
    else:
        locust += ["--web-host", PAGE[0], "--web-port", str(PAGE[1])]
        print(f"locust's page: http://{PAGE[0]}:{PAGE[1]} (asks {url})", flush=True)
    key = settings.api_key.get_secret_value()
    os.execve(locust[0], [*locust, *arguments], {**os.environ, "EVERGREEN_API_KEY": key})  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    try:
        main()
    except EvergreenError as error:
        print(error, file=sys.stderr)
        raise SystemExit(error.exit_code) from None
