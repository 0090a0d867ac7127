"""What answers at a Ray address, asked before Ray itself tries for minutes.

Ray's own client of the head (GCS) tries again and again, prints what it meets, and ends the process
at last. The same question as one gRPC call has a deadline and an error.

Private: init_grpc_channel of ray._private.grpc_utils, KV_NAMESPACE_CLUSTER of
ray._private.ray_constants, check_version_info and read_ray_address of ray._private.utils,
CLUSTER_METADATA_KEY of ray._common.usage.usage_constants, the generated gcs_service_pb2.
"""

import json


class RayAddressError(Exception):
    """What is wrong at an address, in words."""


def find_local_address() -> str | None:
    """Address of the cluster that `ray start` has noted on this machine, for `auto`."""
    from ray._private.utils import read_ray_address

    address: str | None = read_ray_address()
    return address or None


def check_head(address: str, timeout_s: float) -> None:
    """Ask a cluster's head for its versions. address: host:port

    raises: RayAddressError: no Ray, another version, no token
    """
    # ruff: noqa: PLC0415  as above
    import grpc
    from ray._common.usage.usage_constants import CLUSTER_METADATA_KEY
    from ray._private.grpc_utils import init_grpc_channel
    from ray._private.ray_constants import KV_NAMESPACE_CLUSTER
    from ray._private.utils import check_version_info
    from ray.core.generated.gcs_service_pb2 import InternalKVGetRequest
    from ray.core.generated.gcs_service_pb2_grpc import InternalKVGcsServiceStub

    kv_get_request = InternalKVGetRequest(namespace=KV_NAMESPACE_CLUSTER, key=CLUSTER_METADATA_KEY)
    grpc_channel = init_grpc_channel(address)
    try:
        kv_get_reply = InternalKVGcsServiceStub(grpc_channel).InternalKVGet(
            kv_get_request, timeout=timeout_s
        )
        check_version_info(
            json.loads(kv_get_reply.value), "this installation", raise_on_mismatch=True
        )
    except grpc.RpcError as error:
        raise RayAddressError(_explain_grpc_error(error)) from error
    except ValueError as error:
        raise RayAddressError(
            "what answers there is no Ray head of a version that is known"
        ) from error
    except RuntimeError as error:
        version_message = " ".join(str(error).split())
        raise RayAddressError(f"the cluster has another version: {version_message}") from error
    finally:
        grpc_channel.close()


def check_client_server(address: str, timeout_s: float) -> None:
    """That a Ray Client server may be at host:port: something that speaks gRPC.

    raises: RayAddressError; versions and token are looked at by Ray's client as it connects
    """
    import grpc
    from ray._private.grpc_utils import init_grpc_channel

    grpc_channel = init_grpc_channel(address)
    try:
        grpc.channel_ready_future(grpc_channel).result(timeout=timeout_s)
    except grpc.FutureTimeoutError as error:
        raise RayAddressError("what answers there is no Ray Client server") from error
    finally:
        grpc_channel.close()


def _explain_grpc_error(error: object) -> str:
    import grpc

    grpc_status_code = error.code() if isinstance(error, grpc.Call) else None
    if grpc_status_code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
        return (
            "the cluster refuses the token; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN to the "
            "cluster's own"
        )
    return (
        "what answers there is no Ray head "
        f"({grpc_status_code.name if grpc_status_code else error})"
    )
