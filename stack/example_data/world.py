"""The example world as a data class, and the random numbers for worlds without time."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Names = NDArray[np.object_]
Columns = dict[str, NDArray[Any]]  # column → one value for each person


@dataclass(frozen=True, slots=True)
class World:
    """An example world.

    frame: the content of the user's file.
    label: the column of the label.
    classes: the classes of the label. Empty if the label is a number.
    probabilities: rows × `classes`, from which the labels were drawn.
    expected: for a number, the mean of the distribution of each row's label.
    complete: the features before values went missing, for the rules of scenarios. Empty if there are no rules.
    """

    frame: pd.DataFrame
    label: str
    classes: tuple[str, ...]
    probabilities: Floats
    expected: Floats | None = None
    complete: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def bayes(self) -> Names | Floats:
        """The best possible prediction for each row, from the true distribution."""
        if self.expected is not None:
            return self.expected
        return np.array(self.classes, dtype=object)[self.probabilities.argmax(axis=1)]


def arrays(frame: pd.DataFrame) -> Columns:
    return {str(name): column.to_numpy() for name, column in frame.items()}


class People:
    """`count` people, and random numbers that depend only on the seed, the name of the variable and the person.

    A larger world contains the smaller one. All arrays have one value for each person.
    """

    def __init__(self, count: int, *, seed: int) -> None:
        self.count, self._seed = count, seed

    def normal(self, name: str) -> Floats:
        return self._generator(name).standard_normal(self.count)

    def uniform(self, name: str) -> Floats:
        return self._generator(name).random(self.count)

    def pick(self, name: str, options: tuple[str, ...], shares: tuple[float, ...]) -> Names:
        """One of `options` for each person. `shares` are the probabilities of the options."""
        return np.array(options, dtype=object)[np.searchsorted(np.cumsum(shares)[:-1], self.uniform(name))]

    def listed(self, name: str, options: tuple[str, ...], chances: Floats) -> Names:
        """A comma-separated list of options for each person. `chances`: the probabilities, people × options."""
        is_listed = np.stack([self.uniform(f"{name} {option}") for option in options], axis=1) < chances
        lists = [
            ", ".join(option for option, has_option in zip(options, row, strict=True) if has_option) or "none"
            for row in is_listed
        ]
        return np.array(lists, dtype=object)

    def gaps(self, columns: Columns, shares: dict[str, float]) -> dict[str, pd.Series]:
        """`columns` with missing values. `shares`: column → share of missing values."""
        series = {name: pd.Series(values) for name, values in columns.items()}
        with_gaps = {name: series[name].mask(self.uniform(f"missing {name}") < share) for name, share in shares.items()}
        return {**series, **with_gaps}

    def _generator(self, name: str) -> np.random.Generator:
        return np.random.default_rng([self._seed, *name.encode()])
