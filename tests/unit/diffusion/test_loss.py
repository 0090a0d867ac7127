import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given
from hypothesis import strategies as st

from dreambooth_ray.diffusion import loss
from dreambooth_ray.errors import ConfigError


def errors_of(*values: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Predictions whose squared error per sample is the given value."""
    wanted = torch.zeros(len(values), 2, 3, 3)
    return wanted + torch.tensor(values).sqrt()[:, None, None, None], wanted


def test_halves_are_means_of_their_own_samples() -> None:
    prediction, wanted = errors_of(1.0, 3.0, 10.0)
    instance, prior = loss.halves(prediction, wanted, torch.tensor([False, False, True]))
    assert float(instance) == pytest.approx(2.0)
    assert float(prior) == pytest.approx(10.0)


@given(st.floats(0, 10), st.integers(1, 5), st.integers(1, 5))
def test_the_weight_applies_to_the_class_half_whatever_the_counts(
    weight: float, num_instance: int, num_prior: int
) -> None:
    prediction, wanted = errors_of(*[2.0] * num_instance, *[5.0] * num_prior)
    is_prior = torch.tensor([False] * num_instance + [True] * num_prior)
    total = loss.prior_preserving_loss(prediction, wanted, is_prior, weight)
    assert float(total) == pytest.approx(2 + 5 * weight, rel=1e-5)


def test_without_class_images_the_second_half_is_zero() -> None:
    prediction, wanted = errors_of(4.0)
    instance, prior = loss.halves(prediction, wanted, torch.tensor([False]))
    assert (float(instance), float(prior)) == (4.0, 0.0)


def test_without_photographs_there_is_nothing_to_learn() -> None:
    prediction, wanted = errors_of(4.0)
    with pytest.raises(ConfigError):
        loss.halves(prediction, wanted, torch.tensor([True]))


def test_targets_follow_the_models_prediction_type() -> None:
    latents, noise = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    timesteps = torch.tensor([10, 900])
    assert torch.equal(loss.target(DDPMScheduler(), latents, noise, timesteps), noise)
    schedule = DDPMScheduler(prediction_type="v_prediction")
    alpha = schedule.alphas_cumprod[timesteps][:, None, None, None]
    expected = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
    assert torch.allclose(loss.target(schedule, latents, noise, timesteps), expected, atol=1e-6)


def test_another_prediction_type_is_refused_by_name() -> None:
    schedule = DDPMScheduler(prediction_type="sample")
    zeros = torch.zeros(1, 4, 2, 2)
    with pytest.raises(ConfigError, match="'sample'"):
        loss.target(schedule, zeros, zeros, torch.tensor([0]))
