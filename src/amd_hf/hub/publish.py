"""One commit to the Hub from a folder, and the proof that what arrived is what was sent."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id

PICKLE_SUFFIXES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")


def publish_folder(
    folder: str | Path,
    repo_id: str,
    *,
    repo_type: str = "model",
    revision: str | None = None,
    private: bool | None = None,
    message: str | None = None,
    token: str | bool | None = None,
) -> CommitInfo:
    """Uploads every file of `folder` in one commit and compares the checksums on the Hub.

    The repository is created where it is missing. Weights are sent before the commit, so an
    interrupted upload changes nothing on the Hub, and the next try sends only what is missing.
    Files that are already there and not in `folder` stay.

    Args:
        folder: A complete repository, as written by `export_repository` or `export_space`.
        repo_id: `"name"` or `"organization/name"`.
        repo_type: `"model"`, `"dataset"` or `"space"` (a Gradio Space).
        revision: Branch to commit to, created from `main` where it is missing; `main` if None.
        private: Visibility of a repository that this call creates; the account's default if None.
        message: First line of the commit; names the folder if None.
        token: Access token, or None for the one that `hf auth login` stored.

    Returns:
        The commit; `.oid` is the revision to pin in `from_pretrained(..., revision=oid)`.

    Raises:
        ValueError: If `repo_id` is not a valid id, or `folder` is empty or holds pickled weights.
        RuntimeError: If a file on the Hub differs from the one that was sent.
        huggingface_hub.errors.HfHubHTTPError: If the Hub refuses a request.
    """
    folder = Path(folder)
    validate_repo_id(repo_id)
    files = check_folder(folder)
    api = HfApi(token=token)
    sdk = "gradio" if repo_type == "space" else None
    created = api.create_repo(
        repo_id, repo_type=repo_type, private=private, exist_ok=True, space_sdk=sdk
    )
    repo_id = created.repo_id
    if revision is not None:
        api.create_branch(repo_id, branch=revision, repo_type=repo_type, exist_ok=True)
    commit = api.create_commit(
        repo_id,
        [CommitOperationAdd(path.relative_to(folder).as_posix(), str(path)) for path in files],
        commit_message=message or f"Upload {folder.name}",
        repo_type=repo_type,
        revision=revision,
    )
    differing = list(differing_files(folder, repo_id, commit.oid, repo_type, token=token))
    if differing:
        raise RuntimeError(
            f"{len(differing)} file(s) of {repo_id}@{commit.oid} differ from those that were sent: "
            f"{', '.join(differing)}; delete them on the Hub and publish again."
        )
    return commit


def check_folder(folder: Path) -> list[Path]:
    """Returns the files to upload, sorted; hidden files and caches stay behind.

    Args:
        folder: The folder to upload.

    Raises:
        ValueError: If the folder is missing or empty, or holds a pickle-based weight file, which
            can run code when it is loaded.
    """
    if not folder.is_dir():
        raise ValueError(f"`folder` must be an existing folder, got {folder}; export it first.")
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not _is_hidden(path.relative_to(folder))
    ]
    if not files:
        raise ValueError(f"`folder` must hold files to upload, got an empty {folder}.")
    pickles = [path.name for path in files if path.suffix in PICKLE_SUFFIXES]
    if pickles:
        raise ValueError(
            f"`folder` must hold safetensors only, got {', '.join(pickles)}; "
            "save the model with `save_pretrained` and remove the pickled file."
        )
    return files


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") or part == "__pycache__" for part in path.parts)


def differing_files(
    folder: Path,
    repo_id: str,
    revision: str,
    repo_type: str = "model",
    *,
    token: str | bool | None = None,
) -> Iterator[str]:
    """Yields the files of `folder` that are missing on the Hub or have another checksum there.

    Args:
        folder: The folder that was uploaded.
        repo_id: The repository to compare with.
        revision: A branch, tag or commit.
        repo_type: `"model"`, `"dataset"` or `"space"`.
        token: Access token, or None for the stored one.

    Yields:
        Paths relative to `folder`, with forward slashes.
    """
    tree = HfApi(token=token).list_repo_tree(
        repo_id, recursive=True, revision=revision, repo_type=repo_type
    )
    remote = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
    for path in check_folder(folder):
        name = path.relative_to(folder).as_posix()
        entry = remote.get(name)
        if entry is None or not _is_same(path, entry):
            yield name


def _is_same(path: Path, entry: RepoFile) -> bool:
    """Tells whether the file has the sha256 (LFS) or git object id that the Hub reports."""
    data = path.read_bytes()
    if entry.lfs is not None:
        return hashlib.sha256(data).hexdigest() == entry.lfs.sha256
    git_oid = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False)
    return git_oid.hexdigest() == entry.blob_id
