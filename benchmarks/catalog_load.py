"""What a million subjects cost an endpoint, and whether an operation's requests grow with them.

    python -m benchmarks.catalog_load --folder /tmp/million --json benchmarks/results/catalog.json
    python -m benchmarks.catalog_load --storage s3://bucket/folder --json ...

In a local folder: a gateway's process from its start to its first answer, look-ups and pages over
HTTP, and its memory. In an object store: the requests of each operation at growing numbers of
subjects. Both take part in one record. What is written is removed again, but for a folder with
--keep: it is filled in one call, and measured in others, when the machine is quiet.
"""

import argparse
import hashlib
import json
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.catalog_gateway import GatewayProcess
from benchmarks.conditions import read_conditions, read_load_average
from dreambooth_ray.storage import paths
from dreambooth_ray.storage.catalog import (
    Catalog,
    entry_name,
    listing_position,
    publish_run,
    version_name,
    withdraw_run,
)
from dreambooth_ray.storage.manifest import MANIFEST
from dreambooth_ray.storage.store import Store
from dreambooth_ray.storage.subject_version import parse_version

LOOKUPS, UNKNOWN, PAGES, PAGE = 2000, 1000, 200, 100
READY_S, LOOKUP_MS, PAGE_MS, MEMORY_BYTES = 10.0, 50.0, 100.0, 2**30
_WRITES_AT_ONCE = 2000
_FILLED = "filled.json"
# What stands for a subject and its manifest's hash in a file that many are made of.
_SUBJECT, _DIGEST = "SUBJECT", "c0ffee" * 10 + "c0ff"


def subject_name(number: int) -> str:
    """A name as people give them."""
    return f"dog-{number:07d}"


def make_manifest(subject: str) -> bytes:
    """Of a bundle with this subject."""
    bundle_metadata = {"kind": "bundle", "created_at": 1.0, "prompt": "a photo of a sks dog"}
    return json.dumps(
        {"format": 1, "about": bundle_metadata | {"subject": subject}, "files": []}
    ).encode()


def make_files(numbers: range) -> Iterator[tuple[str, bytes]]:
    """Names and contents of what commits of these subjects would leave in the catalog.

    Filled in from those of one subject: a million of them are made.
    """
    entry_template, version_template = _make_templates()
    for number in numbers:
        subject = subject_name(number)
        digest = hashlib.sha256(make_manifest(subject)).hexdigest()
        for file_name, template in (
            (entry_name(subject), entry_template),
            (version_name(subject, digest[:12]), version_template),
        ):
            record_text = template.replace(_SUBJECT, subject).replace(_DIGEST, digest)
            yield file_name, record_text.replace(_DIGEST[:12], digest[:12]).encode()


