"""One log format for every process: time in UTC, level, logger, message."""

import logging
import time


def configure(level: int = logging.INFO) -> None:
    """Send the root logger to standard error. Called once by each entry point, never by a library module."""
    formatter = logging.Formatter("%(asctime)sZ %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    logging.basicConfig(level=level, handlers=[handler], force=True)
