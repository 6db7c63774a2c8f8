"""The names of our programs: as command lines hold them, and as the code does wherever it starts one."""

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
TESTS = ROOT / "tests" / "integration" / "test_program_names.py"  # its examples are no programs

Argv = Sequence[str | Path]


def names_in(argv: Argv) -> set[str]:
    """Our modules, `module:attribute` and files that a command line names; files by their path in the repository."""
    words = [str(word) for word in argv]
    names = {after for word, after in pairwise(words) if word == "-m" and re.fullmatch(NAME, after)}
    names |= {word for word in words if re.fullmatch(rf"{NAME}:\w+", word)}
    files = [ROOT / word for word in words if word.endswith(".py") or word == str(ROOT / "deploy" / "evergreen")]
    return names | {file.relative_to(ROOT).as_posix() for file in files if file.is_relative_to(ROOT)}


def in_image(command: Sequence[str]) -> list[str]:
    """A command of an image as one for this machine: with its own interpreter, and its files at their places here."""
    found = [str(COPIED.get(word, word)).replace("/app/", f"{ROOT}/") for word in command]
    if found[0] == "evergreen":
        return ["sh", str(COPIED["/usr/local/bin/evergreen"]), *found[1:]]
    return [sys.executable, *found[1:]] if found[0] == "python" else found


def image_commands() -> Iterator[list[str]]:
    """What containers start: `CMD` of each image, commands and health checks of each container."""
    yield from (json.loads(command) for command in re.findall(r"^CMD (.+)$", DOCKERFILE, re.MULTILINE))
    for service in COMPOSE.values():
        yield service.get("command", [])
        if (check := service.get("healthcheck", {}).get("test", [""]))[0] == "CMD":
            yield check[1:]


def ours_in_images(program: str) -> list[list[str]]:
    return [in_image(command) for command in image_commands() if command[:1] == [program]]


@cache
def names_in_code() -> set[str]:
    """Whatever looks like the name of a program of ours where programs are started, here and in what images run."""
    sources = {file for package in OURS for file in (ROOT / package).rglob("*.py")} - {TESTS}
    found = {name for file in sources for name in names_in_source(file)}
    for file in (ROOT / "Makefile", *(ROOT / "deploy").glob("*.sh")):
        text = file.read_text()
        found |= {*re.findall(rf"-m ({NAME})", text), *re.findall(r"python3? (deploy/\w+\.py)", text)}
    for command in image_commands():
        found |= names_in(in_image(command)) if command else set()
    return found | set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"].values())


def names_in_source(file: Path) -> Iterator[str]:
    """Of one Python file: what follows -m, in a list or in a text; each `module:attribute`; each file beside it."""
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
    """One that is not written out is given as what it is, which no program is called."""
    plain = [word.value if isinstance(word, ast.Constant) else ast.unparse(word) for word in words]
    for place, word in enumerate(plain[:-1]):
        if word == "-m" and (not place or plain[place - 1] == "sys.executable"):
            after = words[place + 1]
            if not isinstance(after, ast.Constant):
                yield f"{file.relative_to(ROOT)}: -m {ast.unparse(after)}"
            elif re.fullmatch(NAME, str(after.value)):
                yield str(after.value)


def find(name: str) -> None:
    """Everything of a program but its work, which stands below `if __name__ == "__main__"`."""
    if name.endswith(".py"):
        runpy.run_path(str(ROOT / name), run_name="tried")
        return
    module, _, attribute = name.partition(":")
    if not attribute:
        runpy.run_module(module, run_name="tried")
    else:  # a service that a benchmark compares with reads its model as it is imported
        tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())
        targets = [target for node in ast.walk(tree) if isinstance(node, ast.Assign) for target in node.targets]
        named = {ast.unparse(target) for target in targets}
        assert attribute in named | {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}, name
