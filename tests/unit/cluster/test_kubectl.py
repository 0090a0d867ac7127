from pathlib import Path

import pytest

from cluster.kubectl import read_kubernetes_objects
from dreambooth_ray.errors import CapacityError


def test_a_missing_kubectl_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CapacityError, match="kubectl is not installed"):
        read_kubernetes_objects("rayjobs.ray.io")


def test_words_of_a_refusal_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "kubectl"
    script.write_text("#!/bin/sh\necho 'error: no\ncluster here' >&2\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(CapacityError, match=r"^kubectl get failed: error: no cluster here$"):
        read_kubernetes_objects("rayjobs.ray.io")


def test_what_kubectl_logs_of_its_tries_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "kubectl"
    script.write_text(
        "#!/bin/sh\n"
        'echo \'E1127 22:45:06.095876 13661 memcache.go:381] "no list" err="refused"\' >&2\n'
        "echo 'The connection to the server was refused' >&2\nexit 1\n"
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(CapacityError, match=r"failed: The connection to the server was refused$"):
        read_kubernetes_objects("rayjobs.ray.io")
    script.write_text(script.read_text().replace("echo 'The", ": 'The"))
    with pytest.raises(CapacityError, match=r"failed: E1127 .*refused"):
        read_kubernetes_objects("rayjobs.ray.io")
