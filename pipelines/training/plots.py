"""Plots that MLflow shows on a run's page. Each function returns a matplotlib figure and needs no display."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from pipelines.measures.metrics import JudgedRows

MOST_FEATURES = 25


def importance(shares: Mapping[str, float]) -> Figure:
    """Plot the features with the largest shares (`learner.importance`), the largest at the top."""
    largest = sorted(shares.items(), key=lambda item: item[1])[-MOST_FEATURES:]
    figure = Figure(figsize=(7, 0.3 * len(largest) + 1), layout="constrained")
    axes = figure.subplots()
    axes.barh([name for name, _ in largest], [share for _, share in largest], color="#2a7f4f")
    axes.set_xlabel("share of the prediction's changes (%)")
    return figure


def confusion(judged: JudgedRows, classes: tuple[str, ...]) -> Figure:
    """Plot a confusion matrix. Rows are true classes, columns predicted classes, shades shares of the true class."""
    k = len(classes)
    matrix = np.bincount(judged.truth * k + judged.predicted, minlength=k * k).reshape(k, k)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(1.2 * k + 2, 1.0 * k + 1.6), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Greens", vmin=0, vmax=1)
    for row, column in np.ndindex(k, k):
        ink = "white" if shares[row, column] > 0.5 else "black"
        text = f"{matrix[row, column]:,}\n{shares[row, column]:.0%}"
        axes.text(column, row, text, ha="center", va="center", color=ink)
    axes.set_xticks(range(k), classes)
    axes.set_yticks(range(k), classes)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    return figure


def residuals(judged: JudgedRows) -> Figure:
    """Plot each row's residual against its prediction."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.scatter(judged.predicted, judged.truth - judged.predicted, s=6, alpha=0.4, color="#2a7f4f")
    axes.axhline(0, color="black", linewidth=1)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true − predicted")
    return figure
