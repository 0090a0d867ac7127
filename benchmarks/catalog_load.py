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

from benchmarks.conditions import read_conditions, read_load_average
from benchmarks.gateway_process import GatewayProcess
from dreambooth_ray.storage import paths
from dreambooth_ray.storage.manifest import MANIFEST
from dreambooth_ray.storage.store import Store
from dreambooth_ray.storage.subject_version import parse_bundle_manifest
from dreambooth_ray.storage.version_catalog import (
    SubjectVersionCatalog,
    entry_file_name,
    publish_run,
    subject_listing_position,
    version_file_name,
    withdraw_run,
)

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


def generate_catalog_files(numbers: range) -> Iterator[tuple[str, bytes]]:
    """Names and contents of what commits of these subjects would leave in the catalog.

    Filled in from those of one subject: a million of them are made.
    """
    catalog_entry_template, catalog_version_template = _make_catalog_record_templates()
    for subject_number in numbers:
        subject = subject_name(subject_number)
        digest = hashlib.sha256(make_manifest(subject)).hexdigest()
        for file_name, record_template in (
            (entry_file_name(subject), catalog_entry_template),
            (version_file_name(subject, digest[:12]), catalog_version_template),
        ):
            record_text = record_template.replace(_SUBJECT, subject).replace(_DIGEST, digest)
            yield file_name, record_text.replace(_DIGEST[:12], digest[:12]).encode()


