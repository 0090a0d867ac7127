import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given
from hypothesis import strategies as st

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.objective import loss


def errors_of(*values: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Predictions whose squared error per sample is the given value."""
    target = torch.zeros(len(values), 2, 3, 3)
    return target + torch.tensor(values).sqrt()[:, None, None, None], target


def test_halves_are_means_of_their_own_samples() -> None:
    errors = loss.compute_sample_errors(*errors_of(1.0, 3.0, 10.0))
    instance, prior = loss.mean_instance_and_prior_errors(errors, 2)
    assert float(instance) == pytest.approx(2.0)
    assert float(prior) == pytest.approx(10.0)


@given(st.floats(0, 10), st.integers(1, 5), st.integers(1, 5))
def test_the_weight_applies_to_the_class_half_whatever_the_counts(
    weight: float, num_instance: int, num_prior: int
) -> None:
    errors = loss.compute_sample_errors(*errors_of(*[2.0] * num_instance, *[5.0] * num_prior))
    instance, prior = loss.mean_instance_and_prior_errors(errors, num_instance)
    total = loss.prior_preserving_loss(instance, [prior], [weight])
    assert float(total) == pytest.approx(2 + 5 * weight, rel=1e-5)


def test_without_class_images_the_second_half_is_zero() -> None:
    instance, prior = loss.mean_instance_and_prior_errors(torch.tensor([4.0]), 1)
    assert (float(instance), float(prior)) == (4.0, 0.0)


def test_without_photographs_there_is_nothing_to_learn() -> None:
    with pytest.raises(ConfigError):
        loss.mean_instance_and_prior_errors(torch.tensor([4.0]), 0)


def test_huber_is_the_square_of_small_errors_and_linear_in_large_ones() -> None:
    small = loss.compute_sample_errors(*errors_of(0.01), huber_delta=0.5)
    assert float(small) == pytest.approx(0.01, rel=1e-4)
    ten, twenty = (
        float(loss.compute_sample_errors(*errors_of(e**2), huber_delta=0.5)) for e in (10, 20)
    )
    assert twenty - ten == pytest.approx(2 * 0.5 * 10, rel=1e-4)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_min_snr_weights_are_those_of_the_predicted_image(kind: str) -> None:
    schedule = DDPMScheduler(prediction_type=kind)
    timesteps = torch.tensor([1, 200, 500, 999])
    share = schedule.alphas_cumprod[timesteps]
    snr = share / (1 - share)
    # An error of the image is, squared, SNR times as large in epsilon, and SNR + 1 times in
    # velocity; it is to count min(SNR, gamma) times.
    unit = snr if kind == "epsilon" else snr + 1
    weights = loss.compute_snr_weights(schedule, timesteps, 5.0)
    assert torch.allclose(weights * unit, snr.clamp(max=5.0))
    assert float(snr[0]) > 5 > float(snr[3])


def test_min_snr_weighs_each_sample_by_its_own_timestep_in_both_halves() -> None:
    schedule = DDPMScheduler()
    timesteps = torch.tensor([10, 900, 10, 900])
    errors = loss.compute_sample_errors(*errors_of(1.0, 1.0, 1.0, 1.0))
    weighted = errors * loss.compute_snr_weights(schedule, timesteps, 5.0)
    first, second = (loss.mean_instance_and_prior_errors(weighted[[i, 2 + i]], 1) for i in (0, 1))
    # Easy timesteps count less, and a half's weight comes from its own timesteps alone.
    assert float(first[0]) == pytest.approx(float(first[1]))
    assert float(first[0]) < 0.1 * float(second[0])
    mixed = loss.mean_instance_and_prior_errors(weighted[[0, 3]], 1)
    assert (float(mixed[0]), float(mixed[1])) == (float(first[0]), float(second[1]))


def test_at_zero_snr_velocity_has_no_weight_and_no_nan() -> None:
    schedule = DDPMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    assert float(loss.compute_snr_weights(schedule, torch.tensor([999]), 5.0)) == pytest.approx(0)


def test_targets_follow_the_models_prediction_type() -> None:
    latents, noise = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    timesteps = torch.tensor([10, 900])
    assert torch.equal(loss.compute_target(DDPMScheduler(), latents, noise, timesteps), noise)
    schedule = DDPMScheduler(prediction_type="v_prediction")
    alpha = schedule.alphas_cumprod[timesteps][:, None, None, None]
    velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
    assert torch.allclose(
        loss.compute_target(schedule, latents, noise, timesteps), velocity, atol=1e-6
    )


def test_another_prediction_type_is_refused_by_name() -> None:
    schedule = DDPMScheduler(prediction_type="sample")
    zeros = torch.zeros(1, 4, 2, 2)
    with pytest.raises(ConfigError, match="'sample'"):
        loss.compute_target(schedule, zeros, zeros, torch.tensor([0]))
