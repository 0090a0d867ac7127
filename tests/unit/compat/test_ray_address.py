from tests.unit.compat.private_api import check_parameters, find_private

USER = "ray_address.py"


def test_ray_has_what_an_address_is_asked_with() -> None:
    check_version_info, _ = find_private(
        "ray", "ray._private.utils", "check_version_info", "read_ray_address", user=USER
    )
    check_parameters("ray", check_version_info, ["raise_on_mismatch"], user=USER)
    (init_grpc_channel,) = find_private(
        "ray", "ray._private.grpc_utils", "init_grpc_channel", user=USER
    )
    check_parameters("ray", init_grpc_channel, ["address"], user=USER)
    find_private("ray", "ray._private.ray_constants", "KV_NAMESPACE_CLUSTER", user=USER)
    find_private("ray", "ray._common.usage.usage_constants", "CLUSTER_METADATA_KEY", user=USER)
    find_private("ray", "ray.core.generated.gcs_service_pb2", "InternalKVGetRequest", user=USER)
    find_private(
        "ray", "ray.core.generated.gcs_service_pb2_grpc", "InternalKVGcsServiceStub", user=USER
    )
