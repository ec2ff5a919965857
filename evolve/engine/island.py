"""An island: a population that evolves as one Ray Tune trial, whose ``step()`` is one generation.

Tune gives the placement group and restarts the island when its process dies. All state is in the run's
folder, so a restarted island goes on where the folder says.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from evolve.errors import EvolveError, Interrupted, UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path
    from types import FrameType

    from evolve.engine.base import EvaluatorSpec, Loop, Pool

logger = logging.getLogger(__name__)

MakeLoop: TypeAlias = "Callable[[Pool], Loop]"

_RESTARTS = 3
_GRACE_SECONDS = 7.0


@dataclass(frozen=True)
class Placement:
    """Resources of an island.

    Attributes:
        size: Number of evaluators.
        cpus: CPU cores of each.
        gpus: GPUs of each.
        timeout: Seconds for one candidate.
    """

    size: int
    cpus: float
    gpus: float
    timeout: float


def connect(size: int | None, cpus: float, gpus: float | None, timeout: float) -> Placement:
    """Connect to the cluster of ``RAY_ADDRESS``, or start Ray on this machine, and size the island.

    Args:
        size: Number of evaluators, or None: as many as the GPUs, or else the CPU cores, allow.
        cpus: CPU cores of one evaluator.
        gpus: GPUs of one evaluator, or None: 1 where there are GPUs, else 0.
        timeout: Seconds for one candidate.

    Raises:
        UserError: The cluster cannot be reached, or is too small.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Tune would wait for a whole generation
    os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    quiet = {"log_to_driver": False, "configure_logging": False}
    try:
        if os.environ.get("RAY_ADDRESS"):
            ray.init(**quiet)
        else:
            cores = max(os.cpu_count() or 1, round((size or 1) * cpus))
            ray.init(address="local", num_cpus=cores, include_dashboard=False, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(
            f"cannot start or reach Ray: {error}. Check RAY_ADDRESS, or set engine: inline"
        ) from error
    total = ray.cluster_resources()
    if gpus is None:
        gpus = 1.0 if total.get("GPU", 0) >= 1 else 0.0
    # An evaluator is on one node: what two nodes have left over is no room.
    room = sum(_room(node["Resources"], cpus, gpus) for node in ray.nodes() if node["Alive"])
    if size is None:
        size = room
    if size < 1 or size > room:
        raise UserError(
            f"the cluster has room for {room} evaluators of {cpus:g} CPU and {gpus:g} GPU, asked for "
            f"{size}: lower engine.evaluators, engine.cpus or engine.gpus"
        )
    return Placement(size, cpus, gpus, timeout)


def _room(resources: Mapping[str, float], cpus: float, gpus: float) -> int:
    """Return how many evaluators a node has room for."""
    kinds = [(resources.get("CPU", 0), cpus), (resources.get("GPU", 0), gpus)]
    return int(min(there / each for there, each in kinds if each) + 1e-9)


def run_island(
    make_loop: MakeLoop,
    spec: EvaluatorSpec,
    placement: Placement,
    *,
    request_stop: Callable[[], None],
    scratch: Path,
) -> None:
    """Run a loop to its end as a Tune trial on the cluster that :func:`connect` joined.

    Ctrl-C asks the loop to stop, waits a few seconds, and then ends Ray: everything that matters is on disk.

    Args:
        make_loop: Called in the island's process.
        spec: What an evaluator needs to start.
        placement: Resources.
        request_stop: Makes the loop's pool raise ``Interrupted`` soon.
        scratch: An absolute folder for Tune's own state and the evaluators' output; it is emptied.

    Raises:
        Interrupted: Ctrl-C.
        EvolveError: The island could not go on; the message holds the cause.
    """
    import ray
    from ray import tune

    bundles = [{"CPU": 0.0, f"node:{ray.util.get_node_ip_address()}": 0.001}]
    bundles += [{"CPU": placement.cpus, "GPU": placement.gpus}] * placement.size
    if not placement.gpus:
        bundles = [{key: value for key, value in bundle.items() if key != "GPU"} for bundle in bundles]
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    trainable = tune.with_resources(_trainable(), tune.PlacementGroupFactory(bundles, strategy="PACK"))
    tuner = tune.Tuner(
        trainable,
        param_space={"island": _Opaque((make_loop, spec, placement, scratch))},
        tune_config=tune.TuneConfig(num_samples=1, reuse_actors=False),
        run_config=tune.RunConfig(
            name="island",
            storage_path=str(scratch),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=_RESTARTS),
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
        ),
    )
    try:
        with _interruptible(request_stop) as interrupted:
            results = tuner.fit()
        if interrupted():
            raise Interrupted("stopped by Ctrl-C")
        _raise_error(results[0])
    finally:
        ray.shutdown()
        shutil.rmtree(scratch, ignore_errors=True)


def _raise_error(result: Any) -> None:
    if result.error is not None:
        raise EvolveError(f"the island died {_RESTARTS + 1} times: {result.error}")
    problem = (result.metrics or {}).get("problem")
    if problem is not None:
        raise UserError(problem)


class _Opaque:
    """Hides a value from Tune, which would otherwise search in it for things to sample."""

    def __init__(self, value: Any) -> None:
        self.value = value


def _trainable() -> Any:
    """Return the Trainable. It is made in a function because its base class belongs to Ray."""
    from ray import tune
    from ray.util import get_current_placement_group

    from evolve.engine.ray_pool import RayPool

    class Island(tune.Trainable):
        """One generation a step."""

        def setup(self, config: dict[str, Any]) -> None:
            make_loop, spec, placement, scratch = config["island"].value
            self._problem: str | None = None
            self._pool: RayPool | None = None
            self._loop: Loop | None = None
            try:
                self._pool = RayPool(
                    spec,
                    size=placement.size,
                    cpus=placement.cpus,
                    gpus=placement.gpus,
                    timeout=placement.timeout,
                    group=get_current_placement_group(),
                    scratch=scratch,
                )
                self._loop = make_loop(self._pool)
            except UserError as error:  # a restart would not mend it
                self._problem = str(error)

        def step(self) -> dict[str, Any]:
            done = True
            if self._problem is None and self._loop is not None:
                try:
                    done = self._loop.step()
                except UserError as error:
                    self._problem = str(error)
                except Interrupted:
                    done = True
            return {"done": done, "problem": self._problem}

        def cleanup(self) -> None:
            for part in (self._loop, self._pool):
                if part is not None:
                    part.close()

        def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
            return {}

        def load_checkpoint(self, checkpoint: Any) -> None:
            return None

    return Island


@contextlib.contextmanager
def _interruptible(request_stop: Callable[[], None]) -> Iterator[Callable[[], bool]]:
    """Turn Ctrl-C into a stop request, and end Ray if the request is not answered in time."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    event = threading.Event()
    finished = threading.Event()

    def on_interrupt(_signum: int, _frame: FrameType | None) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()
        request_stop()
        threading.Thread(target=end_ray, daemon=True).start()

    def end_ray() -> None:
        import ray

        if not finished.wait(_GRACE_SECONDS):
            logger.warning("the island did not stop within %g s: ending Ray", _GRACE_SECONDS)
            ray.shutdown()
            time.sleep(1.0)
            if not finished.is_set():
                os._exit(130)

    before = {number: signal.signal(number, on_interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event.is_set
    finally:
        finished.set()
        for number, handler in before.items():
            signal.signal(number, handler)
