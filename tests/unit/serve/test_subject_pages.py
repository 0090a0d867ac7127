import asyncio
import fnmatch
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreambooth_ray.config.serving import ServeConfig
from dreambooth_ray.storage.store import Store
from dreambooth_ray.storage.subject_version import SubjectVersion
from dreambooth_ray.storage.version_catalog import (
    SubjectEntry,
    SubjectVersionCatalog,
    SubjectVersionRef,
    entry_file_name,
    subject_listing_position,
)
from serve import subject_pages
from serve.api_errors import APIError
from serve.auth import APIKey, Caller
from serve.subject_catalog import SubjectCatalog
from serve.subject_pages import SubjectPages

_IDS = st.from_regex(r"\A[ab][ab0._-]{0,3}\Z")
_PATTERNS = st.sampled_from([("*",), ("a*",), ("*0", "bb"), ("a", "b", "ab"), ("nobody",)])


def build_entry(subject: str) -> SubjectEntry:
    newest = SubjectVersion(
        subject=subject, run_id=subject, manifest_sha256="0" * 64, kind="bundle", created_s=1.0
    )
    ref = SubjectVersionRef(version=newest.version, run_id=subject, created_s=1.0)
    return SubjectEntry(newest=newest, versions=(ref,))


def write_entries(folder: str, subjects: set[str]) -> None:
    for subject in subjects:
        path = Path(folder, entry_file_name(subject))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(build_entry(subject).model_dump_json())


@settings(max_examples=25, deadline=None)
@given(
    st.sets(_IDS, max_size=20), _PATTERNS, st.integers(1, 6), st.integers(1, 4),
    st.sets(_IDS, min_size=1, max_size=3),
)  # fmt: skip
def test_pages_hold_everything_of_a_caller_once(
    subjects: set[str], patterns: tuple[str, ...], limit: int, batch: int, bases: set[str]
) -> None:
    key = APIKey(name="k", sha256="0" * 64, subjects=patterns)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(subject_pages, "_SCAN_BATCH", batch)
        patch.setattr(subject_pages, "_MOST_SCANNED", 1)
        write_entries(folder, subjects)
        models = dict.fromkeys(sorted(bases), "toyworld")
        config = ServeConfig.model_validate({"storage": {"uri": folder}, "models": models})
        catalog, listed, after = SubjectCatalog(config), list[str](), None
        for _ in range(600):
            page = asyncio.run(catalog.list_models_page(limit, after, Caller("key:k", key)))
            assert len(page.data) <= limit
            listed += [answer.id for answer in page.data]
            if not page.has_more:
                break
            after = page.last_id
            # No name that is not the caller's.
            assert after is not None and (after.startswith("~") or _matches(after, patterns))
        else:
            raise AssertionError("pages have no end")
    expected = [*sorted(bases), *sorted(subjects - bases, key=subject_listing_position)]
    assert listed == [subject for subject in expected if _matches(subject, patterns)]


def _matches(subject: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(subject, pattern) for pattern in patterns)


@pytest.mark.parametrize("after", ["../x", "~zz", "~3", "dog@abc", "", "a/b", "dög"])
def test_where_a_page_can_not_begin_is_said(tmp_path: Path, after: str) -> None:
    config = ServeConfig.model_validate({"storage": {"uri": str(tmp_path)}})
    with pytest.raises(APIError) as refused:
        asyncio.run(SubjectCatalog(config).list_models_page(10, after, Caller("address:x", None)))
    assert (refused.value.status, refused.value.param) == (400, "after")


def test_a_page_asks_once_however_many_there_are(tmp_path: Path) -> None:
    num_asked = list[int]()

    class CountingCatalog(SubjectVersionCatalog):
        def list_subjects(self, after: str = "", limit: int = 1000) -> list[str]:
            num_asked.append(limit)
            return super().list_subjects(after, limit)

    write_entries(str(tmp_path), {f"dog-{k}" for k in range(300)})
    pages = SubjectPages(CountingCatalog(Store(str(tmp_path))))
    subjects, after = pages.list_subjects("", 100, Caller("address:x", None), lambda _: False)
    assert (len(subjects), after, num_asked) == (100, subjects[-1], [101])
