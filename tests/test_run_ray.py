"""The main job on Ray, as a user starts it: drivers, evaluators and islands are killed with SIGKILL."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.driving import finish, left, records
from tests.small import make_search

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.ray

FAST_SECONDS, AGENT_SECONDS = 10, 90
ISLAND = "ResourceTrainable"
"""What Tune calls a Trainable that has resources of its own."""
AGENTS = ("dashboard", "runtime_env", "DashboardAgent", "RuntimeEnvAgent")


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A config for two evaluators, and what an undisturbed search without Ray leaves."""
    folder = tmp_path_factory.mktemp("ray-reference")
    config = make_search(folder, **{"search.trials": 13, "engine.evaluators": 2})
    finish(config, folder / "runs", "engine.kind=inline")
    return config, left(folder / "runs" / "small")


def start(config: Path, runs: Path, *overrides: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "evolve.cli", "run", str(config), "engine.kind=ray", *overrides]
    process = subprocess.Popen(
        [*command, "--runs", str(runs), "--display", "none"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    started.append(process)
    return process


started: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def leave_nothing_running():
    """A test that fails must not leave a driver behind."""
    yield
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()
    started.clear()


def finish_on_ray(config: Path, runs: Path) -> None:
    process = start(config, runs)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-4000:]


def wait_for(condition, process: subprocess.Popen[str], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read()[-4000:] if process.stderr else ""
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def actors(process: subprocess.Popen[str], name: str) -> list[psutil.Process]:
    """Return the processes of the actors whose class is ``name``."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if f"ray::{name}" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.Error:
            continue
    return found


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def is_agent(process: psutil.Process) -> bool:
    try:
        return any(word in " ".join(process.cmdline()) for word in AGENTS)
    except psutil.Error:
        return False


def gone_in(processes: list[psutil.Process], seconds: float) -> list[str]:
    deadline = time.monotonic() + seconds
    while alive(processes) and time.monotonic() < deadline:
        time.sleep(0.1)
    return [" ".join(process.cmdline())[:120] for process in alive(processes)]


def killed_and_resumed(config: Path, expected, runs: Path, kills: int, seed: int) -> None:
    """Kill the driver again and again, each time somewhere between two further candidates."""
    draw = random.Random(seed)
    known: dict = {}
    for _ in range(kills):
        process = start(config, runs)
        goal = len(known) + draw.randint(0, 3)
        wait_for(lambda goal=goal: len(records(runs / "small")) >= goal, process)
        wait_for(lambda process=process: bool(actors(process, ISLAND)), process)
        time.sleep(draw.uniform(0, 0.3))
        family = psutil.Process(process.pid).children(recursive=True)
        agents = [child for child in family if is_agent(child)]
        process.kill()
        process.wait()
        assert gone_in([child for child in family if child not in agents], FAST_SECONDS) == []
        now = records(runs / "small")
        assert all(now[key] == value for key, value in known.items()), "finished work was lost or repeated"
        known = now
        if len(known) >= 17:
            break
    finish_on_ray(config, runs)
    now = records(runs / "small")
    assert all(now[key] == value for key, value in known.items())
    assert left(runs / "small") == expected


def test_a_driver_killed_three_times(searched, tmp_path):
    killed_and_resumed(*searched, tmp_path / "runs", kills=3, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3, 4, 5, 6])
def test_a_driver_killed_twenty_times(searched, tmp_path, seed):
    killed_and_resumed(*searched, tmp_path / "runs", kills=4, seed=seed)


def test_a_killed_evaluator_costs_nothing_but_time_and_ctrl_c_stops(searched, tmp_path):
    config, expected = searched
    process = start(config, tmp_path / "runs")
    run = tmp_path / "runs" / "small"
    wait_for(lambda: len(records(run)) >= 2, process)
    for victim in actors(process, "EvaluatorActor")[:1]:
        victim.send_signal(signal.SIGKILL)
    wait_for(lambda: len(records(run)) >= 3, process)
    family = psutil.Process(process.pid).children(recursive=True)
    agents = [child for child in family if is_agent(child)]
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    assert process.wait(timeout=30) == 130
    assert time.monotonic() - began < 10
    assert gone_in([child for child in family if child not in agents], FAST_SECONDS) == []
    before = records(run)
    finish_on_ray(config, tmp_path / "runs")
    now = records(run)
    assert all(now[key] == value for key, value in before.items())
    assert left(run) == expected
    assert gone_in(agents, AGENT_SECONDS) == []


@pytest.mark.slow
def test_a_killed_island_comes_back(searched, tmp_path):
    config, expected = searched
    process = start(config, tmp_path / "runs")
    run = tmp_path / "runs" / "small"
    wait_for(lambda: len(records(run)) >= 2, process)
    wait_for(lambda: bool(actors(process, ISLAND)), process)
    (island,) = actors(process, ISLAND)
    island.send_signal(signal.SIGKILL)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-4000:]
    assert left(run) == expected


@pytest.mark.slow
def test_a_cluster_of_two_nodes_loses_one(searched, tmp_path, monkeypatch):
    from ray.cluster_utils import Cluster

    config, expected = searched
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    # An address of its own, since the island is pinned to the driver's address.
    other = cluster.add_node(num_cpus=1, node_ip_address="127.0.0.2")
    cluster.wait_for_nodes()
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    try:
        process = start(config, tmp_path / "runs")
        run = tmp_path / "runs" / "small"
        wait_for(lambda: len(records(run)) >= 3, process)
        cluster.remove_node(other, allow_graceful=False)
        _, errors = process.communicate(timeout=400)
        assert process.returncode == 0, errors[-4000:]
        assert left(run) == expected
    finally:
        cluster.shutdown()
