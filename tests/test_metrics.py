"""When a run counts as diverged, and at which step: the loop and a sweep follow one rule."""

import numpy as np
import pytest

from sqs_jax.train.metrics import Divergence, divergence, metrics_row

FINE = np.array([1.0, 0.5, 0.25])


@pytest.mark.parametrize(
    ("losses", "ending", "expected"),
    [
        (FINE, {}, None),
        (FINE[:0], {}, None),
        ([1.0, np.nan, np.inf], {}, ("train_loss", np.nan, 29)),
        ([1.0, 0.5, -np.inf], {"parameters_finite": False}, ("train_loss", -np.inf, 30)),
        (FINE, {"parameters_finite": False, "validation_loss": np.nan}, ("parameters", "not finite", 30)),
        (FINE, {"validation_loss": np.inf}, ("validation_loss", np.inf, 30)),
    ],
)
def test_the_first_number_that_is_not_finite_is_told_with_its_step(losses, ending, expected):
    result = divergence(np.asarray(losses), 30, **ending)
    assert (result is None) == (expected is None)
    if result and expected:
        np.testing.assert_equal(tuple(result), tuple(Divergence(*expected)))


def test_a_row_holds_the_mean_loss_and_the_last_rate():
    row = metrics_row(2, 6, np.float32(0.125), [1.0, 2.0, 6.0])
    assert row == {"epoch": 2, "step": 6, "learning_rate": 0.125, "train_loss": 3.0}
    assert type(row["learning_rate"]) is float
