from tests.report.runs import made, run, runs  # noqa: F401
