"""List the model files in a folder, and read their specs."""

from pathlib import Path
from typing import Any

import yaml

from pipelines.spec.model_spec import ModelSpec
from utils.errors import SpecInvalid, UnknownModel

FAST_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # PyYAML can be built without libyaml


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
    """Parse YAML with libyaml, which is ten times faster than PyYAML's own parser.

    Speed matters because Airflow parses every model file for each DAG file every half minute. PyYAML's own parser has
    clearer errors and rejects tabs. So it parses texts with tabs, and texts that libyaml rejects.
    """
    try:
        return yaml.load(text, Loader=yaml.SafeLoader if "\t" in text else FAST_LOADER)  # noqa: S506 - both are safe loaders
    except yaml.YAMLError:
        return yaml.safe_load(text)


def model_names(folder: Path) -> list[str]:
    """The names of the models in `folder`, sorted. The files are not opened."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def find_spec(folder: Path, model: str) -> ModelSpec:
    """Read the spec of `model` from its file in `folder`.

    Raises: UnknownModel if `folder` has no file for the model; SpecInvalid.
    """
    names = model_names(folder)
    if model not in names:
        raise UnknownModel(model=model, available=names)
    return load_spec(folder / f"{model}.yaml")
