import pytest
import torch
from torch import nn

from dreambooth_ray.adapters.layer_adapter import LayerAdapter
from dreambooth_ray.config.adapter_mix import AdapterUse
from dreambooth_ray.sampling.adapted_layer import AdaptedLayer


@pytest.mark.parametrize("tokens_first", [False, True])
def test_rows_go_through_their_own_adapters_however_they_lie(tokens_first: bool) -> None:
    """A network that attends across layers of text has rows times tokens in the first place."""
    generator = torch.Generator().manual_seed(0)
    module = nn.Linear(6, 5)
    layer = AdaptedLayer("layer", module)
    for name in ("one", "two"):
        factors = {
            "down": torch.randn(2, 6, generator=generator),
            "up": torch.randn(5, 2, generator=generator),
        }
        layer.add_adapter(name, LayerAdapter(factors))
    mixes = [(AdapterUse("one", 0.5),), (), (AdapterUse("two"), AdapterUse("one", -1.0))]
    x = torch.randn(3, 4, 7, 6, generator=generator)
    layer.is_on = True
    layer.stack_weights(mixes)
    with torch.no_grad():
        output = module(x.flatten(0, 1) if tokens_first else x).reshape(3, 4, 7, 5)
    layer.is_on = False
    for row, (mix, values) in enumerate(zip(mixes, x, strict=True)):
        weight = module.weight.detach().clone()
        for use in mix:
            weight += use.weight * layer.adapters[use.name].compute_delta(weight)
        expected = torch.nn.functional.linear(values, weight, module.bias)
        assert torch.allclose(output[row], expected, atol=1e-5)
