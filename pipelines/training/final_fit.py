"""Final fit: refit the candidate's parameters on all rows of its snapshot."""

from pipelines import registry
from pipelines.artifact.learner import pool_from_frame, score
from pipelines.measures.metrics import HIGHER_IS_BETTER, judge, metric_value
from pipelines.runs.snapshot import read_snapshot
from pipelines.runs.training_runs import Run
from pipelines.spec import margin_at
from pipelines.training.fit import fit_best_params, newest_label, register
from pipelines.training.split import split_rows
from utils.errors import IntegrityError
from utils.settings import Settings


def fit_on_all_rows(run: Run, candidate: int, *, settings: Settings) -> int:
    """Refit the candidate's parameters and number of trees on all rows, and register the model as a new version.

    The candidate has not learned from the test rows. The new version learns from them too.

    Raises:
        IntegrityError: the new version is worse than the candidate on the test rows, although it was fitted on them.
    """
    version = registry.find_version(settings, run.model, run_id=run.run_id, evaluated_as=candidate)
    if version is not None:
        return version
    snapshot = read_snapshot(str(run.snapshot_id), settings=settings)
    model, fitted_rows = fit_best_params(snapshot.frame, run=run)
    test = split_rows(snapshot.frame, spec=run.spec, until=newest_label(run)).test
    truth, pool = test[run.spec.label.column].to_numpy(), pool_from_frame(test, spec=run.spec, label=False)
    metric = run.spec.gates.champion.metric
    candidate_model = registry.load(settings, run.model, candidate).model
    final_value, candidate_value = (
        metric_value(metric, judge(truth, score(fitted_model, pool, spec=run.spec), spec=run.spec))
        for fitted_model in (model, candidate_model)
    )
    sign = 1 if HIGHER_IS_BETTER[metric] else -1
    if sign * (final_value - candidate_value) < -margin_at(run.spec.gates.champion.margin, candidate_value):
        raise IntegrityError(
            what=f"final fit of version {candidate}",
            expected=f"{metric} near {candidate_value:.4f}",
            found=f"{final_value:.4f}",
        )
    return register(model, fitted_rows, run=run, manifest=snapshot.manifest, settings=settings, evaluated_as=candidate)
