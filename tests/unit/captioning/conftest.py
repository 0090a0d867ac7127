from collections.abc import Iterator

import pytest

from tests.vision_server import VisionServer


@pytest.fixture
def server() -> Iterator[VisionServer]:
    vision_server = VisionServer()
    yield vision_server
    vision_server.close()
