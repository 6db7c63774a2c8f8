"""The names of our programs, as they appear in command lines and in the code that starts programs."""

import ast
import json
import re
import runpy
import sys
import tomllib
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from utils.version import ROOT

PRODUCT = ("api", "cli", "dags", "db", "pipelines", "stack", "utils")
OURS = (*PRODUCT, "benchmarks", "deploy", "tests")
NAME = rf"(?:{'|'.join(OURS)})(?:\.\w+)+"
COMPOSE: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "docker-compose.yaml").read_text())["services"]
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()
(PROGRAMS,) = re.findall(r"^COPY (.+) /usr/local/bin/$", DOCKERFILE, re.MULTILINE)
COPIED = {f"/usr/local/bin/{Path(name).name}": ROOT / name for name in PROGRAMS.split()}
TESTS = ROOT / "tests" / "integration" / "test_program_names.py"  # its examples are not programs

Argv = Sequence[str | Path]


def names_in(argv: Argv) -> set[str]:
    """Our modules, `module:attribute` and files that a command line names. Files have their path in the repository."""
    words = [str(word) for word in argv]
    names = {after for word, after in pairwise(words) if word == "-m" and re.fullmatch(NAME, after)}
    names |= {word for word in words if re.fullmatch(rf"{NAME}:\w+", word)}
    files = [ROOT / word for word in words if word.endswith(".py") or word == str(ROOT / "deploy" / "evergreen")]
    return names | {file.relative_to(ROOT).as_posix() for file in files if file.is_relative_to(ROOT)}


def in_image(command: Sequence[str]) -> list[str]:
    """Translate a command of an image for this machine: its own interpreter, and the files of this repository."""
    words = [str(COPIED.get(word, word)).replace("/app/", f"{ROOT}/") for word in command]
    if words[0] == "evergreen":
        return ["sh", str(COPIED["/usr/local/bin/evergreen"]), *words[1:]]
    return [sys.executable, *words[1:]] if words[0] == "python" else words


def image_commands() -> Iterator[list[str]]:
    """The commands that containers start: `CMD` of each image, commands and health checks of each container."""
    yield from (json.loads(command) for command in re.findall(r"^CMD (.+)$", DOCKERFILE, re.MULTILINE))
    for service in COMPOSE.values():
        yield service.get("command", [])
        if (check := service.get("healthcheck", {}).get("test", [""]))[0] == "CMD":
            yield check[1:]


def ours_in_images(program: str) -> list[list[str]]:
    return [in_image(command) for command in image_commands() if command[:1] == [program]]


@cache
def names_in_code() -> set[str]:
    """The names of our programs in Python sources, the Makefile, scripts, commands of images and `project.scripts`."""
    sources = {file for package in OURS for file in (ROOT / package).rglob("*.py")} - {TESTS}
    names = {name for file in sources for name in names_in_source(file)}
    for file in (ROOT / "Makefile", *(ROOT / "deploy").glob("*.sh")):
        text = file.read_text()
        names |= {*re.findall(rf"-m ({NAME})", text), *re.findall(r"python3? (deploy/\w+\.py)", text)}
    for command in image_commands():
        names |= names_in(in_image(command)) if command else set()
    return names | set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"].values())


def names_in_source(file: Path) -> Iterator[str]:
    """The names in one Python file: words after -m in lists and texts, `module:attribute`, and files beside it."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        match node:
            case ast.List(elts=words) | ast.Tuple(elts=words):
                yield from names_in_list(words, file)
            case ast.Constant(value=str(text)):
                yield from re.findall(rf"-m ({NAME})", text)
                yield from re.findall(rf"^{NAME}:\w+$", text)
            case ast.Call(func=ast.Attribute(attr="with_name"), args=[ast.Constant(value=str(text))]):
                yield from names_in([file.with_name(text)])


def names_in_list(words: Sequence[ast.expr], file: Path) -> Iterator[str]:
    """The words after `-m` in a list. A word that is not a literal yields its expression, which matches no program."""
    values = [word.value if isinstance(word, ast.Constant) else ast.unparse(word) for word in words]
    for place, word in enumerate(values[:-1]):
        if word == "-m" and (not place or values[place - 1] == "sys.executable"):
            after = words[place + 1]
            if not isinstance(after, ast.Constant):
                yield f"{file.relative_to(ROOT)}: -m {ast.unparse(after)}"
            elif re.fullmatch(NAME, str(after.value)):
                yield str(after.value)


def find(name: str) -> None:
    """Load a program without its work, which stands below `if __name__ == "__main__"`."""
    if name.endswith(".py"):
        runpy.run_path(str(ROOT / name), run_name="tried")
        return
    module, _, attribute = name.partition(":")
    if not attribute:
        runpy.run_module(module, run_name="tried")
    else:  # a service in the benchmarks loads its model at import, so only its source is read
        tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())
        targets = [target for node in ast.walk(tree) if isinstance(node, ast.Assign) for target in node.targets]
        assigned = {ast.unparse(target) for target in targets}
        assert attribute in assigned | {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}, name
