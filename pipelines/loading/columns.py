"""Which columns of a file a load takes."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.spec import ModelSpec
from utils.errors import DataRefused, MissingColumns


@dataclass(frozen=True, slots=True)
class Columns:
    """Which of a file's columns the load takes, under the model file's names. No private one is among them."""

    taken: dict[str, str]  # name in the file: name in the model file
    features: bool
    label: bool
    source: str  # what an error calls the file

    @classmethod
    def of(cls, names: Sequence[str], *, spec: ModelSpec, source: str) -> "Columns":
        """The columns to take of a file that has `names`; label or features may be absent as a whole.

        A name may be written in another case, where that leaves no doubt.
        Raises: MissingColumns where the entity, a time or some of the features are missing; DataRefused where two
        columns would have one name.
        """
        given = (spec.source.event_time, spec.source.time_of_day, spec.source.available_column)
        times = [name for name in given if name]
        known = [spec.entity, *times, *spec.features.columns, spec.label.column]
        found = _known(names, known=known, spec=spec)
        present = set(found.values())
        if len(present) < len(found):
            twice = [name for name, new in found.items() if list(found.values()).count(new) > 1]
            raise DataRefused(f"{source}: columns {', '.join(twice)} would have the same name in the store")
        label = spec.label.column in present
        features = bool(present & set(spec.features.columns)) or not label
        wanted = {spec.entity, *times, *(spec.features.columns if features else ()), *([spec.label.column] * label)}
        if missing := [name for name in dict.fromkeys(known) if name in wanted - present]:
            # Without any known name the first line may be no header but a row, with private values in it.
            raise MissingColumns(source=source, missing=missing, available=names if found else ())
        return cls({name: new for name, new in found.items() if new in wanted}, features, label, source)


def _known(names: Sequence[str], *, known: Sequence[str], spec: ModelSpec) -> dict[str, str]:
    """The names of a file that the model file knows, as it knows them; private ones are not among them."""
    private = set(spec.features.private)
    renamed = {name: spec.source.map.get(name, name) for name in names}
    hidden = {_folded(name) for name in private}
    found = {
        name: new
        for name, new in renamed.items()
        if new in known and not private & {name, new} and (name == new or _folded(name) not in hidden)
    }
    shape = {_folded(new): new for new in known if new not in found.values()}
    renaming = {_folded(old): new for old, new in spec.source.map.items()}
    alike: dict[str, list[str]] = {}
    for name in set(names) - set(found) - private:
        new = _folded(renaming.get(_folded(name), name))
        if new in shape and not hidden & {_folded(name), new}:
            alike.setdefault(shape[new], []).append(name)
    found |= {candidates[0]: new for new, candidates in alike.items() if len(candidates) == 1}
    return {name: found[name] for name in names if name in found}


def _folded(name: str) -> str:
    return name.strip().casefold()