def _make_templates() -> tuple[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        catalog = Catalog(Store(folder))
        version = parse_version(_SUBJECT, make_manifest(_SUBJECT))
        if version is None:
            raise ValueError("the manifest of the benchmark is none")
        catalog.add(version.model_copy(update={"manifest_sha256": _DIGEST}))
        record_names = (entry_name(_SUBJECT), version_name(_SUBJECT, _DIGEST[:12]))
        return tuple(catalog.store.read(name).decode() for name in record_names)  # type: ignore[return-value]


def fill_folder(folder: Path, num_subjects: int) -> None:
    """A local catalog; without fsync, unlike commits, as it is not kept."""
    for hash_prefix in range(256):
        for catalog_folder in (paths.CATALOG, paths.CATALOG_VERSIONS):
            (folder / catalog_folder / f"{hash_prefix:02x}").mkdir(parents=True, exist_ok=True)
    for file_name, file_content in make_files(range(num_subjects)):
        (folder / file_name).write_bytes(file_content)
    (folder / paths.CATALOG_COMPLETE).write_text('{"format": 1}')


def fill_store(store: Store, numbers: range) -> None:
    """The same in an object store, many writes at once."""
    filesystem, root = store.filesystem
    file_batch: dict[str, bytes] = {}
    for file_name, file_content in make_files(numbers):
        file_batch[f"{root}/{file_name}"] = file_content
        if len(file_batch) == _WRITES_AT_ONCE:
            filesystem.pipe(file_batch)
            file_batch = {}
    if file_batch:
        filesystem.pipe(file_batch)


def prepare_folder(folder: Path, num_subjects: int) -> float:
    """Fill it, unless an earlier call has; the seconds that took."""
    record_file = folder / _FILLED
    if record_file.exists():
        record = json.loads(record_file.read_text())
        if record["subjects"] != num_subjects:
            raise SystemExit(f"{folder} has {record['subjects']} subjects; name another folder")
        return float(record["fill_s"])
    folder.mkdir(parents=True)
    start_s = time.monotonic()
    fill_folder(folder, num_subjects)
    fill_s = time.monotonic() - start_s
    record_file.write_text(json.dumps({"subjects": num_subjects, "fill_s": fill_s}))
    return fill_s


def measure_folder(folder: Path, num_subjects: int, *, is_kept: bool) -> dict[str, Any]:
    """A gateway in front of a local folder with so many subjects."""
    # Before what removes it again: a folder that is not of here stays.
    fill_s = prepare_folder(folder, num_subjects)
    try:
        rng = random.Random(0)
        lookup_subjects = [subject_name(n) for n in rng.sample(range(num_subjects), LOOKUPS)]
        for subject in lookup_subjects:
            manifest = folder / paths.run(subject) / paths.BUNDLE / MANIFEST
            manifest.parent.mkdir(parents=True, exist_ok=True)
            manifest.write_bytes(make_manifest(subject))
        with GatewayProcess(str(folder)) as gateway:
            record = _measure_gateway(gateway, lookup_subjects, rng)
            record |= {"listed_once": list_all(folder) == num_subjects, "fill_s": fill_s}
            record["memory_bytes"] = gateway.memory_bytes
        return {"subjects": num_subjects, **record}
    finally:
        if not is_kept:
            shutil.rmtree(folder)


def _measure_gateway(
    gateway: GatewayProcess, lookup_subjects: list[str], rng: random.Random
) -> dict[str, Any]:
    ready_s = gateway.ready_s
    lookup_times_s = [gateway.get(f"/v1/models/{subject}", 200) for subject in lookup_subjects]
    unknown_times_s = [gateway.get(f"/v1/models/nobody-{k}", 404) for k in range(UNKNOWN)]
    page_times_s = [
        gateway.get(f"/v1/models?limit={PAGE}&after={rng.choice(lookup_subjects)}", 200)
        for _ in range(PAGES)
    ]
    return {
        "ready_s": round(ready_s, 3),
        "lookup_ms": summarize_times_ms(lookup_times_s),
        "unknown_ms": summarize_times_ms(unknown_times_s),
        "page_ms": summarize_times_ms(page_times_s),
    }


def summarize_times_ms(seconds: list[float]) -> dict[str, float]:
    """Milliseconds: median, p99 and the longest."""
    sorted_ms = sorted(1000 * value for value in seconds)
    return {
        "median": round(sorted_ms[len(sorted_ms) // 2], 3),
        "p99": round(sorted_ms[int(0.99 * (len(sorted_ms) - 1))], 3),
        "most": round(sorted_ms[-1], 3),
    }


def list_all(folder: Path) -> int:
    """How many subjects all pages together have; raises ValueError if one comes twice."""
    catalog, num_listed, last_position = Catalog(Store(str(folder))), 0, ""
    while subjects := catalog.list_subjects(last_position):
        page_positions = [last_position, *map(listing_position, subjects)]
        if page_positions != sorted(set(page_positions)):
            raise ValueError(f"pages are not in order after {last_position}")
        num_listed, last_position = num_listed + len(subjects), page_positions[-1]
    return num_listed


def measure_store(store: Store, sizes: list[int]) -> list[dict[str, Any]]:
    """Requests of each operation at each number of subjects."""
    rows_by_size, num_filled = [], 0
    try:
        for num_subjects in sorted(sizes):
            fill_store(store, range(num_filled, num_subjects))
            num_filled = num_subjects
            rows_by_size.append({"subjects": num_subjects, "requests": _count_requests(store)})
            print(json.dumps(rows_by_size[-1]), flush=True)
        return rows_by_size
    finally:
        store.remove("")


def _count_requests(store: Store) -> dict[str, dict[str, int]]:
    catalog, request_counter = Catalog(store), Counter[str]()
    filesystem, _ = store.filesystem
    filesystem.connect()

    def count_request(request: Any, **_: Any) -> None:
        is_list = "list-type=" in request.url
        request_counter["LIST" if is_list else str(request.method)] += 1

    filesystem.s3.meta.events.register("before-send.s3", count_request)
    run_store = store.sub(paths.run("new"))
    run_store.write(f"{paths.BUNDLE}/{MANIFEST}", make_manifest("new"))

    def read_page() -> None:
        for subject in catalog.list_subjects("", PAGE):
            catalog.read(subject)

    def read_unknown() -> None:
        try:
            catalog.read("nobody")
        except FileNotFoundError:
            return

    operations: dict[str, Callable[[], object]] = {
        "look-up": lambda: catalog.read(subject_name(7)),
        "look-up of nothing": read_unknown,
        f"page of {PAGE}": read_page,
        "commit": lambda: publish_run(run_store),
        "deletion": lambda: withdraw_run(run_store),
    }
    requests_by_operation = {}
    for operation_name, operation in operations.items():
        request_counter.clear()
        operation()
        requests_by_operation[operation_name] = dict(sorted(request_counter.items()))
    filesystem.s3.meta.events.unregister("before-send.s3", count_request)
    return requests_by_operation


def main() -> None:
    """Measure what is asked for and add it to the record."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path, help="a local folder, made and removed")
    parser.add_argument("--keep", action="store_true", help="the folder, and measure it as it is")
    parser.add_argument("--fill", action="store_true", help="the folder alone, for later")
    parser.add_argument("--subjects", type=int, default=10**6, help="in the local folder")
    parser.add_argument("--storage", help="an object store; all below it is removed")
    parser.add_argument("--sizes", type=int, nargs="*", default=[1000, 100_000])
    arguments = parser.parse_args()
    if arguments.fill:
        if not arguments.folder or arguments.json or arguments.storage:
            parser.error("--fill is for --folder alone")
        prepare_folder(arguments.folder, arguments.subjects)
        return
    record: dict[str, Any] = {}
    if arguments.json and arguments.json.is_file():
        record = json.loads(arguments.json.read_text())
    conditions = read_conditions()
    if arguments.folder:
        folder_record = measure_folder(arguments.folder, arguments.subjects, is_kept=arguments.keep)
        limits_met = {
            "ready_s": folder_record["ready_s"] <= READY_S,
            "lookup_p99_ms": folder_record["lookup_ms"]["p99"] <= LOOKUP_MS,
            "page_median_ms": folder_record["page_ms"]["median"] <= PAGE_MS,
            "page_p99_ms": folder_record["page_ms"]["p99"] <= PAGE_MS,
            "memory_bytes": folder_record["memory_bytes"] <= MEMORY_BYTES,
        }
        record["folder"] = {**folder_record, "reached": limits_met, "conditions": conditions}
        record["folder"]["load_average_after"] = read_load_average()
        print(json.dumps(record["folder"], indent=1), flush=True)
    if arguments.storage:
        store_rows = measure_store(Store(arguments.storage), arguments.sizes)
        has_equal_requests = all(row["requests"] == store_rows[0]["requests"] for row in store_rows)
        record["store"] = {
            "rows": store_rows,
            "equal": has_equal_requests,
            "conditions": conditions,
        }
    if arguments.json:
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
