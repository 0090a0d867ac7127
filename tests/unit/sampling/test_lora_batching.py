"""Rows of different adapters in one forward give what peft gives for each adapter alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from dreambooth_ray.sampling.lora_batching import LoraBatch

TARGETS = {"narrow": ["first"], "wide": ["first", "last"], "scaled": ["last"], "conv": ["conv"],
           "dora": ["first"]}  # fmt: skip


class Network(nn.Module):
    """A convolution over tokens between two linear layers; (R, T, 4) to (R, T, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)
        self.conv = nn.Conv2d(1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        middle = torch.tanh(self.first(x))
        return torch.as_tensor(self.last(self.conv(middle[:, None])[:, 0]))


@pytest.fixture(scope="module")
def network() -> PeftModel:
    torch.manual_seed(0)
    peft_model: PeftModel | None = None
    for rank, (name, targets) in enumerate(TARGETS.items(), start=1):
        config = LoraConfig(
            r=rank, lora_alpha=2 * rank + 1, target_modules=targets, use_dora=name == "dora",
            init_lora_weights=False,
        )  # fmt: skip
        if peft_model is None:
            peft_model = get_peft_model(Network(), config, adapter_name=name)
        else:
            peft_model.add_adapter(name, config)
    assert peft_model is not None
    return peft_model.eval().requires_grad_(False)


def run_single_adapter(network: PeftModel, x: Tensor, name: str | None) -> Tensor:
    if name is None:
        with network.disable_adapter():
            return torch.as_tensor(network(x))
    network.set_adapter(name)
    return torch.as_tensor(network(x))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from([None, "narrow", "wide", "scaled"]), min_size=1, max_size=6))
def test_every_row_is_as_its_adapter_alone_has_it(
    network: PeftModel, names: list[str | None]
) -> None:
    lora_batch, x = LoraBatch(network), torch.randn(len(names), 5, 4)
    references = torch.stack(
        [run_single_adapter(network, row[None], n)[0] for row, n in zip(x, names, strict=True)]
    )
    assert lora_batch.supports(tuple(names))
    for _ in range(2):
        with lora_batch.route_rows(tuple(names)):
            torch.testing.assert_close(network.base_model.model(x), references)
    after = torch.stack(
        [run_single_adapter(network, row[None], n)[0] for row, n in zip(x, names, strict=True)]
    )
    torch.testing.assert_close(after, references, rtol=0, atol=0)


def test_a_new_batch_is_put_together_anew(network: PeftModel) -> None:
    lora_batch, x = LoraBatch(network), torch.randn(2, 5, 4)
    for names in (("narrow", None), (None, "wide"), ("scaled",)):
        with lora_batch.route_rows(names):
            outputs = network.base_model.model(x[: len(names)])
        for row, name in enumerate(names):
            torch.testing.assert_close(
                outputs[row], run_single_adapter(network, x[row : row + 1], name)[0]
            )


def test_what_is_no_plain_lora_of_a_linear_layer_is_left_to_peft(network: PeftModel) -> None:
    lora_batch = LoraBatch(network)
    assert not lora_batch.supports(("narrow", "conv"))
    assert not lora_batch.supports(("dora",))
    assert lora_batch.supports((None, None))
