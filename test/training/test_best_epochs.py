"""Which epochs are the best; what is published of them is tested in test/espnet/test_trainer.py."""

import math

from i2srf_kd.training.best_epochs import rank_epochs


def test_ranking_leaves_out_epochs_without_a_value():
    stats = {
        1: {"valid": {"pesq": 2.0}},
        2: {"valid": {}},
        3: {"valid": {"pesq": math.nan}},
        4: {"valid": {"pesq": 3.0}},
        5: {"valid": {"pesq": 3.0}},
    }
    assert rank_epochs(stats, "valid", "pesq", "max") == [4, 5, 1]
    assert rank_epochs(stats, "valid", "pesq", "min") == [1, 4, 5]
