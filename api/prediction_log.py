"""The log that every answer waits for: what is in MariaDB when `write` returns may be answered."""

import logging
from collections.abc import Sequence
from typing import Any

import pymysql

from db import predictions
from utils.errors import NotLogged
from utils.settings import Settings

Rows = Sequence[tuple[Any, ...]]

log = logging.getLogger(__name__)


class PredictionLog:
    """A connection of its own, for one thread."""

    def __init__(self, settings: Settings) -> None:
        self._client = predictions.Client(settings)

    def write(self, requests: Sequence[Rows]) -> list[NotLogged | None]:
        """Insert the rows of all `requests` together; returns for each why it was refused, or None once it is logged.

        Rows that MariaDB refuses are found by halving, so that their request fails alone.

        Raises: NotNow where MariaDB can't be used; then it is unknown which rows it took, and none may be answered.
        """
        try:
            self._client.run(lambda link: predictions.insert(link, [row for rows in requests for row in rows]))
        except pymysql.Error as error:
            if len(requests) > 1:
                half = len(requests) // 2
                return self.write(requests[:half]) + self.write(requests[half:])
            log.error("the log refuses a prediction: MariaDB error %s", error.args[0])  # its message holds values
            return [NotLogged(reason=f"MariaDB error {error.args[0]}")]
        return [None] * len(requests)

    def close(self) -> None:
        self._client.close()
