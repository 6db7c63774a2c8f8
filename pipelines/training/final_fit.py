"""Final fit: the recipe that was judged, refitted on everything that is known."""

from pipelines import registry
from pipelines.artifact.learner import pool_from_frame, score
from pipelines.measures.metrics import HIGHER_IS_BETTER, judge, value
from pipelines.runs.snapshot import read_snapshot
from pipelines.runs.training_runs import Run
from pipelines.spec import margin_at
from pipelines.training.fit import fit_recipe, newest_label, register
from pipelines.training.split import split_rows
from utils.errors import IntegrityError
from utils.settings import Settings


def final_fit(run: Run, candidate: int, *, settings: Settings) -> int:
    """Refit the candidate's recipe (same parameters, same number of trees) with the test rows included and register it.

    What serves would otherwise know nothing newer than its test period.

    Raises: IntegrityError where it is worse on the test rows, which it has seen, than the candidate, which had not.
    """
    version = registry.find_version(settings, run.model, run_id=run.run_id, evaluated_as=candidate)
    if version is not None:
        return version
    snapshot = read_snapshot(str(run.snapshot_id), settings=settings)
    model, fitted_rows = fit_recipe(snapshot.frame, run=run)
    test = split_rows(snapshot.frame, spec=run.spec, until=newest_label(run)).test
    truth, pool = test[run.spec.label.column].to_numpy(), pool_from_frame(test, spec=run.spec, label=False)
    metric = run.spec.gates.champion.metric
    judged = registry.load(settings, run.model, candidate).model
    final, evaluated = (
        value(metric, judge(truth, score(fitted, pool, spec=run.spec), spec=run.spec)) for fitted in (model, judged)
    )
    sign = 1 if HIGHER_IS_BETTER[metric] else -1
    if sign * (final - evaluated) < -margin_at(run.spec.gates.champion.margin, evaluated):
        raise IntegrityError(
            what=f"final fit of version {candidate}", expected=f"{metric} near {evaluated:.4f}", found=f"{final:.4f}"
        )
    return register(model, fitted_rows, run=run, manifest=snapshot.manifest, settings=settings, evaluated_as=candidate)
