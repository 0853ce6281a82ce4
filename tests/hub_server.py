"""A Hub on loopback for the real huggingface_hub client: repositories, commits, accounts, LFS, and faults on demand.

    with hub_server() as hub:
        hub.commit("me/base", {"config.json": b"{}"})
        subprocess.run([...], env=os.environ | hub.environment(tmp_path / "home"))
        assert ("POST", "/api/repos/create") in hub.requests

The client reads its address when it is imported: use it in a process of its own, or after `asked_from_here`.
"""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

WRITE_TOKEN, READ_TOKEN = "hf_loopbackwrite", "hf_loopbackread"
#: Kinds of fault that `Hub.fail` knows besides a status code.
DROP, WRONG_BYTES = "drop", "wrong bytes"
_LFS = (".safetensors", ".parquet", ".zip", ".bin")
_KINDS = {"models": "model", "datasets": "dataset"}


@dataclass
class Repo:
    """One repository: revisions name commits, commits hold whole trees."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    revisions: dict[str, str] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)
    is_private: bool = False
    is_gated: bool = False

    def add(self, files: Mapping[str, bytes], revision: str, message: str = "") -> str:
        """A commit with exactly these files; its 40 hexadecimal digits."""
        digest = hashlib.sha1(f"{len(self.commits)} {revision}".encode())
        for path in sorted(files):
            digest.update(path.encode() + files[path])
        sha = digest.hexdigest()
        self.commits[sha], self.messages[sha] = dict(files), message
        self.revisions[revision] = sha
        return sha

    def resolve(self, revision: str) -> str | None:
        """Commit of a branch, a tag or a commit."""
        return revision if revision in self.commits else self.revisions.get(revision)


@dataclass
class Fault:
    """Answers wrongly where the path matches, a number of times, after letting some requests pass."""

    method: str
    pattern: str
    kind: int | str
    times: int
    passes: int


class Hub:
    """What is on the server, and what was asked of it.

    `requests` lists (method, path without query) in order; `bytes_sent` counts what was given out, by `repo_id/path`.
    """

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.accounts = {WRITE_TOKEN: ("me", "write"), READ_TOKEN: ("me", "read")}
        self.members: set[str] = {"me"}  # names that may open gated repositories
        self.requests: list[tuple[str, str]] = []
        self.faults: list[Fault] = []
        self.bytes_sent: dict[str, int] = {}
        self.lock = threading.RLock()
        self.address = ""

    def commit(
        self,
        repo_id: str,
        files: Mapping[str, bytes] | Path,
        *,
        kind: str = "model",
        revision: str = "main",
        gated: bool = False,
        private: bool = False,
    ) -> str:
        """Put a commit with exactly these files (or a folder's) there; its 40 hexadecimal digits."""
        if isinstance(files, Path):
            files = {p.relative_to(files).as_posix(): p.read_bytes() for p in files.rglob("*") if p.is_file()}
        repo = self.repos.setdefault((kind, repo_id), Repo())
        repo.is_gated, repo.is_private = gated, private
        return repo.add(files, revision)

    def files(self, repo_id: str, revision: str = "main", kind: str = "model") -> dict[str, bytes]:
        """What a revision holds."""
        repo = self.repos[kind, repo_id]
        return repo.commits[repo.resolve(revision) or ""]

    def fail(
        self, pattern: str, kind: int | str, *, method: str = "GET", times: int = 1, passes: int = 0
    ) -> None:
        """Let requests go wrong whose path (without query) holds a match of the pattern.

        Args:
            pattern: Regular expression.
            kind: A status code; `DROP`: the connection ends after half of the bytes, given or taken; `WRONG_BYTES`:
                the right number of bytes, one of them flipped.
            method: Of the request.
            times: How often.
            passes: Requests that match and are served well before.
        """
        self.faults.append(Fault(method, pattern, kind, times, passes))

    def environment(
        self, home: Path, token: str | None = WRITE_TOKEN, *, offline: bool = False
    ) -> dict[str, str]:
        """Variables of a process whose Hub this is, with a cache of its own and no user settings."""
        return {
            "HF_ENDPOINT": self.address,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "1" if offline else "0",
            "HF_HUB_DISABLE_XET": "1",  # its uploads need a second service
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_TOKEN": token or "",
            "HF_MODULES_CACHE": str(home / "modules"),
            "HF_DATASETS_CACHE": str(home / "datasets"),
        }

    def asked_from_here(self, patch: pytest.MonkeyPatch, home: Path, token: str | None = READ_TOKEN) -> None:
        """Let the client of this process ask this Hub, with a cache of its own."""
        from datasets import config
        from huggingface_hub import constants

        patch.setattr(constants, "ENDPOINT", self.address)
        template = f"{self.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "HF_HUB_CACHE", str(home / "hf"))
        patch.setenv("HF_TOKEN", token or "")
        patch.setattr(config, "HF_DATASETS_CACHE", home / "datasets")
        patch.setattr(config, "DOWNLOADED_DATASETS_PATH", home / "datasets" / "downloads")

    def fault(self, method: str, path: str) -> int | str | None:
        """The fault that is due for a request, if any."""
        with self.lock:
            for fault in self.faults:
                if fault.method == method and fault.times and re.search(fault.pattern, path):
                    if fault.passes:
                        fault.passes -= 1
                        return None
                    fault.times -= 1
                    return fault.kind
        return None


class _RefusalError(Exception):
    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        self.status, self.code, self.message = status, code, message
        super().__init__(message)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        self._serve("GET")

    def do_HEAD(self) -> None:
        self._serve("HEAD")

    def do_POST(self) -> None:
        self._serve("POST")

    def do_PUT(self) -> None:
        self._serve("PUT")

    def log_message(self, *args: object) -> None:
        pass

    def _serve(self, method: str) -> None:
        parts = urlsplit(self.path)
        path, self.query = unquote(parts.path), parse_qs(parts.query)
        with self.hub.lock:
            self.hub.requests.append((method, path))
        self.due = self.hub.fault(method, path)
        if self.due == DROP and method in ("PUT", "POST"):
            self.rfile.read(int(self.headers.get("Content-Length", 0)) // 2)
            self._hang_up()
            return
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            if isinstance(self.due, int):
                raise _RefusalError(
                    self.due, "GatedRepo" if self.due == 403 else "", f"refused with {self.due}"
                )
            for wanted, pattern, answer in _ROUTES:
                found = re.fullmatch(pattern, path)
                if wanted == method and found:
                    with self.hub.lock:
                        answer(self, *found.groups())
                    return
            raise _RefusalError(404, "EntryNotFound", f"no such address: {path}")
        except _RefusalError as refusal:
            self._refuse(refusal)

    def _refuse(self, refusal: _RefusalError) -> None:
        content = json.dumps({"error": refusal.message}).encode()
        self.send_response(refusal.status)
        if refusal.code:
            self.send_header("X-Error-Code", refusal.code)
        self.send_header("X-Error-Message", refusal.message)
        if refusal.status == 429:
            self.send_header("Retry-After", "0")
        self._end(content)

    def _hang_up(self) -> None:
        self.close_connection = True
        with suppress(OSError):  # the client may have gone first
            self.connection.shutdown(2)

    def _end(self, content: bytes) -> None:
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def json(self, document: Any, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self._end(json.dumps(document).encode())

    # Accounts

    def account(self) -> tuple[str, str] | None:
        return self.hub.accounts.get(self.headers.get("Authorization", "").removeprefix("Bearer "))

    def whoami(self) -> None:
        account = self.account()
        if account is None:
            raise _RefusalError(401, message="Invalid username or password.")
        name, role = account
        token = {"displayName": "loopback", "role": role}
        self.json(
            {"type": "user", "name": name, "orgs": [], "auth": {"type": "access_token", "accessToken": token}}
        )

    def writer(self, repo_id: str) -> None:
        account = self.account()
        if account is None:
            raise _RefusalError(401, "RepoNotFound", "Invalid username or password.")
        name, role = account
        if role != "write" or repo_id.partition("/")[0] != name:
            raise _RefusalError(403, message="You don't have the rights to write to this repository")

    # Reading

    def repo(self, kind: str, repo_id: str) -> Repo:
        repo = self.hub.repos.get((kind, repo_id))
        account = self.account()
        if repo is None or (repo.is_private and account is None):
            raise _RefusalError(401 if account is None else 404, "RepoNotFound", "Repository not found")
        return repo

    def tree(self, kind: str, repo_id: str, revision: str) -> tuple[Repo, str, dict[str, bytes]]:
        repo = self.repo(kind, repo_id)
        sha = repo.resolve(revision)
        if sha is None:
            raise _RefusalError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repo, sha, repo.commits[sha]

    def info(self, kinds: str, repo_id: str, revision: str | None = None) -> None:
        repo, sha, files = self.tree(_KINDS[kinds], repo_id, revision or "main")
        siblings = [{"rfilename": path} | self._lfs_part(path, files[path]) for path in sorted(files)]
        self.json(
            {
                "_id": "0", "id": repo_id, "modelId": repo_id, "sha": sha, "siblings": siblings, "tags": [],
                "private": repo.is_private, "gated": "auto" if repo.is_gated else False, "disabled": False,
                "author": repo_id.partition("/")[0], "downloads": 0, "likes": 0,
                "lastModified": "2026-01-01T00:00:00.000Z", "createdAt": "2026-01-01T00:00:00.000Z",
            }
        )  # fmt: skip

    def _lfs_part(self, path: str, content: bytes) -> dict[str, Any]:
        part: dict[str, Any] = {"size": len(content), "blobId": git_oid(content)}
        if is_lfs(path):
            sha256 = hashlib.sha256(content).hexdigest()
            part["lfs"] = {"sha256": sha256, "oid": sha256, "size": len(content), "pointerSize": 130}
        return part

    def _entry(self, path: str, content: bytes) -> dict[str, Any]:
        part = self._lfs_part(path, content)
        return {"type": "file", "path": path, "oid": part.pop("blobId"), **part}

    def list_tree(self, kinds: str, repo_id: str, revision: str, folder: str | None = None) -> None:
        _, _, files = self.tree(_KINDS[kinds], repo_id, revision)
        inside = f"{folder.strip('/')}/" if folder and folder.strip("/") else ""
        is_deep = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        found, folders = [], set()
        for path in sorted(files):
            rest = path.removeprefix(inside)
            if not path.startswith(inside):
                continue
            parents = rest.split("/")[:-1]
            folders |= {
                inside + "/".join(parents[:n]) for n in range(1, 1 + len(parents))[: None if is_deep else 1]
            }
            if is_deep or not parents:
                found.append(self._entry(path, files[path]))
        if inside and not found and not folders:
            raise _RefusalError(404, "EntryNotFound", f"{folder} does not exist")
        self.json(
            [{"type": "directory", "path": f, "oid": "0" * 40, "size": 0} for f in sorted(folders)] + found
        )

    def paths_info(self, kinds: str, repo_id: str, revision: str) -> None:
        _, _, files = self.tree(_KINDS[kinds], repo_id, revision)
        paths = self._form().get("paths", [])
        found = [self._entry(p, files[p]) for p in paths if p in files]
        folders = [p for p in paths if any(f.startswith(f"{p}/") for f in files)]
        self.json([{"type": "directory", "path": p, "oid": "0" * 40, "size": 0} for p in folders] + found)

    def _form(self) -> dict[str, Any]:
        if "json" in self.headers.get("Content-Type", ""):
            return json.loads(self.body)
        return parse_qs(self.body.decode())

    def refs(self, kinds: str, repo_id: str) -> None:
        repo = self.repo(_KINDS[kinds], repo_id)
        branches = [
            {"name": n, "ref": f"refs/heads/{n}", "targetCommit": s} for n, s in repo.revisions.items()
        ]
        self.json({"branches": branches, "converts": [], "tags": [], "pullRequests": []})

    def file(self, kinds: str | None, repo_id: str, revision: str, path: str) -> None:
        repo, sha, files = self.tree(_KINDS[(kinds or "models/").strip("/")], repo_id, revision)
        account = self.account()
        if repo.is_gated and (account is None or account[0] not in self.hub.members):
            status = 401 if account is None else 403
            raise _RefusalError(status, "GatedRepo", f"Access to model {repo_id} is restricted.")
        if path not in files:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("X-Repo-Commit", sha)
            self._end(b"")
            return
        self._send_file(repo_id, path, files[path], sha)

    def _send_file(self, repo_id: str, path: str, content: bytes, sha: str) -> None:
        etag = hashlib.sha256(content).hexdigest() if is_lfs(path) else git_oid(content)
        size = len(content)
        if self.due == WRONG_BYTES and content:
            content = content[:-1] + bytes([content[-1] ^ 0xFF])
        start, stop = self._range(size)
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", sha)
        self.send_header("Accept-Ranges", "bytes")
        if is_lfs(path):
            self.send_header("X-Linked-Etag", f'"{etag}"')
            self.send_header("X-Linked-Size", str(size))
        if "Range" in self.headers:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        content = content[start:stop]
        if self.due == DROP and self.command == "GET":
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self._count(f"{repo_id}/{path}", len(content) // 2)
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            self._hang_up()
            return
        if self.command == "GET":
            self._count(f"{repo_id}/{path}", len(content))
        self._end(content)

    def _count(self, path: str, size: int) -> None:
        self.hub.bytes_sent[path] = self.hub.bytes_sent.get(path, 0) + size

    def _range(self, size: int) -> tuple[int, int]:
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        return (int(found[1]), int(found[2]) + 1 if found[2] else size) if found else (0, size)

    # Writing

    def create(self) -> None:
        wanted = json.loads(self.body)
        account = self.account()
        name = wanted.get("organization") or (account[0] if account else "")
        repo_id, kind = f"{name}/{wanted['name']}", wanted.get("type") or "model"
        self.writer(repo_id)
        url = f"{self.hub.address}/{'' if kind == 'model' else f'{kind}s/'}{repo_id}"
        if (kind, repo_id) in self.hub.repos:
            self.json({"error": "You already created this repo", "url": url}, 409)
            return
        is_private = bool(wanted.get("private") or wanted.get("visibility") == "private")
        repo = self.hub.repos[kind, repo_id] = Repo(is_private=is_private)
        repo.add(
            {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"},
            "main",
            "initial commit",
        )
        self.json({"url": url, "name": repo_id, "id": "0"})

    def branch(self, kinds: str, repo_id: str, name: str) -> None:
        self.writer(repo_id)
        repo = self.repo(_KINDS[kinds], repo_id)
        if name in repo.revisions:
            raise _RefusalError(409, message="Reference already exists")
        start = json.loads(self.body or b"{}").get("startingPoint", "main")
        repo.revisions[name] = repo.resolve(start) or ""
        self.json({})

    def preupload(self, kinds: str, repo_id: str, revision: str) -> None:
        self.writer(repo_id)
        _, sha, files = self.tree(_KINDS[kinds], repo_id, revision)
        answers = []
        for wanted in json.loads(self.body)["files"]:
            path = wanted["path"]
            oid = None
            if path in files:
                oid = hashlib.sha256(files[path]).hexdigest() if is_lfs(path) else git_oid(files[path])
            mode = "lfs" if is_lfs(path) else "regular"
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.json({"files": answers, "commitOid": sha})

    def lfs_batch(self, kinds: str | None, repo_id: str) -> None:
        self.writer(repo_id)
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            upload = {"href": f"{self.hub.address}/lfs/{wanted['oid']}"}
            known = wanted["oid"] in self.hub.objects
            objects.append({**wanted, **({} if known else {"actions": {"upload": upload}})})
        self.json({"transfer": "basic", "objects": objects})

    def take_object(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise _RefusalError(400, message="these bytes have another sha256")
        self.hub.objects[oid] = self.body
        self.json({})

    def take_commit(self, kinds: str, repo_id: str, revision: str) -> None:
        self.writer(repo_id)
        repo, _, files = self.tree(_KINDS[kinds], repo_id, revision)
        files, message = dict(files), ""
        for line in filter(None, self.body.split(b"\n")):
            step = json.loads(line)
            value = step["value"]
            if step["key"] == "header":
                message = value["summary"]
            elif step["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif step["key"] == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    raise _RefusalError(400, message=f"{value['path']} was never uploaded")
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif step["key"] == "deletedFile":
                files.pop(value["path"], None)
            elif step["key"] == "deletedFolder":
                files = {p: c for p, c in files.items() if not p.startswith(f"{value['path'].rstrip('/')}/")}
        sha = repo.add(files, revision, message)
        self.json(
            {"success": True, "commitOid": sha, "commitUrl": f"{self.hub.address}/{repo_id}/commit/{sha}"}
        )

    def validate_yaml(self) -> None:
        import yaml

        content = json.loads(self.body)["content"]
        head = re.match(r"---\n(.*?\n)---\n", content, re.DOTALL)
        try:
            errors = [] if head and isinstance(yaml.safe_load(head[1]), dict) else ["no metadata"]
        except yaml.YAMLError as error:
            errors = [str(error)]
        found = [{"message": text, "line": 1} for text in errors]
        self.json({"errors": found, "warnings": []}, 400 if errors else 200)


def git_oid(content: bytes) -> str:
    """Name of a file in git."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_lfs(path: str) -> bool:
    """Whether a file is kept beside the repository, as large ones are."""
    return path.endswith(_LFS)


_KIND, _ID, _REVISION = r"/api/(models|datasets)", r"([^/]+/[^/]+)", r"([^/]+)"
_ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("GET", r"/api/whoami-v2", _Handler.whoami),
    ("POST", r"/api/repos/create", _Handler.create),
    ("POST", r"/api/validate-yaml", _Handler.validate_yaml),
    ("GET", rf"{_KIND}/{_ID}", _Handler.info),
    ("GET", rf"{_KIND}/{_ID}/revision/{_REVISION}", _Handler.info),
    ("GET", rf"{_KIND}/{_ID}/refs", _Handler.refs),
    ("GET", rf"{_KIND}/{_ID}/tree/{_REVISION}(/.*)?", _Handler.list_tree),
    ("POST", rf"{_KIND}/{_ID}/paths-info/{_REVISION}", _Handler.paths_info),
    ("POST", rf"{_KIND}/{_ID}/branch/(.+)", _Handler.branch),
    ("POST", rf"{_KIND}/{_ID}/preupload/{_REVISION}", _Handler.preupload),
    ("POST", rf"{_KIND}/{_ID}/commit/{_REVISION}", _Handler.take_commit),
    ("POST", rf"/(datasets/)?{_ID}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("PUT", r"/lfs/([0-9a-f]{64})", _Handler.take_object),
    ("GET", rf"/(datasets/)?{_ID}/resolve/{_REVISION}/(.+)", _Handler.file),
    ("HEAD", rf"/(datasets/)?{_ID}/resolve/{_REVISION}/(.+)", _Handler.file),
]


@contextmanager
def hub_server() -> Iterator[Hub]:
    """Serve an empty Hub on a free port of this machine for a while."""
    hub = Hub()
    handler = type("_BoundHandler", (_Handler,), {"hub": hub})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
