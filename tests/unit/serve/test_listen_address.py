import socket
from collections.abc import Iterator

import pytest

from dreambooth_ray.errors import ConfigError
from serve.listen_address import check_listen_address


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost"])
def test_a_port_in_use_is_named(taken_port: int, host: str) -> None:
    with pytest.raises(ConfigError, match=rf"port={taken_port} is in use at {host}"):
        check_listen_address(host, taken_port)


def test_a_port_that_others_may_share_is_in_use_as_well() -> None:
    """Two endpoints of Ray Serve would each get some of the requests."""
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ConfigError, match="is in use"):
            check_listen_address("127.0.0.1", port)


@pytest.mark.parametrize("host", ["203.0.113.7", "no such host", "host.invalid", "::ffff:"])
def test_a_host_that_is_not_here_is_named(host: str) -> None:
    with pytest.raises(ConfigError, match="host="):
        check_listen_address(host, 0)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_a_free_port_is_free_also_after_its_last_connections(host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            accepted, _ = listener.accept()
            accepted.close()
    check_listen_address(host, port)
    check_listen_address(host, 0)
