"""The files, targets, commands, settings and modules that documents name exist."""

import re
from pathlib import Path

import pytest
from typer.main import get_command

from cli.main import app
from tests.unit.test_imports import FLOORS, MAY_IMPORT, modules, sources
from utils.settings import Settings
from utils.version import ROOT, release

README = (ROOT / "README.md").read_text()
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()
GROUPS = ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")
COMMANDS_PAGE = (ROOT / "docs" / "commands.md").read_text()
GUIDES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/commands.md", "docs/using.md")]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
DOCUMENTS = [*GUIDES[:3], ROOT / "CHANGELOG.md", *PAGES, ROOT / "examples" / "README.md"]
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"(?m)^([a-z-]+):", MAKEFILE))
COMMANDS = get_command(app).commands  # type: ignore[attr-defined]


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.name)
def test_every_target_and_command_in_a_guide_exists(guide: Path) -> None:
    text = guide.read_text()
    assert set(re.findall(r"(?:`|^)make ([a-z-]+)", text, re.M)) <= TARGETS
    assert set(re.findall(r"\bevergreen ([a-z]+)\b", text)) <= set(COMMANDS)


def test_every_target_has_help() -> None:
    assert set(re.findall(r"(?m)^([a-z-]+):.*## ", MAKEFILE)) == TARGETS


def test_every_command_and_target_for_users_has_a_line_on_the_page_of_commands() -> None:
    named = set(re.findall(r"\bevergreen ([a-z]+)\b", COMMANDS_PAGE))
    by_make = {"up", "down", "logs", "clean"}  # there as make targets
    assert set(COMMANDS) - by_make <= named
    own = {"help", "install", "unit", "coverage", "lint", "format", "workflows", "lock"}  # of a contributor
    assert set(re.findall(r"`make ([a-z-]+)", COMMANDS_PAGE)) == TARGETS - own


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 120


def test_the_index_names_every_document() -> None:
    index = ROOT / "docs" / "README.md"
    linked = {(index.parent / target).resolve() for target in re.findall(r"\]\(([^)#]+)", index.read_text())}
    decisions = ROOT / "docs" / "decisions"
    assert {page for page in PAGES if page.parent != decisions} - {index} <= linked
    assert decisions / "README.md" in linked


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name: str) -> None:
    help_text = COMMANDS[name].help
    assert "Example" in help_text
    assert f"evergreen {name}" in help_text


def test_every_setting_in_the_documents_exists() -> None:
    variables = {f"EVERGREEN_{name.upper()}" for name in Settings.model_fields} | {"EVERGREEN_COMMIT"}
    variables |= set(re.findall(r"\$\{(EVERGREEN_[A-Z_]+)", (ROOT / "docker-compose.yaml").read_text()))
    for document in DOCUMENTS:
        assert set(re.findall(r"\bEVERGREEN_[A-Z_]+", document.read_text())) <= variables, document.name


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_to_a_file_and_a_title_in_it(document: Path) -> None:
    for target, title in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", document.read_text()):
        file = document.parent / target if target else document
        assert file.exists(), target
        if title:
            titles = re.findall(r"(?m)^#+ (.*)$", file.read_text())
            assert title in {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in titles}, title


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_file_that_a_document_names_exists(document: Path) -> None:
    """Paths begin at the root of the repository, or in the package that the document is about."""
    for path in set(re.findall(r"`((?:[a-z_]+/)+[a-z_]+\.py)`", document.read_text())):
        assert any((ROOT / package / path).exists() for package in ("", "pipelines", "benchmarks")), path


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.name)
def test_every_path_in_a_guide_exists(guide: Path) -> None:
    """Paths of files and folders, also in commands. Words in capitals are placeholders."""
    generated = {".evergreen/"}  # by `make up`
    text = guide.read_text()
    paths = re.findall(r"`(\.?(?:[a-z_-]+/)+(?:[a-z0-9_.-]+)?|[A-Za-z_-]+\.(?:md|toml|yaml|json|lock))`", text)
    paths += re.findall(r"\btests/[a-z0-9_/.]+\b", text)
    assert [path for path in paths if path not in generated and not (ROOT / path).exists()] == []


