"""The arrow of imports: utils <- db <- pipelines <- {api, dags}; stack starts the services, cli uses them all."""

import ast
from pathlib import Path

import pytest

from utils.version import ROOT

MAY_IMPORT = {
    "utils": {"utils"},
    "db": {"db", "utils"},
    "pipelines": {"pipelines", "db", "utils"},
    "api": {"api", "pipelines", "db", "utils"},
    "dags": {"dags", "pipelines", "db", "utils"},
    "stack": {"stack", "api", "pipelines", "db", "utils"},
    "cli": {"cli", "stack", "api", "pipelines", "db", "utils"},
}
PACKAGES = set(MAY_IMPORT) | {"tests", "benchmarks"}
API_MAY_USE = {"spec", "profile", "features", "bundle"}
API_SUBPROCESS = {"registry"}  # heavy: only a module that runs in a process of its own may use it
READS_ENVIRONMENT = {"utils/settings.py", "utils/version.py"}


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Dotted names of all modules that the file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_go_one_way(package):
    for path in sources(package):
        outside = {name.split(".")[0] for name in imports(path)} & PACKAGES - MAY_IMPORT[package]
        # Airflow puts dags/ itself on the path: its files know each other by their bare names.
        assert not outside, f"{path.relative_to(ROOT)} imports {sorted(outside)}"


def test_the_service_uses_only_what_it_needs_of_pipelines():
    for path in sources("api"):
        used = {name.split(".")[1] for name in imports(path) if name.startswith("pipelines.")}
        assert used <= API_MAY_USE | API_SUBPROCESS, f"{path.name} imports {sorted(used)} from pipelines"


def test_nothing_is_imported_relatively():
    for package in MAY_IMPORT:
        for path in sources(package):
            nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            assert not [node for node in nodes if isinstance(node, ast.ImportFrom) and node.level], path


def test_no_file_under_dags_carries_a_packages_name():
    taken = {path.stem for path in sources("dags")} & PACKAGES
    assert not taken


def test_only_settings_and_version_read_the_environment():
    for package in MAY_IMPORT:
        for path in sources(package):
            name = path.relative_to(ROOT).as_posix()
            reads = [
                node
                for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                if (isinstance(node, ast.Attribute) and ast.unparse(node) in {"os.environ.get", "os.getenv"})
                or (
                    (isinstance(node, ast.Subscript) and ast.unparse(node.value) == "os.environ")
                    and isinstance(node.ctx, ast.Load)
                )
            ]
            assert not reads or name in READS_ENVIRONMENT, f"{name}:{reads[0].lineno} reads the environment"
