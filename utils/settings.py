"""The only reader of the environment: one frozen object, from `.env` and the process environment."""

import os
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from utils.errors import SettingMissing
from utils.version import ROOT

Role = Literal["root", "admin", "loader", "pipeline", "api", "reader", "mlflow", "maintenance"]
# Variables of the user's shell that Evergreen passes to the programs it starts. All other variables are set explicitly.
INHERITED = (
    *("PATH", "HOME", "USER", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "LD_LIBRARY_PATH"),
    *("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"),
    *("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"),  # of a team's own MLflow
    "COVERAGE_PROCESS_CONFIG",  # set while `make coverage` measures the started programs
)
PLATFORM_DB, STORE_DB, MLFLOW_DB, OPTUNA_DB = "evergreen", "evergreen_store", "mlflow", "optuna"
RESULTS_DB = "evergreen_results"


class Settings(BaseSettings):
    """A variable's name is `EVERGREEN_` and the field's name. The process environment takes precedence over `.env`."""

    model_config = SettingsConfigDict(env_prefix="EVERGREEN_", frozen=True, extra="ignore", env_ignore_empty=True)

    home: Path = Field(ROOT / ".evergreen", description="State: database files, snapshots, Bento store, logs.")
    models_dir: Path = Field(ROOT / "models", description="The folder with one YAML file a model.")
    env_file: Path = Field(
        ROOT / ".env", description="The file these settings and the generated secrets are read from."
    )

    mariadb_host: str = Field("", description="Your own MariaDB; empty: a private one on this machine.")
    mariadb_port: int = Field(3307, ge=1, le=65535, description="MariaDB's TCP port.")
    mariadb_root_user: str = Field("root", description="Who creates databases and users at the first start.")
    mariadb_root_password: SecretStr = Field(SecretStr(""), description="Password of that user.")
    db_admin_password: SecretStr = Field(SecretStr(""), description="Of evergreen_admin: tables and grants.")
    db_loader_password: SecretStr = Field(SecretStr(""), description="Of evergreen_loader: fills the store.")
    db_pipeline_password: SecretStr = Field(SecretStr(""), description="Of evergreen_pipeline: trains and decides.")
    db_api_password: SecretStr = Field(SecretStr(""), description="Of evergreen_api: serves and logs predictions.")
    db_reader_password: SecretStr = Field(SecretStr(""), description="Of evergreen_reader: reads, for people.")
    db_mlflow_password: SecretStr = Field(SecretStr(""), description="Of evergreen_mlflow: MLflow's own database.")

    db_maintenance_password: SecretStr = Field(
        SecretStr(""), description="Of evergreen_maintenance: partitions, and rows past their time."
    )
    keep_predictions: int = Field(
        0, ge=0, description="Days that logged predictions and their feedback are kept; 0: for ever."
    )

    mlflow_url: str = Field("", description="Your own MLflow; empty: one on this machine.")
    mlflow_port: int = Field(5000, ge=1, le=65535, description="Port of the private MLflow.")
    mlflow_pages: str = Field(
        "", description="Address of MLflow in people's browsers; empty: the one that programs use."
    )
    airflow_url: str = Field("", description="Your own Airflow; empty: one on this machine.")
    airflow_port: int = Field(8080, ge=1, le=65535, description="Port of the private Airflow.")
    airflow_user: str = Field("admin", description="Who signs in to Airflow, you and Evergreen alike.")
    search_tasks: int = Field(1, ge=1, le=64, description="Tasks that share a search's trials, one a Celery worker.")
    airflow_password: SecretStr = Field(SecretStr(""), description="Password of that user.")
    airflow_jwt_secret: SecretStr = Field(SecretStr(""), description="Signs the tokens of Airflow's API.")
    airflow_fernet_key: SecretStr = Field(
        SecretStr(""), description="Encrypts the connections in Airflow's database: 32 bytes, URL-safe base64."
    )

    serving_port: int = Field(
        3000, ge=1, le=65535, description="Port of the first prediction service; the next models count up."
    )
    serving_url: str = Field(
        "", description="Address of the services elsewhere, `{model}` in it for the model's name; empty: this machine."
    )
    serving_workers: int = Field(2, ge=1, le=64, description="Worker processes of each prediction service.")
    model: str = Field("", description="The model that a prediction service process serves; set by whoever starts it.")
    api_key: SecretStr = Field(
        SecretStr(""), description="Bearer token that requests must carry; empty: none is asked for."
    )
    alert_webhook: str = Field(
        "",
        repr=False,
        description="Where failures and alerts are posted as JSON with a `text`; empty: they are only logged.",
    )
    bind: str = Field("127.0.0.1", description="Address that programs listen on; in a container 0.0.0.0.")
    timezone: str = Field(
        "UTC", description="Time zone of cron schedules, an IANA name; Airflow's pages show times in your browser's."
    )

    @property
    def mariadb_address(self) -> str:
        """`host:port` for the clients."""
        return f"{self.mariadb_host or '127.0.0.1'}:{self.mariadb_port}"

    @property
    def mlflow_tracking_url(self) -> str:
        return (self.mlflow_url or f"http://127.0.0.1:{self.mlflow_port}").rstrip("/")

    @property
    def mlflow_pages_url(self) -> str:
        """The start of every link to MLflow that people open."""
        return (self.mlflow_pages or self.mlflow_tracking_url).rstrip("/")

    @property
    def airflow_base_url(self) -> str:
        return (self.airflow_url or f"http://127.0.0.1:{self.airflow_port}").rstrip("/")

    @property
    def snapshots(self) -> Path:
        return self.home / "snapshots"

    @property
    def rejects(self) -> Path:
        """The folder with one folder a model, which holds the rows that loads refused."""
        return self.home / "rejects"

    @property
    def spool(self) -> Path:
        """The folder with one folder a model, which holds answered predictions that are not in MariaDB yet."""
        return self.home / "spool"

    @property
    def bento_home(self) -> Path:
        return self.home / "bento"

    def db_user(self, role: Role) -> str:
        return self.mariadb_root_user if role == "root" else f"evergreen_{role}"

    def db_password(self, role: Role) -> str:
        """Return the password of `role`'s database user.

        Raises: SettingMissing: the password is not set. A process has only the secrets of the roles that it needs.
        """
        field = "mariadb_root_password" if role == "root" else f"db_{role}_password"
        secret: SecretStr = getattr(self, field)
        if not secret.get_secret_value():
            raise SettingMissing(
                variable=f"EVERGREEN_{field.upper()}", needed_for=f"connecting as {self.db_user(role)}"
            )
        return secret.get_secret_value()

    def db_url(self, role: Role, database: str = PLATFORM_DB, *, scheme: str = "mysql+pymysql") -> str:
        """Return a database URL with the credentials of `role`. Never log it."""
        user, password = quote(self.db_user(role), safe=""), quote(self.db_password(role), safe="")
        return f"{scheme}://{user}:{password}@{self.mariadb_address}/{database}"


def load_settings(**overrides: object) -> Settings:
    """Return the settings from `overrides`, the environment and the `.env` file, in this order.

    `EVERGREEN_ENV_FILE` names the file. The default is `.env` at the top of the checkout. The file may be absent.
    """
    env_file = Path(str(overrides.get("env_file") or os.environ.get("EVERGREEN_ENV_FILE") or ROOT / ".env"))
    return Settings(_env_file=env_file, **{**overrides, "env_file": env_file})  # type: ignore[arg-type]


def counters_folder() -> Path | None:
    """The folder in which workers of a prediction service count for Prometheus. BentoML sets it only for workers."""
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    return Path(folder) if folder else None


def inherited_environment() -> dict[str, str]:
    """Return the variables that a started program inherits. Addresses of this machine bypass any proxy."""
    environment = {name: os.environ[name] for name in INHERITED if os.environ.get(name)}
    no_proxy = ",".join(filter(None, (os.environ.get("NO_PROXY") or os.environ.get("no_proxy"), "127.0.0.1,localhost")))
    return {**environment, "NO_PROXY": no_proxy, "no_proxy": no_proxy}
