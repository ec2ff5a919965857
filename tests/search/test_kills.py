"""A search that is killed at any instant ends as one that was never killed."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from evolve.store.study import journal_path, open_study

from .kit import contents, drive, searcher

if TYPE_CHECKING:
    import optuna

    from evolve.store.rundir import RunDir

WRITES = (
    "create_new_trial",
    "set_trial_param",
    "set_trial_state_values",
    "set_trial_user_attr",
    "set_trial_system_attr",
    "set_study_user_attr",
)

SAMPLERS = ("cmaes", "tpe", "random")

# The databases differ from the journal in what a kill leaves, not in what the samplers do with it.
COMBINATIONS = pytest.mark.parametrize(
    ("url", "sampler"),
    [
        *(("journal", sampler) for sampler in SAMPLERS),
        ("sqlite", "cmaes"),
        ("postgresql", "tpe"),
        *(
            pytest.param(*pair, marks=pytest.mark.slow)
            for pair in (
                ("sqlite", "tpe"),
                ("sqlite", "random"),
                ("postgresql", "cmaes"),
                ("postgresql", "random"),
            )
        ),
    ],
    indirect=["url"],
)


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the code under test may catch it."""


def arm(study: optuna.Study, countdown: int) -> None:
    """Make the storage raise at its n-th instant; each write has one before it and one after it."""

    def deadly(write: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal countdown
            countdown -= 1
            if countdown == 0:
                raise Killed
            result = write(*args, **kwargs)
            countdown -= 1
            if countdown == 0:
                raise Killed
            return result

        return call

    storage = study._storage
    for name in WRITES:
        setattr(storage, name, deadly(getattr(storage, name)))


def killed_run(
    run: RunDir, url: str | None, sampler: str, trials: int, *, often: int, seed: int
) -> tuple[Any, int]:
    """Search with a kill within every ``often`` instants; return the final study and the number of kills."""
    random_instants = random.Random(seed)
    kills, name = 0, "killed"
    while True:
        study = open_study(run, url, name)
        arm(study, random_instants.randint(1, often))
        try:
            drive(searcher(study, sampler), trials)
        except Killed:
            kills += 1
        else:
            return contents(open_study(run, url, name)), kills


def undisturbed(run: RunDir, sampler: str, trials: int, url: str | None = None) -> Any:
    study = open_study(run, url, "undisturbed")
    drive(searcher(study, sampler), trials)
    return contents(study)


@COMBINATIONS
def test_many_kills(run: RunDir, url: str | None, sampler: str) -> None:
    # 25 complete ones: TPE leaves its 10 random trials behind, CMA-ES updates five times. Opening a database
    # takes longer than all the rest, so there are fewer kills.
    trials, often, least = (25, 16, 40) if url is None else (15, 50, 6)
    expected = undisturbed(run, sampler, trials, url)
    assert {row[1] for row in expected} == {"COMPLETE", "FAIL"}
    found, kills = killed_run(run, url, sampler, trials, often=often, seed=len(sampler))
    assert kills >= least
    assert found == expected


def test_storages_agree(run: RunDir, url: str | None) -> None:
    assert undisturbed(run, "cmaes", 14, url) == undisturbed(run, "cmaes", 14, None)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_a_kill_at_every_instant(run: RunDir, sampler: str, every: int) -> None:
    """One kill in one run, at each write of the first three generations, before and after it."""
    trials = 6
    expected = undisturbed(run, sampler, trials)
    instant, survived = 0, False
    while not survived:
        instant += every
        journal_path(run).unlink()
        study = open_study(run, None, "killed")
        arm(study, instant)
        try:
            drive(searcher(study, sampler), trials)
            survived = True
        except Killed:
            drive(searcher(open_study(run, None, "killed"), sampler), trials)
        assert contents(open_study(run, None, "killed")) == expected, f"killed at write {instant}"
    assert instant >= 100


def test_a_killed_round_is_completed_before_a_tell(run: RunDir) -> None:
    """TPE sees what is told: a tell between the asks of a round would change the later ones."""
    study = open_study(run, None, "s")
    search = searcher(study, "tpe")
    drive(search, 13)
    search.round(0)
    asked = len(study.get_trials(deepcopy=False))
    arm(study, 30)
    with pytest.raises(Killed):
        search.round(4)
    # Some were asked; a driver that reconciles records tells one of them before it asks for a round.
    begun = len(open_study(run, None, "s").get_trials(deepcopy=False)) - asked
    assert 0 < begun < 4
    again = searcher(open_study(run, None, "s"), "tpe")
    again.tell(asked, 0.5, recipe="r")
    pending = again.round(4)
    assert [proposal.number for proposal in pending] == [asked + 1, asked + 2, asked + 3]

    other = open_study(run, None, "other")
    search = searcher(other, "tpe")
    drive(search, 13)
    assert [p.values for p in search.round(4)][1:] == [p.values for p in pending]


def child(run: RunDir, url: str | None, sampler: str, trials: int) -> None:
    with run.lock("child"), run.island_lock(5):
        drive(searcher(open_study(run, url, "sigkill"), sampler), trials)


def sigkilled_run(run: RunDir, url: str | None, sampler: str, trials: int, seed: int) -> int:
    instants = random.Random(seed)
    kills, longest = 0, 0.05
    while True:
        process = multiprocessing.get_context("fork").Process(target=child, args=(run, url, sampler, trials))
        process.start()
        process.join(instants.uniform(0.0, longest))
        # On a busy machine a start may take longer than this, and then nothing would ever be done.
        longest *= 1.15
        if process.is_alive():
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.join()
        if process.exitcode == 0:
            return kills
        assert process.exitcode == -signal.SIGKILL
        with run.lock("next"):
            assert not list(run.path.rglob("*.tmp"))


@COMBINATIONS
def test_sigkill(run: RunDir, url: str | None, sampler: str) -> None:
    # Long enough to be killed in, however fast the machine.
    trials = 13 if url is not None else 201 if sampler == "random" else 81
    expected = undisturbed(run, sampler, trials, url)
    started = time.monotonic()
    kills = sigkilled_run(run, url, sampler, trials, seed=3)
    assert kills >= 2, f"too fast to be killed: {time.monotonic() - started:.1f} s"
    assert contents(open_study(run, url, "sigkill")) == expected
