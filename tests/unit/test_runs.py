import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from dreambooth_ray.config.load import dump_config, override_config, parse_config
from dreambooth_ray.config.schema import Config
from dreambooth_ray.data.run_inputs import RunInputs, read_model_pins
from dreambooth_ray.display import QuietDisplay
from dreambooth_ray.errors import CheckpointError, ConfigError, StorageError
from dreambooth_ray.preparation import prepare_run
from dreambooth_ray.runs import delete_run, is_finished, load_run_config, open_run, read_run_config
from dreambooth_ray.storage.fence import RunHistory
from dreambooth_ray.storage.lease_keeper import LeaseKeeper, LeaseWaiter, get_run_lease_files
from dreambooth_ray.storage.store import Store
from dreambooth_ray.storage.version_catalog import SubjectVersionCatalog, publish_run
from dreambooth_ray.training.evaluation_decision import read_early_end_step, write_early_end_step


@pytest.fixture
def config(tmp_path: Path) -> Config:
    text = f"run_id: one\nsubject: {{photos: {tmp_path}, class_noun: robot}}"
    return parse_config(text, "x", [f"storage.uri={tmp_path / 'out'}"])


def test_a_changed_configuration_is_named_key_by_key(config: Config) -> None:
    run = open_run(config)
    changed = override_config(config, ["train.lr=1e-3", "train.steps=7"])
    with pytest.raises(
        ConfigError, match=r"train\.lr was 5e-06 and is 0\.001.*train\.steps.*force"
    ):
        open_run(changed)
    assert read_run_config(run).train.lr == 5e-6
    write_early_end_step(run, 5)
    assert read_run_config(open_run(changed, force=True)).train.lr == 1e-3
    assert read_early_end_step(run, run.names(), RunHistory()) is None


def test_a_run_stored_without_its_model_takes_over_what_the_model_fills_in(
    config: Config, tiny_model: Path, photos: Path
) -> None:
    """As `submit` stores it: the host that trains knows the model first."""
    settings = [f"subject.photos={photos}", f"model.uri={tiny_model}", "prior.count=2"]
    run = open_run(override_config(config, [*settings, "train.resolution=64"]))
    sent = read_run_config(run)
    prepared = prepare_run(sent, QuietDisplay()).config
    assert prepared.train.lora.target_modules != sent.train.lora.target_modules
    shorter, requested = (override_config(one, ["train.steps=3"]) for one in (prepared, sent))
    with pytest.raises(ConfigError, match=r": train\.steps was 400 and is 3; ch"):
        open_run(shorter, requested=requested)
    assert read_run_config(run) == sent
    open_run(prepared, requested=sent)
    assert read_run_config(run).train.lora == prepared.train.lora
    # Sent again, as by who had no answer.
    assert open_run(sent).uri == run.uri
    assert read_run_config(run).train.lora == prepared.train.lora
    with pytest.raises(ConfigError, match=r"train\.steps was 400 and is 3"):
        open_run(override_config(sent, ["train.steps=3"]))
    open_run(override_config(prepared, ["train.steps=3"]), force=True)
    with pytest.raises(ConfigError, match=r"train\.steps was 3 and is 400"):
        open_run(sent)


def test_by_what_nothing_is_evaluated_makes_no_other_run(config: Config) -> None:
    run = open_run(config)
    changed = override_config(config, ["choice.protocol=dreambench"])
    assert open_run(changed).uri == run.uri
    with pytest.raises(ConfigError, match=r"choice\.rule was 'last' and is 'best'"):
        open_run(override_config(config, ["choice.rule=best"]))


@pytest.fixture
def half_way(config: Config, photos: Path, tmp_path: Path) -> Config:
    """A run at step 150 of 400, on photographs of its own."""
    shutil.copytree(photos, tmp_path / "photos")
    settings = [f"subject.photos={tmp_path / 'photos'}", "train.steps=400", "train.resolution=64"]
    config = override_config(config, [*settings, "prior.count=2"])
    run = open_run(config, inputs=prepare_run(config, QuietDisplay()).inputs)
    run.write("checkpoints/step-00000150.json", b"{}")
    return config


