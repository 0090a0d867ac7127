"""Solvers of flow matching as tables; see `solvers` for what a table is.

Legend: x = (1 - sigma) x0 + sigma eps; m the velocity eps - x0 that the network predicts, so that
x0 = x - sigma m. Times are sigmas.
"""

import itertools
import math

from dreambooth_ray.objective.noise_schedule import FlowSchedule
from dreambooth_ray.sampling.solver_steps import Pair, SolverStep, SolverTable


def _alpha_and_sigma(sigma: float) -> Pair:
    return 1.0 - sigma, sigma


def _make_solver_step(
    sigma: float,
    sigma_to: float,
    b: tuple[float, ...],
    a: float = 1.0,
    *,
    stores_clean: bool = False,
    keeps_history: bool = False,
) -> SolverStep:
    x0_weights = 1.0, -sigma
    return SolverStep(
        sigma, _alpha_and_sigma(sigma), _alpha_and_sigma(sigma_to),
        x0_weights if stores_clean else (0.0, 1.0), x0_weights, a, b, keeps_history=keeps_history,
    )  # fmt: skip


def build_flow_euler(schedule: FlowSchedule, begin: int) -> SolverTable:
    """The straight line, as diffusers' FlowMatchEulerDiscreteScheduler."""
    sigma_pairs = itertools.pairwise(schedule.sigmas[begin:])
    return SolverTable(
        tuple(
            _make_solver_step(sigma, sigma_to, (sigma_to - sigma,))
            for sigma, sigma_to in sigma_pairs
        ),
        1.0,
    )


def build_flow_heun(schedule: FlowSchedule, begin: int) -> SolverTable:
    """Heun's: Euler's step, then the mean of the velocities at both ends; the last is Euler's.

    As diffusers' FlowMatchHeunDiscreteScheduler (Karras et al. 2022, arXiv 2206.00364, alg. 1).
    """
    solver_steps = []
    for sigma, sigma_to in itertools.pairwise(schedule.sigmas[begin:]):
        sigma_step = sigma_to - sigma
        solver_steps.append(_make_solver_step(sigma, sigma_to, (sigma_step,), keeps_history=True))
        if sigma_to > 0:
            solver_steps.append(
                _make_solver_step(sigma_to, sigma_to, (sigma_step / 2, -sigma_step / 2))
            )
    return SolverTable(tuple(solver_steps), 1.0)


def build_flow_dpmpp_2m(schedule: FlowSchedule, begin: int) -> SolverTable:
    """Lu et al. 2022, arXiv 2211.01095, algorithm 2, with alpha = 1 - sigma; see `_dpmpp_2m`."""
    sigmas, solver_steps = schedule.sigmas, []
    num_steps = len(sigmas) - 1
    for i in range(begin, num_steps):
        (alpha, sigma), (alpha_to, sigma_to) = (
            _alpha_and_sigma(sigmas[i]),
            _alpha_and_sigma(sigmas[i + 1]),
        )
        x0_factor = alpha * sigma_to / sigma - alpha_to
        history_weights: tuple[float, ...] = (-x0_factor,)
        if begin < i < num_steps - 1:
            log_snr_before, log_snr_now, log_snr_after = (
                _log_snr(s) for s in sigmas[i - 1 : i + 2]
            )
            second_order_weight = (
                0.5 * x0_factor * (log_snr_after - log_snr_now) / (log_snr_now - log_snr_before)
            )
            history_weights = (-x0_factor - second_order_weight, second_order_weight)
        solver_steps.append(
            _make_solver_step(
                sigma,
                sigma_to,
                history_weights,
                sigma_to / sigma,
                stores_clean=True,
                keeps_history=True,
            )
        )
    return SolverTable(tuple(solver_steps), 1.0)


def _log_snr(sigma: float) -> float:
    return math.log((1 - sigma) / sigma) if sigma < 1 else -math.inf


FLOW_BUILDERS = {
    "euler": build_flow_euler,
    "heun": build_flow_heun,
    "dpmpp_2m": build_flow_dpmpp_2m,
}
