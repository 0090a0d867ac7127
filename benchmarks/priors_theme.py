"""Theme `priors`: class images by our pool of actors, against one actor and against Ray Data.

Ray Data is used as its documentation of offline inference has it: a class that loads diffusers'
pipeline, called by `map_batches` in an actor pool of the same size, one core and one thread an
actor. Neither side's time to start actors and load the model counts. Ours encodes every image
for training and commits it with its hashes besides; theirs hands pixels over.
"""

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]
import ray
import ray.data
import torch

from benchmarks.measure import BenchmarkCase, WallAndCpuTime, compare_sides
from benchmarks.sample_theme import load_diffusers_pipeline
from benchmarks.theme import BenchmarkSettings
from cluster.session import ray_connection
from dreambooth_ray.actor_pool import ActorPool, PoolWords
from dreambooth_ray.config.allocator import worker_environment
from dreambooth_ray.config.machines import ClusterConfig, CountRange
from dreambooth_ray.config.sampling_params import SamplingParams
from dreambooth_ray.models.components import load_components
from dreambooth_ray.models.model_directory import model_directory, model_hash
from dreambooth_ray.priors.prior_generation import open_prior_set
from dreambooth_ray.priors.prior_spec import PriorSpec
from dreambooth_ray.priors.prior_worker_actor import PriorWorkerActor
from dreambooth_ray.storage.store import Store

CHUNK = 8
PROMPT = "a robot"
GUIDANCE = 3.0
WORDS = PoolWords("class-image", "lower --workers", "lower --workers")


class PipelineSampler:
    """The class that Ray Data's actors hold."""

    def __init__(self, model: str, steps: int) -> None:
        torch.set_num_threads(1)
        self._pipeline, self._steps = load_diffusers_pipeline(model), steps

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Images of a batch of seeds, with when they were begun and done."""
        start_s = time.time()
        seeds = [int(seed) for seed in batch["id"]]
        images = self._pipeline(
            [PROMPT] * len(seeds), num_inference_steps=self._steps, guidance_scale=GUIDANCE,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        ).images  # fmt: skip
        return {
            "image": np.stack([np.asarray(image) for image in images]),
            "began": np.full(len(seeds), start_s),
            "done": np.full(len(seeds), time.time()),
        }


def sample_with_ray_data(model: str, steps: int, chunks: int, actors: int) -> WallAndCpuTime:
    """One pass of a data set; from the first image begun to the last one done."""
    seed_dataset = ray.data.range(chunks * CHUNK, override_num_blocks=chunks)
    sampled_rows = seed_dataset.map_batches(
        PipelineSampler, fn_constructor_args=(model, steps), batch_size=CHUNK, num_cpus=1,
        compute=ray.data.ActorPoolStrategy(size=actors),
    ).take_all()  # fmt: skip
    return WallAndCpuTime(
        max(row["done"] for row in sampled_rows) - min(row["began"] for row in sampled_rows)
    )


def wait_until_machine_idle(limit_s: float = 10.0) -> None:
    """Wait until the machine has little to do: Ray Data's actors come and go with every pass."""
    start_s = time.monotonic()
    while time.monotonic() - start_s < limit_s:
        idle_before_s, poll_start_s = _read_cpu_idle_s(), time.monotonic()
        time.sleep(0.5)
        if _read_cpu_idle_s() - idle_before_s > 0.9 * (os.cpu_count() or 1) * (
            time.monotonic() - poll_start_s
        ):
            return


def _read_cpu_idle_s() -> float:
    """Seconds that the cores have been idle, all together."""
    cpu_stat_fields = Path("/proc/stat").read_text().split(None, 5)
    return int(cpu_stat_fields[4]) / os.sysconf("SC_CLK_TCK")


