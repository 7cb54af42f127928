"""What the loopback Hub stores: repositories, their commits, and files with their checksums."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any


class HubError(Exception):
    """An answer with a status code and the Hub's `X-Error-Code`."""

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None):
        super().__init__(message)
        self.status, self.code, self.headers = status, code, headers or {}


@dataclass(frozen=True)
class Blob:
    """The bytes of one file and how the Hub stores them."""

    data: bytes
    is_lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def git_oid(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.data) + self.data).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_lfs else self.git_oid

    def entry(self, path: str) -> dict[str, Any]:
        entry = {"type": "file", "oid": self.git_oid, "size": len(self.data), "path": path}
        if self.is_lfs:
            entry["lfs"] = {"oid": self.sha256, "size": len(self.data), "pointerSize": 130}
        return entry


@dataclass
class Repository:
    """A repository: named revisions that point at immutable commits."""

    kind: str
    name: str
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    history: list[dict[str, str]] = field(default_factory=list)
    revisions: dict[str, str] = field(default_factory=dict)
    created_with: dict[str, Any] = field(default_factory=dict)

    def commit(self, revision: str, files: dict[str, Blob], summary: str) -> str:
        listing = "".join(f"{path}{blob.etag}" for path, blob in sorted(files.items()))
        oid = hashlib.sha1(f"{len(self.history)}{summary}{listing}".encode()).hexdigest()
        self.commits[oid] = files
        self.history.insert(0, {"oid": oid, "summary": summary})
        self.revisions[revision] = oid
        return oid

    def resolve(self, revision: str) -> str:
        oid = self.revisions.get(revision, revision)
        if oid not in self.commits:
            raise HubError(404, "RevisionNotFound", f"no revision {revision}")
        return oid

    def files(self, revision: str = "main") -> dict[str, Blob]:
        return self.commits[self.resolve(revision)]
