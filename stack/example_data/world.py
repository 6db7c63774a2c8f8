"""The class of the example data, and the random values of example data without time."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Names = NDArray[np.object_]
Columns = dict[str, NDArray[Any]]  # column → one value per person


@dataclass(frozen=True, slots=True)
class ExampleData:
    """Generated data of a model, with the distribution from which the labels were drawn.

    frame: the content of the user's file.
    label: the column of the label.
    classes: the classes of the label. Empty if the label is a number.
    probabilities: the probability of each class, rows × `classes`.
    expected: the mean of each row's label if the label is a number, otherwise None.
    complete: the features without missing values, from which scenarios draw other labels.
    """

    frame: pd.DataFrame
    label: str
    classes: tuple[str, ...]
    probabilities: Floats
    expected: Floats | None = None
    complete: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def best_predictions(self) -> Names | Floats:
        """The best possible prediction for each row, because it uses the true distribution of the label."""
        if self.expected is not None:
            return self.expected
        return np.array(self.classes, dtype=object)[self.probabilities.argmax(axis=1)]


def to_arrays(frame: pd.DataFrame) -> Columns:
    return {str(name): column.to_numpy() for name, column in frame.items()}


class RandomValues:
    """Random values for `count` people, as arrays with one value per person.

    A value depends only on the seed, the name of the variable and the number of the person. So a larger count repeats
    the values of a smaller count and adds more.
    """

    def __init__(self, count: int, *, seed: int) -> None:
        self.count, self._seed = count, seed

    def normal(self, name: str) -> Floats:
        return self._generator(name).standard_normal(self.count)

    def uniform(self, name: str) -> Floats:
        return self._generator(name).random(self.count)

    def pick(self, name: str, options: tuple[str, ...], shares: tuple[float, ...]) -> Names:
        """Pick one of `options` for each person. `shares`: the probability of each option."""
        return np.array(options, dtype=object)[np.searchsorted(np.cumsum(shares)[:-1], self.uniform(name))]

    def pick_list(self, name: str, options: tuple[str, ...], probabilities: Floats) -> Names:
        """Pick a comma-separated list of options for each person. `probabilities`: people × options."""
        is_listed = np.stack([self.uniform(f"{name} {option}") for option in options], axis=1) < probabilities
        lists = [
            ", ".join(option for option, has_option in zip(options, row, strict=True) if has_option) or "none"
            for row in is_listed
        ]
        return np.array(lists, dtype=object)

    def add_missing_values(self, columns: Columns, shares: dict[str, float]) -> dict[str, pd.Series]:
        """Return `columns` with missing values. `shares`: column → share of missing values, 0 to 1."""
        complete = {name: pd.Series(values) for name, values in columns.items()}
        incomplete = {
            name: complete[name].mask(self.uniform(f"missing {name}") < share) for name, share in shares.items()
        }
        return {**complete, **incomplete}

    def _generator(self, name: str) -> np.random.Generator:
        return np.random.default_rng([self._seed, *name.encode()])
