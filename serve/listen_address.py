"""Whether this machine can listen where the endpoint is told to, before anything is started."""

import errno
import socket

from dreambooth_ray.errors import ConfigError


def check_listen_address(host: str, port: int) -> None:
    """Listen once and close; port 0 is any free one.

    raises: ConfigError naming host or port
    """
    try:
        # By name as well: "localhost" may be an address of either kind.
        address_family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f"host={host!r} is no address that is known here ({error}); give 127.0.0.1 for this "
            "machine alone, or 0.0.0.0 for all who reach it"
        ) from error
    with socket.socket(address_family, socket.SOCK_STREAM) as listening_socket:
        # Connections that have ended a moment ago are in nobody's way.
        listening_socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening_socket.bind(address)
            listening_socket.listen()
        except OSError as error:
            raise ConfigError(_explain_listen_error(error, host, port)) from error


def _explain_listen_error(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"port={port} is in use at {host}: another program listens there, perhaps another "
            "`dreambooth serve`; stop it, or give another --port (0 takes a free one)"
        )
    if error.errno == errno.EACCES:
        return f"port={port} is reserved for administrators; give a --port above 1023"
    if error.errno == errno.EADDRNOTAVAIL:
        return (
            f"host={host!r} is not an address of this machine; give 127.0.0.1 for this machine "
            "alone, or 0.0.0.0 for all who reach it"
        )
    return f"host={host!r} port={port}: nothing can listen there ({error}); give others"
