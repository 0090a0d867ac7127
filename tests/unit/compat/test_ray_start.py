import inspect

from dreambooth_ray.compat.ray_start import only_needed_processes
from tests.unit.compat.private_api import check_source, find_private

NODE = ("Node.start_monitor", "Node.start_log_monitor", "Node.start_api_server")


def test_ray_still_has_what_is_used_of_it() -> None:
    user = "ray_start.py"
    find_private("ray", "ray._private.node", *NODE, user=user)
    (get_node,) = find_private("ray", "ray._private.services", "get_node", user=user)
    assert list(inspect.signature(get_node).parameters) == ["gcs_address", "node_id"]
    (error,) = find_private(
        "ray", "ray._private.utils", "get_dashboard_dependency_error", user=user
    )
    assert inspect.signature(error).parameters == {}
    find_private(
        "ray", "ray", "_raylet.GcsClient", "_raylet.InnerGcsClient.get_all_node_info", user=user
    )
    # These must be what `ray.init` calls, by these names.
    from ray._private import node

    starts = [f".{name.partition('.')[2]}(" for name in NODE]
    check_source("ray", node, [*starts, "services.get_node("], user=user)


def test_ray_is_as_it_was_after_the_block() -> None:
    from ray._private import node, services, utils

    def current() -> list[object]:
        return [
            *(getattr(node.Node, name.partition(".")[2]) for name in NODE),
            services.get_node, utils.get_dashboard_dependency_error,
        ]  # fmt: skip

    before = current()
    with only_needed_processes(lambda: None):
        assert all(a is not b for a, b in zip(before, current(), strict=True))
    assert current() == before
