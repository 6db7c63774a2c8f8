"""List the model files in `models/`, and read their specs."""

from pathlib import Path
from typing import Any

import yaml

from pipelines.spec.model_spec import ModelSpec
from utils.errors import SpecInvalid, UnknownModel

FAST: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # PyYAML may be built without libyaml


def load_spec(path: Path) -> ModelSpec:
    """Read the spec in the YAML file at `path`.

    Raises: SpecInvalid if the file can't be read, is not YAML, breaks a rule, or is not named after its model.
    """
    try:
        parsed = _parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecInvalid(file=str(path), problems=[("the file", error.strerror or "can't be read")]) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SpecInvalid(
            file=str(path), problems=[("the file", f"is not YAML: {' '.join(str(error).split())}")]
        ) from None
    spec = ModelSpec.parse(parsed, file=path.name)
    if spec.name != path.stem:
        raise SpecInvalid(
            file=path.name, problems=[("name", f"expected the file's own name, {path.stem!r}, got {spec.name!r}")]
        )
    return spec


def _parse(text: str) -> object:
    """Parse YAML fast: Airflow parses every model file for each DAG file every half minute.

    libyaml is ten times faster than PyYAML, but its errors say less, and it accepts tabs as blanks. So PyYAML reads
    text with tabs and text that libyaml rejects.
    """
    try:
        return yaml.load(text, Loader=yaml.SafeLoader if "\t" in text else FAST)  # noqa: S506 - both are safe loaders
    except yaml.YAMLError:
        return yaml.safe_load(text)


def model_names(folder: Path) -> list[str]:
    """The names of the models in `folder`, sorted. Does not open their files."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def find_spec(folder: Path, model: str) -> ModelSpec:
    """Read the spec of `model`.

    Raises: UnknownModel if `folder` has no file for the model; SpecInvalid.
    """
    names = model_names(folder)
    if model not in names:
        raise UnknownModel(model=model, available=names)
    return load_spec(folder / f"{model}.yaml")
