"""What an example world is, and the random numbers that worlds without time are made of."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Names = NDArray[np.object_]
Columns = dict[str, NDArray[Any]]  # names and numbers, one value a person


@dataclass(frozen=True, slots=True)
class World:
    """`frame` is the user's file. `probabilities`: rows × `classes`, from which each row's label was drawn.

    A world of numbers has no classes; `expected` is then the mean of the distribution that each label was drawn from.
    `complete`: the features before some went missing, for rules that ask them; empty where no rule does.
    """

    frame: pd.DataFrame
    label: str
    classes: tuple[str, ...]
    probabilities: Floats
    expected: Floats | None = None
    complete: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def bayes(self) -> Names | Floats:
        """The best prediction of each row that knowing the world allows."""
        if self.expected is not None:
            return self.expected
        return np.array(self.classes, dtype=object)[self.probabilities.argmax(axis=1)]


def arrays(frame: pd.DataFrame) -> Columns:
    return {str(name): column.to_numpy() for name, column in frame.items()}


class People:
    """`count` people and random numbers that depend on the seed, the name of what is drawn and the person alone: a
    larger world holds a smaller one. All arrays have one value a person."""

    def __init__(self, count: int, *, seed: int) -> None:
        self.count, self._seed = count, seed

    def normal(self, name: str) -> Floats:
        return self._generator(name).standard_normal(self.count)

    def uniform(self, name: str) -> Floats:
        return self._generator(name).random(self.count)

    def pick(self, name: str, options: tuple[str, ...], shares: tuple[float, ...]) -> Names:
        """One of `options`, each with its share."""
        return np.array(options, dtype=object)[np.searchsorted(np.cumsum(shares)[:-1], self.uniform(name))]

    def listed(self, name: str, options: tuple[str, ...], chances: Floats) -> Names:
        """A comma-separated list of `options`; `chances`, people × options, is how likely each is to be in it."""
        held = np.stack([self.uniform(f"{name} {option}") for option in options], axis=1) < chances
        listed = [", ".join(option for option, has in zip(options, row, strict=True) if has) or "none" for row in held]
        return np.array(listed, dtype=object)

    def gaps(self, columns: Columns, shares: dict[str, float]) -> dict[str, pd.Series]:
        """`columns` with a share of the values of some of them missing."""
        series = {name: pd.Series(values) for name, values in columns.items()}
        lost = {name: series[name].mask(self.uniform(f"missing {name}") < share) for name, share in shares.items()}
        return {**series, **lost}

    def _generator(self, name: str) -> np.random.Generator:
        return np.random.default_rng([self._seed, *name.encode()])