class PriorActors:
    """Our pool, its actors alive from turn to turn; every turn samples new chunks."""

    def __init__(self, setting: BenchmarkSettings, steps: int, folder: Path, actors: int) -> None:
        model_folder = model_directory(setting.model)
        components = load_components(model_folder)
        unet_config: Any = components.unet.config
        prior_spec = PriorSpec(
            model_hash(model_folder), (PROMPT,),
            SamplingParams(num_inference_steps=steps, guidance_scale=GUIDANCE),
            int(unet_config.sample_size) * components.latent_factor, 0, CHUNK,
        )  # fmt: skip
        prior_store = open_prior_set(Store(str(folder)), prior_spec)
        actor_class = ray.remote(num_cpus=1, runtime_env=worker_environment())(PriorWorkerActor)
        worker_actors = [
            actor_class.remote(str(model_folder), prior_store.uri, prior_spec, False)
            for _ in range(actors)
        ]
        worker_iterator: Iterator[Any] = iter(worker_actors)
        actor_range, wait_limit_s = CountRange(min=actors, max=actors), ClusterConfig().wait_s
        self._actor_pool = ActorPool[Any](
            lambda: next(worker_iterator), actor_range, actors, wait_limit_s, WORDS
        )
        # Answered once they have loaded, which the pool has asked of them.
        self._pids = [worker.__ray_call__.remote(lambda _: os.getpid()) for worker in worker_actors]
        self._processes = list[psutil.Process]()
        self._next_chunk = 0

    def wait_until_ready(self) -> None:
        """Wait until the actors have loaded their model."""
        self._processes = [psutil.Process(pid) for pid in ray.get(self._pids)]

    def sample_chunks(self, chunks: int) -> WallAndCpuTime:
        """So many chunks, committed."""
        chunk_numbers = list(range(self._next_chunk, self._next_chunk + chunks))
        self._next_chunk += chunks

        def start_chunk(actor: Any, number: int) -> Any:
            return actor.generate.remote(number)

        start_s, start_cpu_s = time.perf_counter(), self._read_cpu_s()
        while chunk_numbers:
            for chunk_number, _ in self._actor_pool.process_chunks(chunk_numbers, start_chunk):
                if chunk_number in chunk_numbers:
                    chunk_numbers.remove(chunk_number)
        return WallAndCpuTime(time.perf_counter() - start_s, self._read_cpu_s() - start_cpu_s)

    def _read_cpu_s(self) -> float:
        """Processor time of all actors since they started."""
        cpu_times = [process.cpu_times() for process in self._processes]
        return float(sum(t.user + t.system for t in cpu_times))


def measure(setting: BenchmarkSettings) -> dict[str, Any]:
    """The largest number of actors against one, and against as many of Ray Data's."""
    num_steps, num_actors = setting.pick(6, 25), max(setting.workers)
    num_pairs, num_chunks = (
        setting.pick(1, 6),
        setting.pick(2, 4) * num_actors,
    )
    with (
        tempfile.TemporaryDirectory(prefix="dreambooth-bench-") as temp_folder,
        ray_connection(ClusterConfig(), 3 * num_actors + 2, is_bare=True),
    ):
        ray.data.DataContext.get_current().enable_progress_bars = False
        many_actors = PriorActors(setting, num_steps, Path(temp_folder) / "many", num_actors)
        one_actor = PriorActors(setting, num_steps, Path(temp_folder) / "one", 1)
        many_actors.wait_until_ready()
        one_actor.wait_until_ready()

        def sample_when_idle() -> WallAndCpuTime:
            wait_until_machine_idle()
            return many_actors.sample_chunks(num_chunks)

        base_case = BenchmarkCase(
            "actors against one", "one_worker", CHUNK * num_chunks // num_actors, "images"
        )
        cases = [
            compare_sides(
                BenchmarkCase(
                    f"{num_actors} actors against one",
                    base_case.peer, base_case.amount, base_case.unit,
                    0.95 * num_actors if num_actors > 1 else None, CHUNK * num_chunks,
                ),
                lambda: many_actors.sample_chunks(num_chunks),
                lambda: one_actor.sample_chunks(num_chunks // num_actors),
                setting.pick(2, 12),
            ),
            compare_sides(
                BenchmarkCase(
                    "as many actors of Ray Data", "ray_data", CHUNK * num_chunks, "images"
                ),
                sample_when_idle,
                lambda: sample_with_ray_data(setting.model, num_steps, num_chunks, num_actors),
                num_pairs,
                warmups=0,
            ),
        ]  # fmt: skip
    return {
        "cases": cases,
        "lost": compute_lost_speedup(cases[0], num_actors),
        "below_the_bar": explain_missed_bar(cases[0], num_actors),
        "configuration": {
            "actors": num_actors, "images_a_turn": CHUNK * num_chunks, "steps": num_steps,
            "solver": "ddim", "guidance_scale": GUIDANCE, "chunk": CHUNK,
        },
    }  # fmt: skip


def compute_lost_speedup(case: dict[str, Any], actors: int) -> dict[str, float]:
    """Shares of what several actors could do at most, by what takes them."""
    if "ratio" not in case:
        return {}
    cpu_ratio = case["cpu_ratio"]["median"]
    return {
        "to the machine": round(1 - cpu_ratio, 3),
        "to waiting, of what is left": round(1 - case["ratio"]["median"] / (cpu_ratio * actors), 3),
    }


def explain_missed_bar(case: dict[str, Any], actors: int) -> list[str]:
    """Why the bar was not reached, in a sentence; nothing if it was."""
    if case.get("reached", True):
        return []
    lost_speedup_shares, cpu_ratio = compute_lost_speedup(case, actors), case["cpu_ratio"]["median"]
    return [
        f"{case['case']}: {case['ratio']['median']:.2f} of {case['bar']}. With {actors} actors at "
        f"work an image takes {1 / cpu_ratio:.3f} times the processor time that it takes one "
        f"alone: actors that never waited would come to {cpu_ratio * actors:.2f}. Waiting for "
        f"the next chunk, for the last one of a turn and for Ray's processes takes "
        f"{lost_speedup_shares['to waiting, of what is left']:.1%} of that."
    ]
