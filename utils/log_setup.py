"""The log format of every process: time in UTC, level, logger, message."""

import logging
import time


def configure(level: int = logging.INFO) -> None:
    """Send all log lines to standard error. Each entry point calls it once. Library modules never call it."""
    formatter = logging.Formatter("%(asctime)sZ %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    logging.basicConfig(level=level, handlers=[handler], force=True)
