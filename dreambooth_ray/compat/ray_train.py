"""Ray Train's trainer, with its controller in a thread of the process that starts a run.

Ray Train runs the controller as an actor: a process more that starts and imports before any worker
does, 2.5 seconds of a start. It dies with its driver either way. Here it is at hand: a run is ended
by a call, and failures are judged where the person reads. Each helper of Ray Train is a process
that starts, too: a second of processor time while the workers start.

Private: TorchTrainer._create_default_callbacks and _initialize_and_run_controller; TrainController,
its worker_group_cls and _worker_group; of WorkerGroup what `_WorkerGroup` overrides and reads;
SynchronizationActor, by its name there; three names of the environment.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from typing import Any
from unittest import mock

import ray
from ray.train import Result
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.constants import (
    ENABLE_CONTROLLER_STRUCTURED_LOGGING_ENV_VAR,
    ENABLE_PREEMPTION_WATCHER_ENV_VAR,
    HEALTH_CHECK_INTERVAL_S_ENV_VAR,
)
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2._internal.execution.worker_group import WorkerGroup, worker_group

from dreambooth_ray.compat.ray_environment import setting_default_environment_variables
from dreambooth_ray.compat.ray_policies import (
    NoAutoscalerPolicy,
    RecoverableFailurePolicy,
    RestartDecider,
)

# How long an ended run's thread is waited for: it may be inside a call of Ray.
_END_TIMEOUT_S = 5.0
_SETTINGS = {
    # How often workers are looked at, in seconds; Ray's own is 2. A look takes milliseconds.
    HEALTH_CHECK_INTERVAL_S_ENV_VAR: "0.2",
    # It would set up the logging of this whole process.
    ENABLE_CONTROLLER_STRUCTURED_LOGGING_ENV_VAR: "0",
}
# An actor that asks whether hosts are about to be taken away. Nobody takes a local Ray's.
_LOCAL_SETTINGS = {ENABLE_PREEMPTION_WATCHER_ENV_VAR: "0"}
_OWN_ENVIRONMENT = {"env_vars": {"OMP_NUM_THREADS": "1"}}
_NEEDLESS_CALLBACKS = {
    # Hands out shards of Ray Datasets: runs read their photographs themselves.
    "DatasetsCallback",
    # Gives back the machines of a controller actor that died. Ours is no actor, and what a driver
    # has reserved is given back when it ends.
    "PlacementGroupCleanerCallback",
}


class Trainer(TorchTrainer):  # type: ignore[misc]
    """Does not try again what can't go better, starts no helper in vain, and can be ended."""

    def __init__(
        self, *arguments: Any, is_local: bool, restarts: RestartDecider, **settings: Any
    ) -> None:
        """is_local: on a Ray of this process's own; restarts: whether failed workers start again"""
        super().__init__(*arguments, **settings)
        self._is_local, self._restarts = is_local, restarts
        self._controller: ControllerThread | None = None
        self._is_ended = False

    def end(self) -> None:
        """Kill the workers and let `fit` return, or never begin; from any thread."""
        self._is_ended = True
        if self._controller is not None:
            self._controller.end()

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [
            callback for callback in callbacks if type(callback).__name__ not in _NEEDLESS_CALLBACKS
        ]

    def _initialize_and_run_controller(self, **settings: Any) -> Any:
        settings["failure_policy"] = RecoverableFailurePolicy(
            settings["failure_policy"], self._restarts
        )
        if self._is_local and type(settings["scaling_policy"]) is FixedScalingPolicy:
            settings["scaling_policy"] = NoAutoscalerPolicy(self.scaling_config)
        self._controller = ControllerThread(settings, self._is_local)
        if self._is_ended:
            self._controller.end()
        return self._controller.run()


class _WorkerGroup(WorkerGroup):  # type: ignore[misc]
    """Workers that are told of no controller actor, as there is none."""

    def _init_train_context_on_workers(
        self, workers: list[Any], sync_actor: Any, train_context_args: dict[str, list[Any]]
    ) -> None:
        """As Ray Train's, less the controller's handle: only `get_all_reported_checkpoints`,
        which our workers do not call, would use it.
        """
        ray.get(
            [
                worker.actor.init_train_context.remote(
                    train_run_context=self._train_run_context,
                    distributed_context=worker.distributed_context,
                    synchronization_actor=sync_actor,
                    storage_context=self._storage_context,
                    worker_callbacks=self._worker_callbacks_to_propagate,
                    controller_actor=None,
                    **{name: values[rank] for name, values in train_context_args.items()},
                )
                for rank, worker in enumerate(workers)
            ]
        )
        self._decorate_worker_log_file_paths(workers)

    @staticmethod
    def _get_worker_runtime_env(custom_runtime_env: dict[str, Any]) -> dict[str, Any]:
        """None where none is asked for: a local Ray's waiting processes can be taken as they are.

        What Ray Train would add are the settings above, which are the controller's business.
        """
        return custom_runtime_env


