import math

import pytest

from evolve.report import numbers


def test_score_is_never_alone():
    assert numbers.score(0.5, 0.1) == "0.5000 ± 0.1960"
    assert numbers.score(0.5, math.nan) == "0.5000 ± ?"
    assert numbers.score(0.5, None) == "0.5000 ± ?"
    assert numbers.score(None, 0.1) == numbers.score(math.nan, 0.1) == "-"


def test_interval_and_difference():
    assert numbers.interval(0.5, 0.25, 0.75) == "0.5000 [0.2500, 0.7500]"
    assert numbers.interval(0.5, -math.inf, math.inf) == "0.5000 [?]"
    assert numbers.difference(0.03, -0.01, 0.07) == "+0.0300 [-0.0100, +0.0700]"
    assert numbers.difference(None, None, None) == "-"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (3599.7, "1 h 00 min"),
        (3900, "1 h 05 min"),
        (None, "-"),
        (math.nan, "-"),
    ],
)
def test_duration(seconds, text):
    assert numbers.duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (2.69e8, "269.0 MB"), (5e15, "5000.0 TB")],
)
def test_size(count, text):
    assert numbers.size(count) == text


def test_failures_the_most_frequent_first():
    assert numbers.failures({"oom": 1, "build": 3, "timeout": 0, "engine": 1}) == "build 3, engine 1, oom 1"
