"""Plots for the page of a run in MLflow. Each function returns a matplotlib figure and needs no display."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from pipelines.measures.metrics import JudgedRows

MOST_FEATURES = 25


def plot_importance(importance: Mapping[str, float]) -> Figure:
    """Plot the most important features (`learner.feature_importance`, in percent), the most important at the top."""
    largest = sorted(importance.items(), key=lambda item: item[1])[-MOST_FEATURES:]
    figure = Figure(figsize=(7, 0.3 * len(largest) + 1), layout="constrained")
    axes = figure.subplots()
    axes.barh([name for name, _ in largest], [percent for _, percent in largest], color="#2a7f4f")
    axes.set_xlabel("share of the prediction's changes (%)")
    return figure


def plot_confusion(judged_rows: JudgedRows, classes: tuple[str, ...]) -> Figure:
    """Plot a confusion matrix. A row is a true class, a column is a predicted class.

    The shade of a cell shows its share of the row.
    """
    size = len(classes)
    matrix = np.bincount(judged_rows.truth * size + judged_rows.predicted, minlength=size * size).reshape(size, size)
    shares_of_row = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(1.2 * size + 2, 1.0 * size + 1.6), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares_of_row, cmap="Greens", vmin=0, vmax=1)
    for row, column in np.ndindex(size, size):
        text_color = "white" if shares_of_row[row, column] > 0.5 else "black"
        text = f"{matrix[row, column]:,}\n{shares_of_row[row, column]:.0%}"
        axes.text(column, row, text, ha="center", va="center", color=text_color)
    axes.set_xticks(range(size), classes)
    axes.set_yticks(range(size), classes)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    return figure


def plot_residuals(judged_rows: JudgedRows) -> Figure:
    """Plot the residual of each row, true − predicted, against its prediction."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    residuals = judged_rows.truth - judged_rows.predicted
    axes.scatter(judged_rows.predicted, residuals, s=6, alpha=0.4, color="#2a7f4f")
    axes.axhline(0, color="black", linewidth=1)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true − predicted")
    return figure