def test_a_change_that_is_refused_is_not_stored(half_way: Config) -> None:
    run = find_store(half_way)
    for overrides, said in (
        (["train.steps=60"], r"train\.steps=60: the run is at step 150 already"),
        (["train.lr=1e-3", "train.method=lora"], r"train\.method was 'full' and is 'lora'"),
    ):
        for force in (True, False):
            with pytest.raises(ConfigError, match=said):
                open_run(override_config(half_way, overrides), force)
    assert read_run_config(run) == half_way


def find_store(config: Config) -> Store:
    return Store(f"{config.storage.uri}/runs/{config.run_id}")


def test_nothing_is_changed_under_a_process_that_trains(half_way: Config) -> None:
    run = find_store(half_way)
    changed = override_config(half_way, ["train.lr=1e-3"])
    with (
        LeaseKeeper(LeaseWaiter(get_run_lease_files(run), lease_s=60.0), print),
        pytest.raises(StorageError, match="is being trained by"),
    ):
        open_run(changed, force=True)
    assert read_run_config(run) == half_way
    open_run(changed, force=True)
    assert read_run_config(run) == changed


def test_other_photographs_are_another_run(half_way: Config) -> None:
    folder = Path(half_way.subject.photos)
    first, *others = sorted(folder.iterdir())

    def take_up(force: bool = False) -> None:
        open_run(half_way, force, prepare_run(half_way, QuietDisplay()).inputs)

    take_up()
    first.with_suffix(".txt").write_text("a sks robot on the moon")
    with pytest.raises(ConfigError, match=rf"subject\.photos: 1 captions.*, of {first.name}"):
        take_up()
    first.with_suffix(".txt").unlink()
    first.rename(folder / "zz.png")
    with pytest.raises(ConfigError, match=r"in another order"):
        take_up()
    (folder / "zz.png").rename(first)
    take_up()
    for path in others:
        path.unlink()
    Image.new("RGB", (80, 80), "red").save(first)
    with pytest.raises(ConfigError, match=r"of 3 photographs 3 are gone.*1 of 1 are new.*--force"):
        take_up()
    take_up(force=True)
    take_up()


