"""The summary after `up`: addresses, credentials, and a request to paste into a shell."""

import json
import shlex
import time
from collections.abc import Callable
from typing import Any

import requests
from rich.console import Console
from rich.markup import escape

from pipelines.spec import ModelSpec
from stack.programs.program_list import serving_urls
from stack.programs.starting import LONGEST
from stack.programs.supervisor import Supervisor
from utils.errors import StackError
from utils.patience import Patience
from utils.settings import Settings

ANSWER_PATIENCE = 120.0  # seconds in which a service makes no progress


def print_summary(settings: Settings, specs: tuple[ModelSpec, ...], console: Console, *, begun: float) -> None:
    """Send one request to each model that serves. Print the addresses, the answers and a curl command per model.

    Raises: StackError if a service does not answer.
    """
    urls = serving_urls(settings)
    ready_urls = {spec.name: urls[spec.name] for spec in specs if is_ready(urls[spec.name])}
    bodies = {model: example_body(url, settings) for model, url in ready_urls.items()}
    answers = {model: predict(settings, model, bodies[model]) for model in ready_urls}
    seconds = time.time() - begun
    console.print()
    for name, address, secret in _addresses(settings):
        console.print(f"  [bold]{name:<9}[/bold] {escape(address)}  [dim]{escape(secret)}[/dim]", soft_wrap=True)
    for model, answer in answers.items():
        answer_text = f"{answer['prediction']} by version {answer['version']}"
        console.print(f"\n  [bold]{model}[/bold] answers: {escape(answer_text)}. Try it:", soft_wrap=True)
        console.print(escape(curl_command(ready_urls[model], bodies[model], settings)), soft_wrap=True)
    if answers:
        console.print(f"\n  From the start to an answer of every model: {seconds:.0f} s")


def _addresses(settings: Settings) -> list[tuple[str, str, str]]:
    password = settings.airflow_password.get_secret_value()
    return [
        ("Airflow", settings.airflow_base_url, f"user {settings.airflow_user}, password {password}"),
        ("MLflow", settings.mlflow_tracking_url, ""),
        ("MariaDB", settings.mariadb_address, f"users and passwords are in {settings.env_file}"),
    ]


def is_ready(url: str) -> bool:
    """Whether the service at `url` has loaded a version."""
    try:
        return requests.get(f"{url}/readyz", timeout=5).ok
    except requests.RequestException:
        return False


def first_answer(settings: Settings, model: str) -> dict[str, Any]:
    """Wait for the model's service. Return the answer to the service's example request. Raises: StackError, GaveUp."""
    url = serving_urls(settings)[model]
    _patience(settings, model, f"the service at {url}", lambda: _readiness_text(url)).until(
        lambda: is_ready(url), every=0.5
    )
    return predict(settings, model, example_body(url, settings))


def example_body(url: str, settings: Settings) -> dict[str, Any]:
    """The example request of `/predict` in the service's OpenAPI document."""
    document = requests.get(f"{url}/docs.json", headers=_headers(settings), timeout=30).json()
    content = document["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]
    schema = content["schema"]
    if reference := schema.get("$ref"):
        schema = document["components"]["schemas"][reference.rpartition("/")[2]]
    example: dict[str, Any] = content.get("example") or schema["example"]
    return example


def predict(settings: Settings, model: str, body: dict[str, Any]) -> dict[str, Any]:
    """Request a prediction, and retry while the service works. Return the answer.

    Raises: StackError with the service's error if the service rejects the request; GaveUp.
    """
    url, error_text = serving_urls(settings)[model], ""

    def answer() -> dict[str, Any] | None:
        nonlocal error_text
        try:
            answer = requests.post(f"{url}/predict", json=body, headers=_headers(settings), timeout=30)
        except requests.RequestException as error:
            error_text = type(error).__name__
            return None
        if answer.ok:
            content: dict[str, Any] = answer.json()
            return content
        error_text = f"{answer.status_code}: {answer.text[:300]}"
        if answer.status_code < 500:
            raise StackError(f"{url}/predict refuses its own example, {error_text}")
        return None

    return _patience(settings, model, f"an answer of {url}/predict", lambda: error_text).until(answer, every=0.5)


def _readiness_text(url: str) -> str:
    try:
        return requests.get(f"{url}/readyz", timeout=5).text[:300]
    except requests.RequestException as error:
        return type(error).__name__


def _patience(settings: Settings, model: str, awaited: str, state: Callable[[], str]) -> Patience:
    """Return a Patience that lasts while the service works. If it is on another machine, only `state` can show that."""
    supervisor = Supervisor(settings)

    def sign() -> object:
        return state() if settings.serving_url else supervisor.progress(f"serve-{model}")

    return Patience(awaited, sign, seconds=ANSWER_PATIENCE, longest=LONGEST, state=state)


def curl_command(url: str, body: dict[str, Any], settings: Settings) -> str:
    """The request as a curl command."""
    headers = {"Content-Type": "application/json", **_headers(settings)}
    options = " ".join(f"-H {shlex.quote(f'{name}: {value}')}" for name, value in headers.items())
    return f"curl -s {url}/predict {options} -d {shlex.quote(json.dumps(body, ensure_ascii=False))}"


def _headers(settings: Settings) -> dict[str, str]:
    key = settings.api_key.get_secret_value()
    return {"Authorization": f"Bearer {key}"} if key else {}
