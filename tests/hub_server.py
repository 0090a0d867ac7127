"""A small Hugging Face Hub on loopback, as far as models are read from one.

Repositories with commits, branches and tags; answers with ETag, X-Repo-Commit and Range; large
files behind a redirect to another host name, as the hub has its CDN; gated and private
repositories; bodies that are cut off. It counts what it is asked.
"""

import hashlib
import json
import re
import threading
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

TOKEN, STRANGER = "hf_" + "m" * 34, "hf_" + "s" * 34  # of who may, and of who has not asked yet
_LFS_SUFFIXES = (".safetensors", ".bin", ".ckpt", ".msgpack", ".onnx", ".h5")
_API = re.compile(
    r"/api/models/(?P<repo>[^/]+/[^/]+)(/(?P<kind>revision|tree)/(?P<revision>[^/]+))?"
)
_RESOLVE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<name>.+)")
_CDN = re.compile(r"/cdn/(?P<sha256>[0-9a-f]{64})")


@dataclass
class HubRepo:
    """access: "open", "gated" or "private"; revisions: commit by branch or tag."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    revisions: dict[str, str] = field(default_factory=dict)
    access: str = "open"

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """Add a commit that a branch moves to; returns its hash."""
        digest = hashlib.sha1(usedforsecurity=False)
        for name, content in sorted(files.items()):
            digest.update(name.encode() + content)
        sha = digest.hexdigest()
        self.commits[sha], self.revisions[branch] = files, sha
        return sha


def read_folder(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by name."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


class HubServer:
    """Answers from construction to `close`.

    cuts: bytes after which the connection ends, for the next answers with a body of a file
    ends: offset in a file beyond which nothing is sent
    requests: "METHOD path" of each; tokens_elsewhere: what came to the CDN, which is to get none
    """

    def __init__(self) -> None:
        self.repos: dict[str, HubRepo] = {}
        self.cuts: dict[str, list[int]] = {}
        self.ends: dict[str, int] = {}
        self.requests = Counter[str]()
        self.bytes_sent = Counter[str]()
        self.tokens_elsewhere: list[str] = []
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def cdn(self) -> str:
        return f"http://localhost:{self._server.server_port}"

    def add(self, repo: str, files: dict[str, bytes], access: str = "open") -> str:
        """A repository with one commit, of which the hash is returned."""
        self.repos[repo] = HubRepo(access=access)
        return self.repos[repo].commit(files)

    def count(self, text: str) -> int:
        """Requests whose path contains it."""
        return sum(number for request, number in self.requests.items() if text in request)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests[f"{self.command} {path}"] += 1
        if match := _CDN.fullmatch(path):
            self._send_lfs(match["sha256"])
            return
        match = _API.fullmatch(path) or _RESOLVE.fullmatch(path)
        if match is None:
            self._refuse(404, "")
            return
        repo, is_file = self.hub.repos.get(match["repo"]), "name" in match.groupdict()
        if not self._may_see(repo, is_file):
            return
        assert repo is not None
        revision = match["revision"] or "main"
        commit = repo.revisions.get(revision, revision)
        if commit not in repo.commits:
            self._refuse(404, "RevisionNotFound")
        elif is_file:
            self._send_file(repo, commit, match["name"])
        elif match["kind"] == "tree":
            self._send_json([{"type": "file", **_describe(n, c)} for n, c in _files(repo, commit)])
        else:
            siblings = [_describe(name, content) for name, content in _files(repo, commit)]
            self._send_json({"id": match["repo"], "sha": commit, "siblings": siblings})

    def _may_see(self, repo: HubRepo | None, is_file: bool) -> bool:
        """As the hub: who may not, hears of a private repository as of none."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in ("", TOKEN, STRANGER):
            self._refuse(401, "", "Invalid credentials in Authorization header")
        elif repo is None or (repo.access == "private" and token != TOKEN):
            self._refuse(404 if token else 401, "RepoNotFound")
        elif repo.access == "gated" and is_file and token != TOKEN:
            self._refuse(403 if token else 401, "GatedRepo")
        else:
            return True
        return False

    def _send_file(self, repo: HubRepo, commit: str, name: str) -> None:
        content = repo.commits[commit].get(name)
        if content is None:
            self._refuse(404, "EntryNotFound")
        elif name.endswith(_LFS_SUFFIXES):
            sha256 = hashlib.sha256(content).hexdigest()
            headers = {
                "Location": f"{self.hub.cdn}/cdn/{sha256}", "X-Repo-Commit": commit,
                "X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(len(content)),
                "Content-Length": "0",
            }  # fmt: skip
            self._answer(302, headers)
        else:
            etag = f'"{_git_hash(content)}"'
            self._send_body(name, content, {"X-Repo-Commit": commit, "ETag": etag})

    def _send_lfs(self, sha256: str) -> None:
        if token := self.headers.get("Authorization"):
            self.hub.tokens_elsewhere.append(token)
        for repo in self.hub.repos.values():
            for files in repo.commits.values():
                for name, content in files.items():
                    if hashlib.sha256(content).hexdigest() == sha256:
                        self._send_body(name, content, {"ETag": f'"{sha256}"'})
                        return
        self._refuse(404, "EntryNotFound")

    def _send_body(self, name: str, content: bytes, headers: dict[str, str]) -> None:
        begin, end, status = 0, len(content), 200
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            begin, status = int(match[1]), 206
            end = min(end, int(match[2] or end) + 1)
            headers = headers | {"Content-Range": f"bytes {begin}-{end - 1}/{len(content)}"}
        body = content[begin:end]
        self._answer(status, headers | {"Content-Length": str(len(body)), "Accept-Ranges": "bytes"})
        if self.command == "HEAD":
            return
        if (cuts := self.hub.cuts.get(name)) and len(body) > cuts[0]:
            body = body[: cuts.pop(0)]
            self.close_connection = True
        if (limit := self.hub.ends.get(name)) is not None and end > limit:
            body = body[: max(0, limit - begin)]
            self.close_connection = True
        self.wfile.write(body)
        self.hub.bytes_sent[name] += len(body)

    def _send_json(self, content: object) -> None:
        body = json.dumps(content).encode()
        self._answer(200, {"Content-Type": "application/json", "Content-Length": str(len(body))})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refuse(self, status: int, code: str, message: str = "") -> None:
        headers = {"Content-Length": "0"}
        headers |= {"X-Error-Code": code} if code else {}
        self._answer(status, headers | ({"X-Error-Message": message} if message else {}))

    def _answer(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


def _files(repo: HubRepo, commit: str) -> list[tuple[str, bytes]]:
    return sorted(repo.commits[commit].items())


def _describe(name: str, content: bytes) -> dict[str, object]:
    about: dict[str, object] = {
        "rfilename": name, "path": name, "size": len(content),
        "blobId": _git_hash(content), "oid": _git_hash(content),
    }  # fmt: skip
    if name.endswith(_LFS_SUFFIXES):
        sha256 = hashlib.sha256(content).hexdigest()
        about["lfs"] = {"sha256": sha256, "oid": sha256, "size": len(content), "pointerSize": 134}
    return about


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
