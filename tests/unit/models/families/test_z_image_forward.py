"""The batched forward gives what diffusers' own gives, number for number."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dreambooth_ray.models.components import Components, load_components
from dreambooth_ray.models.conditioning import Conditioning
from dreambooth_ray.models.traced_forward import TracedForward
from tests.families.tiny_models import build_tiny

# Of 2, 1, 5 and 3 times 32 tokens in the tiny model's alphabet.
PROMPTS = ["a photo of sks robot", "", "a very long caption " * 6, "x" * 60]
SIZES = [(8, 8), (4, 4), (6, 10)]  # of 16, 4 and 15 image tokens: all are padded
WHOLE = (16, 8)  # of 32 tokens


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Components:
    return load_components(build_tiny("z-image", tmp_path_factory.mktemp("tiny") / "z-image"))


@pytest.fixture(scope="module")
def rows(parts: Components) -> list[Conditioning]:
    with torch.no_grad():
        return [
            parts.functions.encode_prompt(parts, parts.text_forward_functions, prompt)
            for prompt in PROMPTS
        ]


def predict_published(
    transformer: Any, x: Tensor, sigma: Tensor, conditionings: list[Conditioning]
) -> Tensor:
    captions = [row["hidden"][row["is_token"]] for row in conditionings]
    outputs = transformer(
        list(x[:, :, None]), (1000 - 1000 * sigma) / 1000, captions, return_dict=False
    )[0]
    return -torch.stack(outputs)[:, :, 0]


def make_inputs(
    parts: Components, rows: list[Conditioning], numbers: list[int], size: tuple[int, int]
) -> tuple[list[Conditioning], tuple[Tensor, ...]]:
    chosen = [rows[number] for number in numbers]
    generator = torch.Generator().manual_seed(len(numbers))
    x = torch.randn(len(numbers), 4, *size, generator=generator)
    sigma = torch.rand(len(numbers), generator=generator)
    return chosen, (x, sigma, *parts.functions.join_rows(chosen).values)


@pytest.mark.parametrize("numbers", [[2], [0, 0], [0, 1], [1, 2, 3]])
@pytest.mark.parametrize("size", [*SIZES, WHOLE])
def test_predictions_and_gradients_are_those_of_the_published_forward(
    parts: Components, rows: list[Conditioning], numbers: list[int], size: tuple[int, int]
) -> None:
    transformer = parts.denoiser
    chosen, inputs = make_inputs(parts, rows, numbers, size)
    batched = parts.functions.denoiser_function(transformer)(*inputs)
    published = predict_published(transformer, *inputs[:2], chosen)
    assert torch.allclose(batched, published, atol=1e-6)
    # All of them, also a padding that is not there: DDP waits for the gradient of each.
    weights = dict(transformer.named_parameters())
    for name, ours, theirs in zip(
        weights,
        torch.autograd.grad(batched.square().mean(), list(weights.values())),
        torch.autograd.grad(published.square().mean(), list(weights.values())),
        strict=True,
    ):
        assert torch.allclose(ours, theirs, atol=1e-5 * float(theirs.abs().max())), name


def test_checkpointed_blocks_give_the_same_gradients(
    parts: Components, rows: list[Conditioning]
) -> None:
    _, inputs = make_inputs(parts, rows, [0, 1], SIZES[0])
    gradients = []
    for is_checkpointed in (False, True):
        transformer = copy.deepcopy(parts.denoiser).train()
        calls: list[int] = []
        if is_checkpointed:
            transformer.enable_gradient_checkpointing()
        block = transformer.layers[0]
        block.attention.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        parts.functions.denoiser_function(transformer)(*inputs).square().mean().backward()
        assert len(calls) == 1 + is_checkpointed
        gradients.append({name: p.grad for name, p in transformer.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient is not None
        assert torch.equal(gradient, gradients[1][name]), name


@torch.no_grad()
def test_one_recording_serves_all_sizes_and_lengths(
    parts: Components, rows: list[Conditioning]
) -> None:
    function = parts.functions.denoiser_function(copy.deepcopy(parts.denoiser).eval())
    traced = TracedForward(function, 0)
    for numbers in ([0, 1], [1, 2, 3], [2]):
        for size in SIZES:
            _, inputs = make_inputs(parts, rows, numbers, size)
            traced(*inputs)
            assert torch.equal(traced(*inputs), function(*inputs))
    # One with a mask of longer rows, and one without.
    assert traced.num_traces == 2


def test_a_copy_computes_with_its_own_weights(parts: Components, rows: list[Conditioning]) -> None:
    functions = parts.functions
    functions.denoiser_function(parts.denoiser)
    duplicate = copy.deepcopy(parts.denoiser)
    duplicate.x_pad_token.data.add_(1)
    chosen, inputs = make_inputs(parts, rows, [0, 1], SIZES[0])
    ours = functions.denoiser_function(duplicate)(*inputs)
    assert torch.allclose(ours, predict_published(duplicate, *inputs[:2], chosen), atol=1e-6)
    assert not torch.allclose(ours, functions.denoiser_function(parts.denoiser)(*inputs))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo looks at it
def test_blocks_are_compiled_and_give_the_same(parts: Components, rows: list[Conditioning]) -> None:
    transformer = copy.deepcopy(parts.denoiser)
    function = parts.functions.denoiser_function(transformer)
    _, inputs = make_inputs(parts, rows, [0, 1], SIZES[0])
    plain = function(*inputs)
    transformer.compile_repeated_blocks(fullgraph=True, backend="eager")
    assert torch.allclose(function(*inputs), plain, atol=1e-6)


def test_a_saved_copy_is_read_again(parts: Components, tmp_path: Path) -> None:
    parts.functions.denoiser_function(parts.denoiser)
    parts.denoiser.save_pretrained(tmp_path)
    read = type(parts.denoiser).from_pretrained(tmp_path)
    for name, weight in parts.denoiser.state_dict().items():
        assert torch.equal(weight, read.state_dict()[name])
