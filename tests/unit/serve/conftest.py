"""A gateway in this process, in front of a real replica in this process: no Ray, no sockets."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from dreambooth_ray.config.serving import ServeConfig
from serve.app_state import AppState
from serve.deployment import build_app_state
from serve.gateway import create_app
from serve.replica import Replica
from serve.replica_messages import Artifact, Event, ImageSamplingTask


class ReplicaStream:
    """What ray.serve's handle returns for a generator, for a replica that is right here."""

    def __init__(self, events: AsyncIterator[Event]) -> None:
        self._events = events

    def __aiter__(self) -> "ReplicaStream":
        return self

    async def __anext__(self) -> Event:
        return await self._events.__anext__()

    def cancel(self) -> None:
        asyncio.get_running_loop().create_task(self._events.aclose())  # type: ignore[attr-defined]


class BroadcastResponses:
    """What ray.serve's broadcast returns."""

    def __init__(self, responses: list[Any]) -> None:
        self._responses = responses

    async def results_async(self) -> list[Any]:
        return [await a for a in self._responses]


class Handle:
    """The part of ray.serve's DeploymentHandle that a pool uses."""

    def __init__(self, replica: Replica) -> None:
        self._replica, self.sample = replica, self

    def options(self, stream: bool) -> "Handle":
        return self

    def remote(self, artifact: Artifact, sample_task: ImageSamplingTask) -> ReplicaStream:
        return ReplicaStream(self._replica.sample(artifact, sample_task))

    def broadcast(self, method: str, *arguments: Any) -> BroadcastResponses:
        return BroadcastResponses([getattr(self._replica, method)(*arguments)])


@pytest.fixture(scope="session")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("serve-storage")


@pytest.fixture(scope="session")
def config(storage: Path) -> ServeConfig:
    return ServeConfig.model_validate(
        {
            "storage": {"uri": str(storage)},
            "replicas": {"batch": 2},
            "limits": {"images": 4, "steps": 60, "side_px": 128, "body_bytes": 2**21},
            "jobs": {"lease_s": 2},
            "safety": {"prompts": False},
        }
    )


@pytest.fixture(scope="session")
def replica(config: ServeConfig) -> Iterator[Replica]:
    replica = Replica(config)
    yield replica
    replica.__del__()


@pytest.fixture
def app_state(config: ServeConfig, replica: Replica) -> AppState:
    return build_app_state(config, {"Replica": Handle(replica)})


@pytest.fixture
def client(app_state: AppState) -> Iterator[TestClient]:
    with TestClient(create_app(app_state), raise_server_exceptions=False) as client:
        yield client