def test_every_module_that_a_text_names_exists() -> None:
    """In documents, docstrings and comments: `package.room.file`, with or without a name that the file defines."""
    texts = [*DOCUMENTS, *(path for package in MAY_IMPORT for path in sources(package))]
    pattern = re.compile(r"`((?:utils|db|pipelines|api|stack|cli)(?:\.[A-Za-z_]+)+)[`(]")
    missing = {}
    for text in texts:
        for name in set(pattern.findall(text.read_text())):
            module = next(m for m in parents(name) if m in modules(name.split(".")[0]))
            rest = name[len(module) + 1 :].split(".")[0]
            file = modules(name.split(".")[0])[module]
            if rest and not re.search(rf"\b{rest}\b", file.read_text()):
                missing[name] = text.relative_to(ROOT).as_posix()
    assert not missing


def parents(name: str) -> list[str]:
    """The name itself, then each module or package around it, the outermost last."""
    words = name.split(".")
    return [".".join(words[:count]) for count in range(len(words), 0, -1)]


@pytest.mark.parametrize("package", FLOORS)
def test_the_architecture_has_every_room_on_its_floor(package: str) -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"(?m)^\| (?:`([a-z]+)`)? ?\| (\d) \| (.*) \|$", text)
    rooms_by_package: dict[str, list[tuple[str, ...]]] = {}
    current = ""
    for name, _, rooms in rows:
        current = name or current
        rooms_by_package.setdefault(current, []).append(tuple(re.findall(r"`([a-z_]+)`", rooms)))
    assert [sorted(floor) for floor in rooms_by_package[package]] == [sorted(floor) for floor in FLOORS[package]]


def test_every_endpoint_in_the_readme_is_one_of_the_service() -> None:
    source = (ROOT / "api" / "service.py").read_text()
    for path in re.findall(r"`POST (/[a-z_]+)`", README):
        assert f"def {path[1:]}(" in source, path


def test_the_newest_release_in_the_changelog_is_the_version_of_the_code() -> None:
    """It stands below the unreleased changes. A new version without its changes fails here, and so does the reverse."""
    titles = re.findall(r"(?m)^## \[(.+)\](.*)$", CHANGELOG)
    assert titles[0] == ("Unreleased", "")
    assert titles[1][0] == release()
    assert all(re.fullmatch(r" - \d{4}-\d\d-\d\d", day) for _, day in titles[1:])


def test_every_change_is_one_line_in_a_group() -> None:
    for version in re.split(r"(?m)^## ", CHANGELOG)[1:]:
        _, *groups = re.split(r"(?m)^### ", version)
        names = [group.splitlines()[0] for group in groups]
        assert names == [name for name in GROUPS if name in names]
        for line in (line for group in groups for line in group.splitlines()[1:] if line):
            assert re.fullmatch(r"- .{,118}\.", line), line


def test_no_text_uses_a_second_word_for_what_the_glossary_names() -> None:
    glossary = ROOT / "docs" / "glossary.md"
    rows = re.findall(r"(?m)^\| ([a-z -]+) \| (.+?) \| .* \|$", glossary.read_text())
    words = {twin: word for word, twins in rows if word != "word" for twin in twins.split(", ")}
    assert {"champion", "snapshot", "dead letter"} <= set(words.values())
    pattern = re.compile(rf"\b({'|'.join(re.escape(twin).replace(' ', '[ _]') for twin in words)})s?\b", re.IGNORECASE)
    texts = [*DOCUMENTS, *(path for package in MAY_IMPORT for path in sources(package))]
    uses = {
        f"{text.relative_to(ROOT)}: {match[1]}"
        for text in texts
        if text != glossary
        for match in pattern.finditer(text.read_text())
    }
    assert not uses


def test_no_registry_is_named_in_the_lock() -> None:
    assert "://" not in (ROOT / "requirements.lock").read_text()
