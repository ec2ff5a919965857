"""The Ray pool against evaluators that raise, hang, die, or cannot start. Ray itself is real."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from evolve.engine.base import EvaluatorSpec
from evolve.engine.ray_pool import RayPool
from evolve.errors import Interrupted, UserError
from evolve.types import Failed, Job, Recipe, Scored

pytestmark = pytest.mark.ray


class FaultyActor:
    """Stands in for the evaluator: the recipe's text says what happens."""

    def __init__(self, spec: EvaluatorSpec, log_folder: str) -> None:
        self.folder = Path(spec.first)
        self.ready = False

    def start(self) -> float:
        if (self.folder / "refuse").exists():
            raise UserError("no engine here")
        if (self.folder / "crash").exists():
            os._exit(1)
        time.sleep(0.3)
        self.ready = True
        return 0.3

    def evaluate(self, job: Job) -> Scored | Failed:
        assert self.ready, "work was sent before the evaluator was ready"
        with (self.folder / "started").open("a") as file:
            file.write(f"{job.recipe.text}\n")
        action, _, name = job.recipe.text.partition(":")
        mark = self.folder / name
        if action == "die" or (action == "die-once" and not mark.exists()):
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if action == "hang":
            time.sleep(600)
        if action == "fail":
            return Failed("build", "as asked")
        return Scored(1.0, 0.0, {})


@pytest.fixture(scope="module")
def cluster():
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def make_pool(cluster, tmp_path):
    from ray.util import placement_group, remove_placement_group

    pools = []

    def make(size: int = 2, timeout: float = 60.0) -> RayPool:
        group = placement_group([{"CPU": 0.001}] + [{"CPU": 0.5}] * size)
        spec = EvaluatorSpec(None, {}, str(tmp_path), "", 1, 0)
        pool = RayPool(
            spec,
            size=size,
            cpus=0.5,
            gpus=0,
            timeout=timeout,
            group=group,
            scratch=tmp_path,
            body=FaultyActor,
        )
        pools.append((pool, group))
        return pool

    yield make
    for pool, group in pools:
        pool.close()
        remove_placement_group(group)


def jobs(*texts: str) -> list[Job]:
    return [Job(Recipe(text)) for text in texts]


def never() -> bool:
    return False


def started(folder: Path) -> list[str]:
    return (folder / "started").read_text().splitlines()


def test_every_job_comes_back_once(make_pool, tmp_path):
    wanted = jobs(*(f"score:{index}" for index in range(10)))
    results = list(make_pool().run(wanted, never))
    assert sorted(result.job.key for result in results) == sorted(job.key for job in wanted)
    assert all(isinstance(result.outcome, Scored) and result.attempts == 1 for result in results)
    assert len(started(tmp_path)) == 10


def test_failures_are_data_and_lost_work_is_tried_once_more(make_pool, tmp_path):
    texts = ["fail:a", "score:b", "die-once:c", "die:d", "score:e"]
    results = {result.job.recipe.text: result for result in make_pool().run(jobs(*texts), never)}
    assert set(results) == set(texts)
    assert results["fail:a"].outcome == Failed("build", "as asked")
    assert isinstance(results["die-once:c"].outcome, Scored)
    assert results["die-once:c"].attempts == 2
    lost = results["die:d"].outcome
    assert isinstance(lost, Failed) and lost.kind == "lost_worker" and lost.retryable
    assert started(tmp_path).count("die:d") == 2
    assert started(tmp_path).count("score:e") == 1


def test_a_hanging_candidate_is_stopped_and_its_evaluator_replaced(make_pool):
    pool = make_pool(size=1, timeout=2.0)
    results = {result.job.recipe.text: result for result in pool.run(jobs("hang:x", "score:y"), never)}
    outcome = results["hang:x"].outcome
    assert isinstance(outcome, Failed) and outcome.kind == "timeout" and not outcome.retryable
    assert isinstance(results["score:y"].outcome, Scored)


def test_a_stop_request_ends_the_wait(make_pool):
    pool = make_pool(size=1)
    began = time.monotonic()
    with pytest.raises(Interrupted):
        list(pool.run(jobs("hang:x"), lambda: time.monotonic() - began > 1.0))
    assert time.monotonic() - began < 10


def test_an_evaluator_that_refuses_to_start_is_a_user_error(make_pool, tmp_path):
    (tmp_path / "refuse").touch()
    with pytest.raises(UserError, match="no engine here"):
        list(make_pool(size=1).run(jobs("score:x"), never))


def test_an_evaluator_that_crashes_at_start_is_given_up_after_three_tries(make_pool, tmp_path):
    (tmp_path / "crash").touch()
    with pytest.raises(UserError, match="failed to start 3 times"):
        list(make_pool(size=1).run(jobs("score:x"), never))
