"""Rules of the code: imports go one way between packages and between the rooms of a package, and names are unique.

A worker imports nothing heavy. Files and functions have a maximum length.
"""

import ast
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
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
PACKAGES = set(MAY_IMPORT) | {"tests", "benchmarks", "deploy"}
# The rooms of a package are its sub-packages and single modules. Floors are listed from the ground up. A room imports
# only from floors below its own, at any place in a file. Rooms on the same floor do not import each other.
FLOORS: dict[str, tuple[tuple[str, ...], ...]] = {
    "db": (
        ("literals", "partitions", "session", "tables"),
        ("arrow", "driver", "migrations", "tombstones"),
        ("log", "store", "history"),
        ("admin",),
    ),
    "pipelines": (
        ("spec", "wording"),
        ("loading", "runs", "artifact"),
        ("init", "measures", "registry"),
        ("validation", "batch_scoring", "maintenance"),
        ("training",),
        ("deployment", "monitoring"),
        ("replay",),
    ),
    "api": (
        ("requests", "log", "prometheus"),
        ("scoring", "http"),
        ("versions", "serve"),
        ("service", "launch"),
    ),
    "stack": (
        ("programs", "example_data", "progress"),
        ("run_part", "status", "summary", "down", "backup"),
        ("first_training",),
        ("up",),
        ("demo",),
    ),
}
API_MAY_USE = {"spec", "artifact"}
# Files that run in their own process, which may import MLflow.
OWN_PROCESS = {"api/versions/download.py"}
HEAVY = ("mlflow", "pipelines.registry")
READS_ENVIRONMENT = {"utils/settings.py", "utils/version.py"}
MOST_LINES, MOST_LINES_OF_A_FUNCTION = 300, 50


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def module_of(path: Path) -> str:
    """The dotted name of a file. An `__init__` has the name of its package."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room_of(module: str) -> str:
    return ".".join(module.split(".")[:2])


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    """All nodes of a file's syntax tree."""
    return tuple(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


@cache
def imports(path: Path) -> frozenset[str]:
    """Dotted names of all imports of a file, at any place in it."""
    names: set[str] = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


@cache
def modules(package: str) -> dict[str, Path]:
    return {module_of(path): path for path in sources(package)}


def imported_modules(path: Path) -> Iterator[str]:
    """Our own modules that the file imports: `a.b.c` of `from a.b.c import d` and of `from a.b import c`."""
    for name in imports(path):
        package = name.split(".")[0]
        while package in MAY_IMPORT and name:
            if name in modules(package):
                yield name
                break
            name = name.rpartition(".")[0]


def run_by_importing(module: str) -> Iterator[str]:
    """The modules that Python runs when it imports `module`: its imports, and the packages around each."""
    for name in (module, *imported_modules(modules(module.split(".")[0])[module])):
        yield name
        while name := name.rpartition(".")[0]:
            if name in modules(name.split(".")[0]):
                yield name


def between_rooms(package: str) -> dict[tuple[str, str], set[str]]:
    """The files that import from another room of the package, by both rooms."""
    files: dict[tuple[str, str], set[str]] = defaultdict(set)
    for module, path in modules(package).items():
        for other in imported_modules(path):
            if other.startswith(f"{package}.") and room_of(other) != room_of(module):
                files[room_of(module), room_of(other)].add(path.relative_to(ROOT).as_posix())
    return files


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_go_one_way(package):
    for path in sources(package):
        outside = {name.split(".")[0] for name in imports(path)} & PACKAGES - MAY_IMPORT[package]
        # Airflow puts dags/ itself on the path, so its files import each other by their bare names.
        assert not outside, f"{path.relative_to(ROOT)} imports {sorted(outside)}"


@pytest.mark.parametrize("package", FLOORS)
def test_every_room_stands_on_one_floor(package):
    rooms = [room for floor in FLOORS[package] for room in floor]
    existing = {room_of(module).split(".")[1] for module in modules(package) if module != package}
    assert sorted(rooms) == sorted(existing)


@pytest.mark.parametrize("package", FLOORS)
def test_a_room_imports_only_from_floors_below_its_own(package):
    floor_of = {f"{package}.{room}": level for level, floor in enumerate(FLOORS[package]) for room in floor}
    upward = {pair: files for pair, files in between_rooms(package).items() if floor_of[pair[0]] <= floor_of[pair[1]]}
    assert not upward, "; ".join(
        f"{sorted(files)}: {importer} imports {other}" for (importer, other), files in upward.items()
    )


def test_no_files_import_each_other_in_a_circle():
    """Lazy imports count too."""
    graph = {
        module: set(imported_modules(path)) - {module}
        for package in MAY_IMPORT
        for module, path in modules(package).items()
    }
    TopologicalSorter(graph).prepare()  # raises CycleError with the circle in it


def test_the_floors_are_shown(record_property):
    """Record the files, floors and imports, which the summary of the test run prints."""
    text = floors_text()
    record_property("shown", text)
    assert all(room in text for floors in FLOORS.values() for floor in floors for room in floor)


def imports_of(room: str) -> str:
    package = room.split(".")[0]
    return (
        ", ".join(sorted(other.split(".")[1] for importer, other in between_rooms(package) if importer == room))
        or "none"
    )


def floors_text() -> str:
    lines = []
    for package, floors in FLOORS.items():
        edges = len(between_rooms(package))
        lines.append(f"{package}: {len(modules(package))} files, {len(floors)} floors, {edges} imports between rooms")
        for level, floor in enumerate(floors, start=1):
            for room in floor:
                files = sum(room_of(module) == f"{package}.{room}" for module in modules(package))
                lines.append(f"  {level}  {room} ({files}): {imports_of(f'{package}.{room}')}")
    return "\n".join(lines)


def test_the_service_uses_only_what_it_needs_of_pipelines():
    for path in sources("api"):
        used = {name.split(".")[1] for name in imports(path) if name.startswith("pipelines.")}
        allowed = API_MAY_USE | ({"registry"} if path.relative_to(ROOT).as_posix() in OWN_PROCESS else set())
        assert used <= allowed, f"{path.relative_to(ROOT)} imports {sorted(used)} from pipelines"


@pytest.mark.parametrize("program", ["api.service", "api.serve", "api.launch", "api.versions.challenger"])
def test_no_process_that_serves_imports_mlflow_even_indirectly(program):
    reached, queue = set(), [program]
    while queue:
        module = queue.pop()
        if module not in reached:
            reached.add(module)
            queue += run_by_importing(module)
    heavy = {name for module in reached for name in imports(modules(module.split(".")[0])[module])}
    assert not [name for name in heavy if name.startswith(HEAVY)]


def test_no_file_name_stands_for_two_things():
    """Only a command or a DAG may have the name of the module that it calls."""
    paths_by_name: dict[str, list[str]] = defaultdict(list)
    for package in ("utils", *FLOORS):
        for path in sources(package):
            if path.stem != "__init__":
                paths_by_name[path.stem].append(path.relative_to(ROOT).as_posix())
    assert not [paths for paths in paths_by_name.values() if len(paths) > 1]
    for package in ("cli", "dags"):
        for path in sources(package):
            if path.stem in paths_by_name:
                (same,) = paths_by_name[path.stem]
                assert module_of(ROOT / same) in set(imported_modules(path)), f"{path} does not call {same}"


def test_only_pipelines_spec_is_imported_for_the_model_file():
    """Other packages import from `pipelines.spec`, not from its files."""
    for package in MAY_IMPORT:
        for path in sources(package):
            inner = {name for name in imported_modules(path) if name.startswith("pipelines.spec.")}
            assert not inner or path.parent.name == "spec", f"{path.relative_to(ROOT)} imports {sorted(inner)}"


def test_nothing_is_imported_by_a_name_in_a_string():
    """The tests in this file would not see the import."""
    for package in MAY_IMPORT:
        for path in sources(package):
            calls = {ast.unparse(node.func).rpartition(".")[2] for node in nodes(path) if isinstance(node, ast.Call)}
            assert not calls & {"import_module", "__import__"}, path.relative_to(ROOT)


def test_nothing_is_imported_relatively():
    for package in MAY_IMPORT:
        for path in sources(package):
            assert not [node for node in nodes(path) if isinstance(node, ast.ImportFrom) and node.level], path


def test_no_file_under_dags_carries_a_packages_name():
    assert not {path.stem for path in sources("dags")} & PACKAGES


def test_no_source_file_is_longer_than_a_person_reads():
    """At most 300 lines a file and 50 a function. Longer ones need another design."""
    lengths: dict[str, int] = {}
    for package in MAY_IMPORT:
        for path in sources(package):
            name, content = path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
            if (lines := len(content.splitlines())) > MOST_LINES:
                lengths[name] = lines
            for node in nodes(path):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    lines = (node.end_lineno or node.lineno) - node.lineno + 1
                    if lines > MOST_LINES_OF_A_FUNCTION:
                        lengths[f"{name}:{node.lineno} {node.name}"] = lines
    assert not lengths, "too long: " + "; ".join(f"{place} has {lines} lines" for place, lines in lengths.items())


def test_only_settings_and_version_read_the_environment():
    for package in MAY_IMPORT:
        for path in sources(package):
            name = path.relative_to(ROOT).as_posix()
            reads = [
                node
                for node in nodes(path)
                if (isinstance(node, ast.Attribute) and ast.unparse(node) in {"os.environ.get", "os.getenv"})
                or (
                    (isinstance(node, ast.Subscript) and ast.unparse(node.value) == "os.environ")
                    and isinstance(node.ctx, ast.Load)
                )
            ]
            assert not reads or name in READS_ENVIRONMENT, f"{name}:{reads[0].lineno} reads the environment"


def test_imports_of_dag_files_are_cheap():
    """Airflow imports DAG files at every parse and every start of a task. Steps import slow modules when they run."""
    names = sorted({name for path in sources("dags") for name in imported_modules(path)})
    heavy = (
        *("catboost", "connectorx", "matplotlib", "mlflow", "numpy"),
        *("optuna", "pandas", "pyarrow", "requests", "scipy"),
    )
    script = f"import sys\nfor name in {names!r}: __import__(name)\nprint(*sorted(set({heavy!r}) & set(sys.modules)))"
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert process.stdout.split() == []
    packages = {name.split(".")[0] for path in sources("dags") for name in imports(path)}
    assert not packages & set(heavy)
