"""Settings of a theme and its record."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any, Literal

from benchmarks.ceiling import measure_ceilings
from benchmarks.conditions import read_conditions, read_load_average
from benchmarks.themes import THEMES
from dreambooth_ray.errors import ConfigError

Profile = Literal["smoke", "full"]


@dataclass(frozen=True)
class BenchmarkSettings:
    """workers: numbers of workers or actors to compare; model: as in model.uri."""

    model: str = "toyworld"
    workers: tuple[int, ...] = (1, 2)
    profile: Profile = "full"

    def pick(self, smoke: int, full: int) -> int:
        """A number by profile."""
        return smoke if self.profile == "smoke" else full


Measure = Callable[[BenchmarkSettings], dict[str, Any]]


def parse_worker_counts(text: str) -> tuple[int, ...]:
    """ "1,2" as (1, 2); raises ConfigError."""
    try:
        worker_counts = tuple(sorted({int(word) for word in text.split(",")}))
    except ValueError as error:
        raise ConfigError(f"--workers={text!r} is not a list of counts such as 1,2") from error
    if worker_counts[0] < 1:
        raise ConfigError(f"--workers={text!r}: a count below 1; give counts such as 1,2")
    return worker_counts


def run_benchmark_theme(theme: str, setting: BenchmarkSettings) -> dict[str, Any]:
    """Measure a theme.

    returns: its record. `ratios` has one case for each peer, named in `headline`; all cases
        are in `cases`.
    raises: ConfigError for a theme or model that is not there
    """
    if theme not in THEMES:
        raise ConfigError(f"no theme {theme!r}; there are {', '.join(THEMES)}")
    machine_conditions = read_conditions()
    measure_theme: Measure = import_module(f"benchmarks.{THEMES[theme][0]}").measure
    theme_results = measure_theme(setting)
    return {
        "theme": theme,
        "ratios": select_headline_ratios(theme_results["cases"], theme_results.get("headline", {})),
        **theme_results,
        "setting": asdict(setting),
        "ceilings": measure_ceilings(),
        "conditions": machine_conditions,
        "load_average_after": read_load_average(),
    }


def select_headline_ratios(
    cases: list[dict[str, Any]], headline: dict[str, str]
) -> dict[str, dict[str, float]]:
    """The ratio of each peer's headline case; its first if none is named."""
    headline_ratios: dict[str, dict[str, float]] = {}
    for case in cases:
        baseline_name = case["peer"]
        if "ratio" in case and headline.get(baseline_name, case["case"]) == case["case"]:
            headline_ratios.setdefault(baseline_name, case["ratio"])
    return headline_ratios
