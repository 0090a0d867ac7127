import torch
from torch import nn

from dreambooth_ray.compat.torch_peak_memory import measure_peak_bytes
from tests.unit.compat.private_api import find_private


def test_torch_still_has_what_is_used_of_it() -> None:
    for module, name in (
        ("torch._subclasses.fake_tensor", "FakeTensorMode"),
        ("torch.utils._python_dispatch", "TorchDispatchMode"),
        ("torch.utils._pytree", "tree_map_only"),
        ("torch.utils.weak", "WeakIdKeyDictionary"),
    ):
        find_private("torch", module, name, user="torch_peak_memory.py")


def test_the_peak_is_what_lives_at_once_without_weights() -> None:
    network = nn.Linear(1024, 1024)

    def forward() -> None:
        x = torch.empty(256, 1024)
        for _ in range(3):
            # The one before is still alive while the next is made, and no longer.
            x = network(x)

    assert measure_peak_bytes(network, forward) == 2 * 256 * 1024 * 4
