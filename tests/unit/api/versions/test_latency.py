"""The rules for a version that is too slow to serve."""

import pytest

from api.versions.latency import FLOOR, LIMIT, RATIO, Latency, measure, too_slow
from pipelines.artifact.bundle import read_bundle
from tests.bundles import write_bundle

USUAL = Latency(alone=0.0001, together=0.00001)


@pytest.mark.parametrize(
    ("latency", "reference", "message"),
    [
        (USUAL, None, None),
        (USUAL, USUAL, None),
        (Latency(FLOOR, 0.0001), USUAL, None),  # fifty times as slow, but fast enough
        (Latency(FLOOR * 1.1, 0.0001), USUAL, "55 times the 0.1 ms"),
        (Latency(FLOOR * 1.1, 0.0001), None, None),  # no version to compare with
        (Latency(FLOOR * 1.1, 0.0001), Latency(FLOOR, 0.0001), None),
        (Latency(FLOOR * RATIO * 1.1, 0.0001), Latency(FLOOR, 0.0001), "for a row by itself"),
        (Latency(0.001, FLOOR * 1.1), USUAL, "for a row in a batch"),
        (Latency(0.1, LIMIT * 1.1), None, "its batches would time out"),
        (Latency(0.1, LIMIT * 1.1), Latency(0.1, LIMIT), "its batches would time out"),
    ],
)
def test_a_version_is_compared_with_the_champion_and_with_the_time_limit_of_a_request(latency, reference, message):
    reason = too_slow(latency, against=reference)
    assert reason is None if message is None else message in str(reason)


def test_a_row_in_a_batch_costs_less_than_a_row_alone(credit_score, tmp_path):
    bundle = read_bundle(tmp_path, sha256=write_bundle(credit_score, tmp_path))
    first, second = measure([bundle, bundle], bundle.golden["rows"])
    assert first.together < first.alone
    assert too_slow(first, against=second) is None