def _make_catalog_record_templates() -> tuple[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        catalog = SubjectVersionCatalog(Store(folder))
        bundle_version = parse_bundle_manifest(_SUBJECT, make_manifest(_SUBJECT))
        if bundle_version is None:
            raise ValueError("the manifest of the benchmark is none")
        catalog.add(bundle_version.model_copy(update={"manifest_sha256": _DIGEST}))
        record_names = (entry_file_name(_SUBJECT), version_file_name(_SUBJECT, _DIGEST[:12]))
        return tuple(catalog.store.read(name).decode() for name in record_names)  # type: ignore[return-value]


def fill_catalog_folder(folder: Path, num_subjects: int) -> None:
    """A local catalog; without fsync, unlike commits, as it is not kept."""
    for hash_prefix in range(256):
        for catalog_folder in (paths.CATALOG, paths.CATALOG_VERSIONS):
            (folder / catalog_folder / f"{hash_prefix:02x}").mkdir(parents=True, exist_ok=True)
    for file_name, file_content in generate_catalog_files(range(num_subjects)):
        (folder / file_name).write_bytes(file_content)
    (folder / paths.CATALOG_COMPLETE).write_text('{"format": 1}')


def fill_catalog_store(store: Store, numbers: range) -> None:
    """The same in an object store, many writes at once."""
    filesystem, root = store.filesystem
    file_batch: dict[str, bytes] = {}
    for file_name, file_content in generate_catalog_files(numbers):
        file_batch[f"{root}/{file_name}"] = file_content
        if len(file_batch) == _WRITES_AT_ONCE:
            filesystem.pipe(file_batch)
            file_batch = {}
    if file_batch:
        filesystem.pipe(file_batch)


def fill_folder_once(folder: Path, num_subjects: int) -> float:
    """Fill it, unless an earlier call has; the seconds that took."""
    record_file = folder / _FILLED
    if record_file.exists():
        fill_record = json.loads(record_file.read_text())
        if fill_record["subjects"] != num_subjects:
            raise SystemExit(
                f"{folder} has {fill_record['subjects']} subjects; name another folder"
            )
        return float(fill_record["fill_s"])
    folder.mkdir(parents=True)
    start_s = time.monotonic()
    fill_catalog_folder(folder, num_subjects)
    fill_s = time.monotonic() - start_s
    record_file.write_text(json.dumps({"subjects": num_subjects, "fill_s": fill_s}))
    return fill_s


def measure_gateway_on_folder(folder: Path, num_subjects: int, *, is_kept: bool) -> dict[str, Any]:
    """A gateway in front of a local folder with so many subjects."""
    # Before what removes it again: a folder that is not of here stays.
    fill_s = fill_folder_once(folder, num_subjects)
    try:
        rng = random.Random(0)
        lookup_subjects = [subject_name(n) for n in rng.sample(range(num_subjects), LOOKUPS)]
        for subject in lookup_subjects:
            manifest_file = folder / paths.run(subject) / paths.BUNDLE / MANIFEST
            manifest_file.parent.mkdir(parents=True, exist_ok=True)
            manifest_file.write_bytes(make_manifest(subject))
        with GatewayProcess(str(folder)) as gateway:
            record = _time_gateway_requests(gateway, lookup_subjects, rng)
            record |= {
                "listed_once": count_listed_subjects(folder) == num_subjects,
                "fill_s": fill_s,
            }
            record["memory_bytes"] = gateway.memory_bytes
        return {"subjects": num_subjects, **record}
    finally:
        if not is_kept:
            shutil.rmtree(folder)


def _time_gateway_requests(
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


def count_listed_subjects(folder: Path) -> int:
    """How many subjects all pages together have; raises ValueError if one comes twice."""
    catalog, num_listed, last_position = SubjectVersionCatalog(Store(str(folder))), 0, ""
    while page_subjects := catalog.list_subjects(last_position):
        positions = [last_position, *map(subject_listing_position, page_subjects)]
        if positions != sorted(set(positions)):
            raise ValueError(f"pages are not in order after {last_position}")
        num_listed, last_position = num_listed + len(page_subjects), positions[-1]
    return num_listed


def count_requests_by_catalog_size(store: Store, sizes: list[int]) -> list[dict[str, Any]]:
    """Requests of each operation at each number of subjects."""
    request_rows, num_stored_subjects = [], 0
    try:
        for num_subjects in sorted(sizes):
            fill_catalog_store(store, range(num_stored_subjects, num_subjects))
            num_stored_subjects = num_subjects
            request_rows.append(
                {"subjects": num_subjects, "requests": _count_requests_by_operation(store)}
            )
            print(json.dumps(request_rows[-1]), flush=True)
        return request_rows
    finally:
        store.remove("")


def _count_requests_by_operation(store: Store) -> dict[str, dict[str, int]]:
    catalog, request_counter = SubjectVersionCatalog(store), Counter[str]()
    filesystem, _ = store.filesystem
    filesystem.connect()

    def count_request(request: Any, **_: Any) -> None:
        is_list_request = "list-type=" in request.url
        request_counter["LIST" if is_list_request else str(request.method)] += 1

    filesystem.s3.meta.events.register("before-send.s3", count_request)
    run_store = store.sub(paths.run("new"))
    run_store.write(f"{paths.BUNDLE}/{MANIFEST}", make_manifest("new"))

    def read_catalog_page() -> None:
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
        f"page of {PAGE}": read_catalog_page,
        "commit": lambda: publish_run(run_store),
        "deletion": lambda: withdraw_run(run_store),
    }
    requests_by_operation = {}
    for operation_name, run_operation in operations.items():
        request_counter.clear()
        run_operation()
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
        fill_folder_once(arguments.folder, arguments.subjects)
        return
    catalog_record: dict[str, Any] = {}
    if arguments.json and arguments.json.is_file():
        catalog_record = json.loads(arguments.json.read_text())
    conditions = read_conditions()
    if arguments.folder:
        gateway_record = measure_gateway_on_folder(
            arguments.folder, arguments.subjects, is_kept=arguments.keep
        )
        limits_met = {
            "ready_s": gateway_record["ready_s"] <= READY_S,
            "lookup_p99_ms": gateway_record["lookup_ms"]["p99"] <= LOOKUP_MS,
            "page_median_ms": gateway_record["page_ms"]["median"] <= PAGE_MS,
            "page_p99_ms": gateway_record["page_ms"]["p99"] <= PAGE_MS,
            "memory_bytes": gateway_record["memory_bytes"] <= MEMORY_BYTES,
        }
        catalog_record["folder"] = {
            **gateway_record,
            "reached": limits_met,
            "conditions": conditions,
        }
        catalog_record["folder"]["load_average_after"] = read_load_average()
        print(json.dumps(catalog_record["folder"], indent=1), flush=True)
    if arguments.storage:
        store_rows = count_requests_by_catalog_size(Store(arguments.storage), arguments.sizes)
        are_request_counts_equal = all(
            row["requests"] == store_rows[0]["requests"] for row in store_rows
        )
        catalog_record["store"] = {
            "rows": store_rows,
            "equal": are_request_counts_equal,
            "conditions": conditions,
        }
    if arguments.json:
        arguments.json.write_text(json.dumps(catalog_record, indent=1) + "\n")


if __name__ == "__main__":
    main()
