"""Select the columns of a file that a load reads."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.spec import ModelSpec
from utils.errors import DataRefused, MissingColumns


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of a file that a load reads. No private column is among them.

    taken: name in the file to name in the model file.
    features: whether the file has the features.
    label: whether the file has the label.
    source: the name of the file in error messages.
    """

    taken: dict[str, str]
    features: bool
    label: bool
    source: str

    @classmethod
    def of(cls, names: Sequence[str], *, spec: ModelSpec, source: str) -> "Columns":
        """Select from the columns `names` of a file. The label or all features may be absent.

        The case of a name may differ if only one column fits.
        Raises: MissingColumns if the entity, a time or some of the features are missing; DataRefused if two columns
        would have the same name.
        """
        time_columns = (spec.source.event_time, spec.source.time_of_day, spec.source.available_column)
        times = [name for name in time_columns if name]
        spec_columns = [spec.entity, *times, *spec.features.columns, spec.label.column]
        taken = _matches(names, spec_columns=spec_columns, spec=spec)
        available = set(taken.values())
        if len(available) < len(taken):
            duplicates = [name for name, new in taken.items() if list(taken.values()).count(new) > 1]
            raise DataRefused(f"{source}: columns {', '.join(duplicates)} would have the same name in the store")
        label = spec.label.column in available
        features = bool(available & set(spec.features.columns)) or not label
        required = {spec.entity, *times, *(spec.features.columns if features else ()), *([spec.label.column] * label)}
        if missing := [name for name in dict.fromkeys(spec_columns) if name in required - available]:
            # If no name is known, the first line may be a row instead of a header, with private values in it.
            raise MissingColumns(source=source, missing=missing, available=names if taken else ())
        return cls({name: new for name, new in taken.items() if new in required}, features, label, source)


def _matches(names: Sequence[str], *, spec_columns: Sequence[str], spec: ModelSpec) -> dict[str, str]:
    """The columns that the model file uses, without private ones: name in the file to name in the model file."""
    private = set(spec.features.private)
    renamed = {name: spec.source.map.get(name, name) for name in names}
    hidden = {_fold(name) for name in private}
    matches = {
        name: new
        for name, new in renamed.items()
        if new in spec_columns and not private & {name, new} and (name == new or _fold(name) not in hidden)
    }
    unmatched = {_fold(new): new for new in spec_columns if new not in matches.values()}
    renaming = {_fold(old): new for old, new in spec.source.map.items()}
    similar: dict[str, list[str]] = {}
    for name in set(names) - set(matches) - private:
        new = _fold(renaming.get(_fold(name), name))
        if new in unmatched and not hidden & {_fold(name), new}:
            similar.setdefault(unmatched[new], []).append(name)
    matches |= {candidates[0]: new for new, candidates in similar.items() if len(candidates) == 1}
    return {name: matches[name] for name in names if name in matches}


def _fold(name: str) -> str:
    return name.strip().casefold()
