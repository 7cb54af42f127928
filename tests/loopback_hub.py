"""A Hugging Face Hub on 127.0.0.1, so that the real client is tested over real HTTP.

The server speaks the part of the Hub's protocol that `huggingface_hub`, `transformers` and
`datasets` use: repositories of all three types, branches and commits, regular and LFS files with
checksums, `resolve` with ETag and Range, trees and revisions. Files live in memory.

`LoopbackHub.fail(...)` plans trouble: status codes, cut connections, damaged bytes.
`connect(hub, monkeypatch, cache)` points the client of this process at the server, and
`LoopbackHub.environment(cache)` does the same for a child process.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
import threading
from collections import Counter
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from .loopback_repository import Blob, HubError, Repository

LFS_SUFFIXES = (".safetensors", ".tar", ".parquet", ".whl", ".mp4", ".bin")
DATE = "2026-01-01T00:00:00.000Z"
TOKEN = "hf_loopback"


@dataclass
class Trouble:
    """A planned failure for requests whose `METHOD path` matches `pattern`, but the first ones."""

    pattern: str
    after: int = 0
    status: int | None = None
    cut_after: int | None = None
    corrupt: bool = False
    times: int = 1


class LoopbackHub:
    """The server: start with `with LoopbackHub() as hub`, address in `hub.endpoint`."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.lfs_objects: dict[str, bytes] = {}
        self.requests: Counter[str] = Counter()
        self.troubles: list[Trouble] = []
        self.lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self._server.hub = self  # type: ignore[attr-defined]
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> LoopbackHub:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def fail(self, pattern: str, **trouble: Any) -> None:
        """Plans a failure, e.g. `fail("PUT .*/lfs/", status=503, times=2)`."""
        self.troubles.append(Trouble(pattern, **trouble))

    def take_trouble(self, request: str) -> Trouble | None:
        with self.lock:
            for trouble in self.troubles:
                if trouble.times and re.match(trouble.pattern, request):
                    if trouble.after:
                        trouble.after -= 1
                        continue
                    trouble.times -= 1
                    return trouble
        return None

    def count(self, pattern: str) -> int:
        """How many requests of the form `METHOD path` came that match `pattern`."""
        return sum(n for request, n in self.requests.items() if re.match(pattern, request))

    def repository(self, kind: str, name: str) -> Repository:
        try:
            return self.repositories[kind, name]
        except KeyError:
            raise HubError(404, "RepoNotFound", f"no {kind} {name}") from None

    def environment(self, cache: Path) -> dict[str, str]:
        """Variables that make a child process talk to this hub and to nothing else."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(cache),
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_OFFLINE": "0",
            "DO_NOT_TRACK": "1",
        }


class _Handler(BaseHTTPRequestHandler):
    """Routes requests; every handler returns the JSON to send or sends its own answer."""

    protocol_version = "HTTP/1.1"
    routes: tuple[tuple[str, str, str], ...] = (
        ("POST", r"/api/repos/create", "create"),
        ("POST", r"/api/validate-yaml", "validate_yaml"),
        ("GET", r"/api/whoami-v2", "whoami"),
        ("POST", r"/api/(T)/(R)/preupload/(.+)", "preupload"),
        ("POST", r"/api/(T)/(R)/commit/(.+)", "commit"),
        ("POST", r"/api/(T)/(R)/branch/(.+)", "branch"),
        ("POST", r"/api/(T)/(R)/tag/(.+)", "branch"),
        ("POST", r"/api/(T)/(R)/paths-info/(.+)", "paths_info"),
        ("GET", r"/api/(T)/(R)/tree/([^/]+)(?:/(.*))?", "tree"),
        ("GET", r"/api/(T)/(R)/revision/(.+)", "info"),
        ("GET", r"/api/(T)/(R)/refs", "refs"),
        ("GET", r"/api/(T)/(R)/commits/(.+)", "commits"),
        ("GET", r"/api/(T)/(R)", "info"),
        ("POST", r"/(P)(R)\.git/info/lfs/objects/batch", "lfs_batch"),
        ("PUT", r"/lfs/(\w+)", "lfs_upload"),
        ("POST", r"/lfs/(\w+)/verify", "lfs_verify"),
        ("GET|HEAD", r"/(P)(R)/resolve/([^/]+)/(.+)", "resolve"),
    )

    @property
    def hub(self) -> LoopbackHub:
        return self.server.hub  # type: ignore[attr-defined]

    def log_message(self, *_: Any) -> None:
        """Keeps the test output quiet."""

    def handle(self) -> None:
        try:
            super().handle()
        except (ConnectionError, TimeoutError):
            self.close_connection = True  # the client of a planned failure hung up

    def dispatch(self) -> None:
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        self.query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        self.hub.requests[f"{self.command} {path}"] += 1
        self.trouble = self.hub.take_trouble(f"{self.command} {path}") or Trouble("")
        self.body = b""
        try:
            if self.trouble.cut_after is not None and self.command in ("PUT", "POST"):
                self.rfile.read(self.trouble.cut_after)
                self.close_connection = True
                return
            self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.trouble.status:
                raise HubError(self.trouble.status, "", "planned failure")
            self._route(path)
        except HubError as error:
            headers = {"X-Error-Code": error.code, "X-Error-Message": str(error), **error.headers}
            self.answer({"error": str(error)}, error.status, headers)

    def _route(self, path: str) -> None:
        if self.command not in ("GET", "HEAD") and not self._is_authorized(path):
            raise HubError(401, "", "Invalid username or password.")
        for methods, pattern, name in self.routes:
            pattern = pattern.replace("(T)", "(models|datasets|spaces)")
            pattern = pattern.replace("(P)", "(datasets/|spaces/)?").replace(
                "(R)", r"([^/]+/[^/]+?)"
            )
            match = re.fullmatch(pattern, path)
            if match and self.command in methods.split("|"):
                result = getattr(self, f"on_{name}")(*match.groups())
                if result is not None:
                    self.answer(result)
                return
        raise HubError(404, "", f"no route for {self.command} {path}")

    def _is_authorized(self, path: str) -> bool:
        signed = re.fullmatch(r"/lfs/\w+", path)  # an upload address is a signed address
        return bool(signed) or self.headers.get("Authorization") == f"Bearer {TOKEN}"

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = dispatch  # noqa: N815

    def answer(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for key, text in (headers or {}).items():
            self.send_header(key, text)
        if "Content-Length" not in (headers or {}):
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def json(self) -> Any:
        return json.loads(self.body or b"{}")

    def on_create(self) -> Any:
        asked = self.json()
        kind = asked.get("type", "model") + "s"
        name = f"{asked.get('organization') or 'org'}/{asked['name']}"
        url = f"{self.hub.endpoint}/{'' if kind == 'models' else kind + '/'}{name}"
        if (kind, name) in self.hub.repositories:
            self.answer({"url": url, "error": "You already created this repo"}, 409)
            return None
        repository = Repository(kind, name, created_with=asked)
        start = {".gitattributes": Blob(b"*.safetensors filter=lfs\n", is_lfs=False)}
        repository.commit("main", start, "initial commit")
        self.hub.repositories[kind, name] = repository
        return {"url": url, "name": name}

    def on_validate_yaml(self) -> Any:
        text = self.json()["content"]
        errors = [] if text.startswith("---\n") else [{"message": "no front matter"}]
        return {"errors": errors, "warnings": []}

    def on_whoami(self) -> Any:
        return {"name": "org", "type": "user", "orgs": [], "auth": {"type": "access_token"}}

    def on_preupload(self, kind: str, name: str, revision: str) -> Any:
        files = self.hub.repository(kind, name).files(revision)
        answer = []
        for item in self.json()["files"]:
            mode = "lfs" if item["path"].endswith(LFS_SUFFIXES) else "regular"
            old = files.get(item["path"])
            entry = {"path": item["path"], "uploadMode": mode, "shouldIgnore": False}
            answer.append(entry | ({"oid": old.git_oid} if old else {}))
        return {"files": answer}

    def on_lfs_batch(self, prefix: str | None, name: str) -> Any:
        self.hub.repository((prefix or "models").rstrip("/"), name)
        objects = []
        for item in self.json()["objects"]:
            answer = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.hub.lfs_objects:
                href = f"{self.hub.endpoint}/lfs/{item['oid']}"
                answer["actions"] = {"upload": {"href": href}, "verify": {"href": href + "/verify"}}
            objects.append(answer)
        return {"transfer": "basic", "objects": objects}

    def on_lfs_upload(self, oid: str) -> Any:
        data = self.body
        if self.trouble.corrupt:
            data = data[:-1] + bytes([data[-1] ^ 255])
        elif hashlib.sha256(data).hexdigest() != oid:
            raise HubError(422, "", "checksum of the upload does not match its oid")
        self.hub.lfs_objects[oid] = data
        return {}

    def on_lfs_verify(self, oid: str) -> Any:
        stored = self.hub.lfs_objects.get(oid, b"")
        if len(stored) != self.json()["size"]:
            raise HubError(422, "", "size of the upload does not match")
        return {}

    def on_commit(self, kind: str, name: str, revision: str) -> Any:
        repository = self.hub.repository(kind, name)
        lines = [json.loads(line) for line in self.body.splitlines() if line.strip()]
        with self.hub.lock:
            files = dict(repository.files(revision))
            for line in lines[1:]:
                self._apply(files, line["key"], line["value"])
            oid = repository.commit(revision, files, lines[0]["value"]["summary"])
        return {"commitUrl": f"{self.hub.endpoint}/{name}/commit/{oid}", "commitOid": oid}

    def _apply(self, files: dict[str, Blob], key: str, value: dict[str, Any]) -> None:
        path = value["path"]
        if key == "file":
            files[path] = Blob(base64.b64decode(value["content"]), is_lfs=False)
        elif key == "lfsFile":
            if value["oid"] not in self.hub.lfs_objects:
                raise HubError(400, "", f"LFS object of {path} was never uploaded")
            files[path] = Blob(self.hub.lfs_objects[value["oid"]], is_lfs=True)
        elif key in ("deletedFile", "deletedFolder"):
            for old in [p for p in files if p == path or p.startswith(path.rstrip("/") + "/")]:
                del files[old]
        else:
            raise HubError(400, "", f"unknown operation {key}")

    def on_branch(self, kind: str, name: str, branch: str) -> Any:
        repository = self.hub.repository(kind, name)
        start = self.json().get("startingPoint", "main")
        repository.revisions[self.json().get("tag", branch)] = repository.resolve(start)
        return {}

    def on_info(self, kind: str, name: str, revision: str = "main") -> Any:
        repository = self.hub.repository(kind, name)
        oid = repository.resolve(revision)
        siblings = [{"rfilename": path} for path in sorted(repository.commits[oid])]
        answer = {"id": name, "sha": oid, "siblings": siblings, "tags": [], "private": False}
        answer |= {"lastModified": DATE, "createdAt": DATE, "disabled": False, "gated": False}
        return answer | {"downloads": 0, "likes": 0, "author": name.split("/")[0]}

    def on_refs(self, kind: str, name: str) -> Any:
        revisions = self.hub.repository(kind, name).revisions
        branches = [
            {"name": key, "ref": f"refs/heads/{key}", "targetCommit": oid}
            for key, oid in revisions.items()
        ]
        return {"branches": branches, "tags": [], "converts": []}

    def on_commits(self, kind: str, name: str, revision: str) -> Any:
        history = self.hub.repository(kind, name).history
        extra = {"message": "", "authors": [], "date": DATE}
        return [{"id": c["oid"], "title": c["summary"], **extra} for c in history]

    def on_tree(self, kind: str, name: str, revision: str, folder: str | None = None) -> Any:
        files = self.hub.repository(kind, name).files(revision)
        prefix = f"{folder.strip('/')}/" if folder else ""
        below = {path: blob for path, blob in files.items() if path.startswith(prefix)}
        if prefix and not below:
            raise HubError(404, "EntryNotFound", f"no folder {folder}")
        recursive = self.query.get("recursive", "").lower() in ("true", "1")
        entries: dict[str, Any] = {}
        for path, blob in sorted(below.items()):
            inner = path[len(prefix) :].split("/")
            for depth in range(1, len(inner)) if recursive else range(1, min(2, len(inner))):
                inside = prefix + "/".join(inner[:depth])
                oid = hashlib.sha1(inside.encode()).hexdigest()
                entries[inside] = {"type": "directory", "oid": oid, "size": 0, "path": inside}
            if recursive or len(inner) == 1:
                entries[path] = blob.entry(path)
        return list(entries.values())

    def on_paths_info(self, kind: str, name: str, revision: str) -> Any:
        files = self.hub.repository(kind, name).files(revision)
        asked = parse_qs(self.body.decode()).get("paths") or self.json()["paths"]
        return [files[path].entry(path) for path in asked if path in files]

    def on_resolve(self, prefix: str | None, name: str, revision: str, path: str) -> None:
        repository = self.hub.repository((prefix or "models").rstrip("/"), name)
        oid = repository.resolve(revision)
        headers = {"X-Repo-Commit": oid}
        blob = repository.commits[oid].get(path)
        if blob is None:
            raise HubError(404, "EntryNotFound", f"no file {path}", headers)
        headers |= {"ETag": f'"{blob.etag}"', "Accept-Ranges": "bytes"}
        if blob.is_lfs:
            headers |= {"X-Linked-Etag": f'"{blob.etag}"', "X-Linked-Size": str(len(blob.data))}
        data, status = blob.data, 200
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted:
            start, end = int(wanted[1]), int(wanted[2] or len(data) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
            data, status = data[start : end + 1], 206
        if self.command == "GET" and self.trouble.corrupt:
            data = data[:-1]
        headers["Content-Length"] = str(len(data))
        if self.command == "GET" and self.trouble.cut_after is not None:
            data, self.close_connection = data[: self.trouble.cut_after], True
        self.answer(data, status, headers)


def connect(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """Points `huggingface_hub` (and what builds on it) in this process at `hub`, fresh cache.

    The constants are read from the environment once, at import, so they are set directly here.
    """
    from huggingface_hub import constants, hf_api
    from transformers.utils import hub as transformers_hub

    for key, text in hub.environment(cache).items():
        monkeypatch.setenv(key, text)
    template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(hf_api.api, "endpoint", hub.endpoint)
    monkeypatch.setattr(transformers_hub, "_hf_api", None, raising=False)  # made on first use
    if "datasets" in sys.modules:  # otherwise it reads the environment when it is imported
        from datasets import config

        monkeypatch.setattr(config, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(config, "HF_ENDPOINT", hub.endpoint)
