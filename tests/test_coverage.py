"""Intervals contain the truth about as often as they claim, and a memory without effect is not called used."""
import pytest
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]/'benchmarks'))
from coverage import CASES, FALSE_ALARMS, SPARSE, measure, measure_study


@pytest.mark.slow
@pytest.mark.parametrize('case', CASES)
def test_interval_contains_the_truth(case):
    share = measure(case, 128, repeats=300)
    if case in FALSE_ALARMS: assert share <= 0.05
    else: assert 0.92 <= share <= (1 if case in SPARSE else 0.98) # 93 to 97 %, and the error of 300 repeats


@pytest.mark.slow
@pytest.mark.parametrize('seeds', [3, 5])
def test_interval_of_a_study_contains_the_truth(seeds): assert 0.92 <= measure_study(seeds) <= 0.98