def test_other_class_photographs_are_another_run(
    half_way: Config, photos: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(photos, tmp_path / "class")
    config = override_config(half_way, ["run_id=two", f"prior.folder={folder}"])
    open_run(config, inputs=prepare_run(config, QuietDisplay()).inputs)
    Image.new("RGB", (80, 80), "red").save(sorted(folder.iterdir())[0])
    with pytest.raises(ConfigError, match=r"prior\.folder: its class photographs are others"):
        open_run(config, inputs=prepare_run(config, QuietDisplay()).inputs)


def test_a_run_of_an_earlier_release_remembers_from_now_on(half_way: Config) -> None:
    run = find_store(half_way)
    run.remove_file("inputs.json")
    inputs = prepare_run(half_way, QuietDisplay()).inputs
    open_run(half_way, inputs=inputs)
    assert inputs is not None and run.read("inputs.json") == inputs.to_json()


def test_a_start_that_is_refused_tells_a_run_nothing(half_way: Config) -> None:
    run = find_store(half_way)
    run.remove_file("inputs.json")
    inputs = prepare_run(half_way, QuietDisplay()).inputs
    with pytest.raises(ConfigError, match=r"train\.steps"):
        open_run(override_config(half_way, ["train.steps=77"]), inputs=inputs)
    assert not run.exists("inputs.json")


def _commit(run: Store) -> SubjectVersionCatalog:
    run.write("bundle/manifest.json", b'{"about": {"kind": "bundle"}, "files": []}')
    publish_run(run)
    return SubjectVersionCatalog(Store(run.uri.rpartition("/runs/")[0]))


def test_a_run_that_starts_anew_is_served_no_longer(config: Config) -> None:
    catalog = _commit(open_run(config))
    assert catalog.list_subjects() == ["one"]
    run = open_run(override_config(config, ["train.lr=1e-3"]), force=True)
    assert catalog.list_subjects() == [] and not is_finished(run)


def test_a_deleted_run_leaves_nothing(config: Config, tmp_path: Path) -> None:
    run = open_run(config)
    catalog = _commit(run)
    holder = LeaseKeeper(LeaseWaiter(get_run_lease_files(run), lease_s=60.0), print)
    with holder, pytest.raises(StorageError, match="is being trained by"):
        delete_run(run)
    assert catalog.list_subjects() == ["one"]
    delete_run(run)
    assert catalog.list_subjects() == []
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_relative_model_is_found_from_any_folder(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "m").mkdir(parents=True)
    relative = override_config(config, ["model.uri=models/m"])
    run = open_run(relative)
    assert read_run_config(run).model.uri == str(tmp_path / "models" / "m")
    open_run(relative)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    with pytest.raises(ConfigError, match=r"model\.uri was"):
        open_run(relative)


def test_where_a_run_works_may_change(config: Config) -> None:
    open_run(config)
    open_run(override_config(config, ["cluster.workers=2", "checkpoint.keep=9"]))


def test_a_run_is_found_by_its_folder_with_changes(config: Config) -> None:
    run = open_run(config)
    found_config = load_run_config(run.uri, ["train.steps=9"])
    assert (found_config.train.steps, found_config.run_id) == (9, "one")
    with pytest.raises(CheckpointError, match="is not a run"):
        load_run_config(str(Path(run.uri).parent), [])


def test_keys_are_in_no_dump_and_no_text(config: Config) -> None:
    secret = override_config(config, ["storage.options.secret=hidden", "storage.uri=s3://b"])
    assert secret.storage.options == {"secret": "hidden"}
    assert override_config(secret, ["train.steps=9"]).storage.options == {"secret": "hidden"}
    assert "hidden" not in dump_config(secret) + repr(secret) + str(secret)


def test_any_number_of_elastic_workers_shares_a_batch(config: Config) -> None:
    elastic = override_config(
        config, ["cluster.workers={min: 1, max: 4}", "train.batch_size=24", "train.accumulate=2"]
    )
    assert [elastic.count_accumulation_parts(n) for n in (1, 2, 3, 4)] == [8, 4, 4, 2]
    with pytest.raises(ConfigError, match="3 workers"):
        override_config(config, ["cluster.workers={min: 2, max: 4}", "train.batch_size=8"])


@pytest.mark.parametrize(
    ("override", "words"),
    [("train.ema_decay=0.9", "ema_decay needs"), ("train.optimizer=prodigy", "can't be sharded")],
)
def test_what_can_not_be_sharded_is_refused(config: Config, override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        override_config(config, ["train.strategy=deepspeed", "train.lr=1", override])


@pytest.mark.parametrize(
    ("module", "without"),
    [
        ("dreambooth_ray.config.load", {"torch", "ray"}),
        ("dreambooth_ray.runs", {"torch", "ray"}),
        ("cluster.progress", {"torch"}),
        ("cluster.preflight_checks", {"torch"}),
        ("dreambooth_ray.memory.training_memory", {"torch"}),
        ("dreambooth_ray.pipeline", {"diffusers", "transformers", "pytorch_lightning"}),
        ("dreambooth_ray.priors.prior_worker_actor", {"torch", "diffusers"}),
        ("serve.app", {"torch", "diffusers", "transformers"}),
    ],
)
def test_nobody_waits_for_what_they_do_not_need(module: str, without: set[str]) -> None:
    code = f"import sys, {module}; assert not {without} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_model_of_the_hub_keeps_its_name_and_the_commit_of_its_first_start(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    from_hub = override_config(config, ["model.uri=someone/tiny@v1"])
    first, second = (f"someone/tiny@{digit * 40}" for digit in "ab")

    def inputs(pin: str) -> RunInputs:
        return RunInputs((), "", tmp_path, {"someone/tiny@v1": pin})

    run = open_run(from_hub, inputs=inputs(first))
    assert read_run_config(run).model.uri == "someone/tiny@v1"
    assert read_model_pins(run) == {"someone/tiny@v1": first}
    open_run(from_hub, inputs=inputs(first))
    with pytest.raises(ConfigError, match=f"is {second} now, and the run was started with {first}"):
        open_run(from_hub, inputs=inputs(second))
    assert read_model_pins(Store(str(tmp_path / "none"))) == {}
