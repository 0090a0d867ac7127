"""Trained weights in bfloat16 that keep what small steps add up to.

Bfloat16 has three digits, and most steps are smaller than half of what lies between two of its
numbers: rounded to the nearest, each of them is lost. So a step is computed in float32 and rounded
up as often as what is left of it asks for, which keeps its mean (arXiv 2010.06192).
Source: torchao's optimizers and OneTrainer round so as well; their random numbers are not those of
the run again when it is resumed.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dreambooth_ray.objective.seed_derivation import derive_seed

# In a group of an optimizer's state: steps so far.
_NUM_STEPS = "num_rounded_steps"
# Numbers that are in float32 at once, with their gradients.
_CHUNK_SIZE = 2**25


def round_stochastically(values: Tensor, generator: torch.Generator) -> Tensor:
    """Bfloat16 next to float32 values, one of the two so that the mean is theirs.

    generator: of the values' device
    """
    # The first half of a float32 is the bfloat16 before it; what carries over makes it the next.
    rounded_bits = torch.randint(
        1 << 16, values.shape, generator=generator, device=values.device, dtype=torch.int32
    )
    rounded_bits.add_(values.view(torch.int32)).bitwise_and_(-1 << 16)
    return rounded_bits.view(torch.float32).bfloat16()


class StochasticRoundingOptimizer(Optimizer):
    """Another optimizer, whose step of a weight needs no other weight, over weights in bfloat16.

    What it keeps of them stays in float32. Random numbers depend on seed, step and weight (and on
    the kind of device) alone: all workers round alike, and so does a run that is resumed.
    """

    def __init__(self, optimizer: Optimizer, seed: int) -> None:
        """optimizer: new; weights in float32 are stepped as they are"""
        self._optimizer, self._seed = optimizer, seed
        super().__init__(optimizer.param_groups, optimizer.defaults)
        for param_group in self.param_groups:
            param_group[_NUM_STEPS] = 0

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """As any optimizer's."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if hasattr(self, "found_inf"):  # of `skip_unless_finite`
            self._optimizer.found_inf = self.found_inf  # type: ignore[attr-defined]
        first_weight_index = 0
        for param_group in self.param_groups:
            for weight_chunk in _split_weights_into_chunks(param_group["params"]):
                self._step_weight_chunk(param_group, weight_chunk, first_weight_index)
                first_weight_index += len(weight_chunk)
            param_group[_NUM_STEPS] += 1
        return loss

    def _step_weight_chunk(
        self, group: dict[str, Any], weights: list[nn.Parameter], first_weight_index: int
    ) -> None:
        """first_weight_index: of the first of them among all"""
        float32_copies = {
            trained_weight: _copy_to_float32(trained_weight)
            for trained_weight in weights
            if trained_weight.grad is not None
        }
        self._optimizer.param_groups = [{**group, "params": list(float32_copies.values())}]
        self._optimizer.state = defaultdict(
            dict,
            {
                float32_copy: self.state[trained_weight]
                for trained_weight, float32_copy in float32_copies.items()
            },
        )
        self._optimizer.step()
        for weight_index, trained_weight in enumerate(weights, first_weight_index):
            float32_copy = float32_copies.get(trained_weight)
            if float32_copy is not None and float32_copy is not trained_weight:
                seed = derive_seed(self._seed, "rounding", group[_NUM_STEPS], weight_index)
                generator = torch.Generator(trained_weight.device).manual_seed(seed)
                trained_weight.copy_(round_stochastically(float32_copy.detach(), generator))
        # Else it would hold the copies.
        self._optimizer.param_groups, self._optimizer.state = [], defaultdict(dict)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As any optimizer's, but that torch would round the state to the weights' dtype."""
        super().load_state_dict(state_dict)
        saved_parameter_ids = chain.from_iterable(
            param_group["params"] for param_group in state_dict["param_groups"]
        )
        trained_weights = chain.from_iterable(
            param_group["params"] for param_group in self.param_groups
        )
        for parameter_id, trained_weight in zip(saved_parameter_ids, trained_weights, strict=True):
            for state_name, state_value in state_dict["state"].get(parameter_id, {}).items():
                if isinstance(state_value, Tensor) and state_value.dim():
                    self.state[trained_weight][state_name] = state_value.to(trained_weight.device)


def _copy_to_float32(weight: nn.Parameter) -> nn.Parameter:
    """With its gradient; itself where it is in float32."""
    if weight.dtype == torch.float32:
        return weight
    float32_copy = nn.Parameter(weight.detach().float())
    assert weight.grad is not None
    float32_copy.grad = weight.grad.float()
    return float32_copy


def _split_weights_into_chunks(weights: list[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """In order, no more numbers at once than `_CHUNK_SIZE` unless of one weight."""
    weight_chunk: list[nn.Parameter] = []
    for weight in weights:
        if weight_chunk and sum(w.numel() for w in weight_chunk) + weight.numel() > _CHUNK_SIZE:
            yield weight_chunk
            weight_chunk = []
        weight_chunk.append(weight)
    if weight_chunk:
        yield weight_chunk


def compute_gradient_norm(gradients: list[Tensor]) -> Tensor:
    """() global norm, in float32: of a gradient in bfloat16 it would have three digits."""
    if all(gradient.dtype == torch.float32 for gradient in gradients):
        return nn.utils.get_total_norm(gradients, foreach=True)
    gradient_norms = [torch.linalg.vector_norm(g, dtype=torch.float32) for g in gradients]
    total_norm: Tensor = torch.linalg.vector_norm(torch.stack(gradient_norms))
    return total_norm
