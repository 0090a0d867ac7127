"""A queue of subjects on a registered cluster: workers come and go, and are killed.

The cluster is a real head of Ray on this machine, the storage a real object store.
"""

import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import yaml

from cluster.cluster_registry import find_cluster
from cluster.fleet_jobs import RayFleetJobs
from cluster.fleet_store import FleetStore
from dreambooth_ray.runs import is_finished
from dreambooth_ray.storage.store import Store
from dreambooth_ray.toyworld.photoshoot import write_photographs
from dreambooth_ray.training.metrics_log import read_metrics
from tests.integration.conftest import dreambooth
from tests.integration.jobs_head import jobs_head
from tests.integration.seaweed import Seaweed
from tests.object_store import pointed_at
from tests.waiting import wait_until

pytestmark = [pytest.mark.fault, pytest.mark.timeout(1200)]

NAMES = [f"robot-{number}" for number in range(6)]
STEPS = 60
SETTINGS = [
    "train.method=lora", "train.text_encoder=false", "sample.every=0", "prior.count=6",
    "prior.actors=1", "prior.num_inference_steps=3", f"train.steps={STEPS}",
    "checkpoint.every=10", "cluster.workers=1", "cluster.lease_s=10",
]  # fmt: skip
WORDS = ("--slots", "4", "--parallel", "0-2", "--idle-s", "5", "--stay")


@dataclass(frozen=True)
class Site:
    """A cluster, a storage, and a folder to call from."""

    folder: Path
    uri: str

    def __call__(self, verb: str, *words: str) -> str:
        """A verb of `dreambooth fleet` with the cluster; what it prints."""
        done = dreambooth(
            "fleet", verb, "--storage", self.uri, "--cluster", "here", *words, cwd=self.folder
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    @property
    def jobs(self) -> RayFleetJobs:
        return RayFleetJobs(find_cluster("here", self.folder / "clusters.yaml"))

    def read_log(self) -> str:
        jobs = self.jobs
        return jobs.logs(jobs.get(self.uri))

    def wait_for(self, is_met: Callable[[], bool]) -> None:
        """Until it is; fails with the log of a job that has ended meanwhile."""
        jobs = self.jobs
        job = jobs.get(self.uri)

        def look() -> bool:
            assert is_met() or jobs.is_active(job), jobs.state(job) + "\n" + jobs.logs(job)
            return is_met()

        wait_until(look, 600)

    def run_of(self, name: str) -> Store:
        return Store(f"{self.uri}/runs/{name}")

    def add(self, *names: str) -> None:
        """Put subjects into the queue."""
        subjects = []
        for name in names:
            write_photographs(self.folder / name, len(name), "robot", 3, size_px=96)
            own = {"id": name, "photos": name, "class_noun": "robot", "owner": name[-1]}
            subjects.append(own)
        file = self.folder / f"{names[0]}.yaml"
        overrides = [*SETTINGS, f"storage.uri={self.uri}"]
        fleet = {"recipe": "toy-robot", "overrides": overrides, "subjects": subjects}
        file.write_text(yaml.safe_dump(fleet))
        added = dreambooth("fleet", "add", file.name, cwd=self.folder)
        assert added.returncode == 0, added.stderr

    def count_steps(self) -> int:
        return sum(len(read_metrics(self.run_of(name))) for name in NAMES)


def find_process(words: str) -> psutil.Process:
    """A process by what its command line contains; the newest."""
    return max(
        (
            process
            for process in psutil.process_iter(["cmdline", "create_time"])
            if words in " ".join(process.info["cmdline"] or [])
        ),
        # A shell and what it starts may be of one tick of the clock; the later has the higher id.
        key=lambda process: (process.info["create_time"], process.pid),
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, seaweed: Seaweed) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    with (
        pointed_at(seaweed.environment),
        tempfile.TemporaryDirectory(prefix="ray-") as ray_folder,
        jobs_head(folder, ray_folder, num_cpus=5) as (address, token),
    ):
        entry = {"address": address, "token": token, "code": "installed"}
        text = json.dumps({"here": {**entry, "env": seaweed.environment}})  # JSON is YAML
        (folder / "clusters.yaml").write_text(text)
        yield Site(folder, f"{seaweed.make_bucket('fleet')}/runs")


def test_a_killed_worker_and_a_killed_driver_lose_no_subject_and_no_step(site: Site) -> None:
    site.add(*NAMES)
    fleet = site("run", *WORDS)
    assert site("run", *WORDS) == fleet  # it is started once
    site.wait_for(lambda: site.count_steps() >= STEPS)
    # Six subjects take three workers of two slots, of which two may be.
    assert "a worker of 2 slots is started, of now 2" in site.read_log()
    find_process("ray::SlotActor").kill()
    site.wait_for(lambda: "a worker is lost" in site.read_log())
    num_steps = site.count_steps()
    site.wait_for(lambda: site.count_steps() > num_steps)
    find_process("'--stay']; from dreambooth_ray").kill()
    jobs = site.jobs
    wait_until(lambda: jobs.get(site.uri).state == "failed")
    assert site("run", *WORDS) == fleet
    assert jobs.get(site.uri).attempt == 2
    site.wait_for(lambda: all(is_finished(site.run_of(name)) for name in NAMES))
    for name in NAMES:
        steps = [record["step"] for record in read_metrics(site.run_of(name))]
        assert steps == list(range(1, STEPS + 1)), name
    assert len(Store(site.uri).names("priors")) == 1
    site.wait_for(lambda: "an idle worker is ended; 0 are left" in site.read_log())


def test_a_standing_fleet_has_a_worker_for_one_who_comes_later(site: Site) -> None:
    """After the test before: nobody is there."""
    num_started = site.read_log().count("is started, of now 1")
    site.add("late")
    site.wait_for(lambda: is_finished(site.run_of("late")))
    site.wait_for(lambda: site.read_log().rstrip().endswith("ended; 0 are left"))
    assert site.read_log().count("is started, of now 1") == num_started + 1
    assert site("stop").endswith("stopped")
    assert site("stop").endswith("does not run: stopped")
    ended = FleetStore(site.uri).list_ended()
    assert {work.id: work.state for _, work in ended} == dict.fromkeys([*NAMES, "late"], "done")


def test_a_folder_of_this_machine_is_refused_by_name(site: Site) -> None:
    words = ("--storage", str(site.folder), "--cluster", "here")
    refused = dreambooth("fleet", "run", *words, cwd=site.folder)
    assert refused.returncode == 2
    assert "it is a folder of this machine" in refused.stderr
