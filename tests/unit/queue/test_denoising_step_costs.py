import pytest

from dreambooth_ray.queue.denoising_step_costs import StepCosts, estimate_denoising_step_cost


def test_before_a_step_pixels_are_the_cost() -> None:
    assert estimate_denoising_step_cost(16.0, {}) == 16.0
    step_costs = StepCosts()
    assert (step_costs.cost(4.0), step_costs.step_s, step_costs.costs_by_size()) == (4.0, 0.0, {})


def test_costs_are_those_measured_and_in_proportion_beyond() -> None:
    step_costs = StepCosts()
    for size, num_images, seconds in ((1.0, 8, 0.2), (4.0, 8, 1.2), (16.0, 1, 1.0)):
        step_costs.record_sampling_step(size, num_images, 8, 100.0)  # the first traces
        for _ in range(3):
            step_costs.record_sampling_step(size, num_images, 8, seconds)
    assert step_costs.step_s == pytest.approx(0.025)
    assert step_costs.cost(1.0) == pytest.approx(1.0)
    assert step_costs.cost(4.0) == pytest.approx(6.0)
    assert step_costs.cost(16.0) == pytest.approx(40.0)
    assert step_costs.cost(64.0) == pytest.approx(160.0)
    assert step_costs.cost(0.25) == pytest.approx(0.25)


def test_a_batch_with_room_in_it_says_nothing_of_full_ones() -> None:
    step_costs = StepCosts()
    for _ in range(3):
        step_costs.record_sampling_step(1.0, 1, 8, 0.1)
    assert step_costs.step_s == 0.0
    for _ in range(3):
        step_costs.record_sampling_step(1.0, 8, 8, 0.2)
    assert step_costs.step_s == pytest.approx(0.025)
    for _ in range(60):
        step_costs.record_sampling_step(1.0, 1, 8, 0.1)
    assert step_costs.step_s == pytest.approx(0.025)


def test_a_batch_with_room_that_is_quicker_says_that_full_ones_are() -> None:
    """A speed that was measured at a bad moment, such as a start, is not believed for ever."""
    step_costs = StepCosts()
    for _ in range(3):
        step_costs.record_sampling_step(1.0, 8, 8, 8.0)
    for _ in range(200):
        step_costs.record_sampling_step(1.0, 1, 8, 0.1)
    assert step_costs.step_s == pytest.approx(0.1, rel=0.01)


def test_a_machine_that_has_become_slower_is_noticed() -> None:
    step_costs = StepCosts()
    for _ in range(3):
        step_costs.record_sampling_step(1.0, 8, 8, 0.2)
    for _ in range(60):
        step_costs.record_sampling_step(1.0, 8, 8, 0.4)
    assert step_costs.step_s == pytest.approx(0.05, rel=0.01)