class _FreshProcessActor:
    """An actor's class, of which each actor gets a new process.

    Without a runtime environment it would take one that waits, and has imported torch for one who
    trains. It has only to be there before workers exchange something.
    """

    def __init__(self, actor_class: Any) -> None:
        self._actor_class = actor_class

    def options(self, **options: Any) -> Any:
        return self._actor_class.options(**options, runtime_env=_OWN_ENVIRONMENT)


class _Controller(TrainController):  # type: ignore[misc]
    worker_group_cls = _WorkerGroup

    def kill_workers(self) -> None:
        """End the worker group where it stands."""
        if self._worker_group is not None:
            self._worker_group.abort()


class ControllerThread:
    """Runs one training, once."""

    def __init__(self, settings: dict[str, Any], is_local: bool) -> None:
        """settings: TrainController's arguments; is_local: on a Ray of this process's own"""
        self._settings, self._is_local = settings, is_local
        self._loop = asyncio.new_event_loop()
        self._task: asyncio.Task[Result] | None = None
        self._is_over = threading.Event()
        self._result: Result | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(
            target=self._run_event_loop, name="train controller", daemon=True
        )

    def run(self) -> Result | None:
        """Returns when the training is over, with its result; None if it was ended by `end`.

        raises: what the controller raised
        """
        with _PREPARED_PROCESSES[self._is_local]:
            self._thread.start()
            try:
                # Not join(): a signal's handler must be able to interrupt the wait.
                self._is_over.wait()
            except BaseException:
                self.end()
                self._is_over.wait(_END_TIMEOUT_S)
                raise
        if self._error is not None:
            raise self._error
        return self._result

    def end(self) -> None:
        """Kill the workers and let `run` return; from any thread."""
        with suppress(RuntimeError):  # the loop is closed: it is over already
            self._loop.call_soon_threadsafe(self._cancel_controller_task)

    def _cancel_controller_task(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _run_event_loop(self) -> None:
        try:
            self._task = self._loop.create_task(self._run_controller())
            self._result = self._loop.run_until_complete(self._task)
        except asyncio.CancelledError:
            pass
        except BaseException as error:  # handed to the thread that waits
            self._error = error
        finally:
            self._loop.close()
            self._is_over.set()

    async def _run_controller(self) -> Result:
        controller = _Controller(**self._settings)
        try:
            await controller.run()
        except asyncio.CancelledError:
            controller.kill_workers()
            raise
        return controller.get_result()


def _patched_synchronization_actor() -> AbstractContextManager[object]:
    """Inside, what workers exchange values through takes no process that waits."""
    actor_class = _FreshProcessActor(worker_group.SynchronizationActor)
    return mock.patch.object(worker_group, "SynchronizationActor", actor_class)


@contextmanager
def _quiet_logs() -> Iterator[None]:
    """What the controller logs, whole tracebacks among it, comes to the person in our words."""
    ray_train_logger = logging.getLogger("ray.train")
    previous_log_level = ray_train_logger.level
    ray_train_logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        ray_train_logger.setLevel(previous_log_level)


@contextmanager
def _prepare_controller_process(is_local: bool) -> Iterator[None]:
    """What a controller needs of the process that it runs in."""
    with (
        setting_default_environment_variables(_SETTINGS | (_LOCAL_SETTINGS if is_local else {})),
        _quiet_logs(),
        _patched_synchronization_actor() if is_local else nullcontext(),
    ):
        yield


class _ReferenceCountedContext:
    """A context that several trainings of one process may be in at once, in any order: the first
    one in enters it, and the last one out leaves it.
    """

    def __init__(self, make_context: Callable[[], AbstractContextManager[object]]) -> None:
        self._make_context, self._lock, self._num_users = make_context, threading.Lock(), 0
        self._stack = ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if self._num_users == 0:
                self._stack.enter_context(self._make_context())
            self._num_users += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._num_users -= 1
            if self._num_users == 0:
                self._stack.close()


# By whether Ray is this process's own.
_PREPARED_PROCESSES = {
    is_local: _ReferenceCountedContext(partial(_prepare_controller_process, is_local))
    for is_local in (True, False)
}
