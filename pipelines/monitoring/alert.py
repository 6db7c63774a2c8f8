"""Alerts: messages that people must read. They go to the log, and to the webhook if one is set."""

import logging
from urllib.parse import urlsplit

from utils.settings import Settings

WEBHOOK_SECONDS = 5  # seconds
TRIES = 3

log = logging.getLogger(__name__)


def send(settings: Settings, text: str, **facts: object) -> bool:
    """Log `text`, and post `text` and `facts` as JSON. Return whether it succeeded.

    Chat services show the key `text`. The webhook's address is a secret, so only its host is logged.
    """
    import requests  # the DAG files import this module at every parse

    log.error("alert: %s", text)
    if not settings.alert_webhook:
        return True
    body = {"text": text, **{name: None if value is None else str(value) for name, value in facts.items()}}
    reason = ""
    for _ in range(TRIES):
        try:
            answer = requests.post(settings.alert_webhook, json=body, timeout=WEBHOOK_SECONDS)
        except requests.RequestException as error:
            reason = type(error).__name__
        else:
            if answer.ok:
                return True
            reason = f"it answered {answer.status_code}"
    log.error("the alert did not reach the webhook at %s: %s", urlsplit(settings.alert_webhook).hostname, reason)
    return False
