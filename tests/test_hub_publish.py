"""Uploads over real HTTP to the loopback Hub: one commit, retries, interruptions, checksums."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from amd_hf.hub.publish import differing_files, publish_folder

from .loopback_hub import LoopbackHub

WEIGHTS = b"weights " * 4096

# huggingface_hub 2.4 passes `data=` to its HTTP client for single-part LFS uploads.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "export"
    (folder / "examples").mkdir(parents=True)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    (folder / "examples" / "frame.jpg").write_bytes(b"jpeg")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "secret").write_text("stays at home")
    return folder


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries at once: what is tested is that there is a retry, not how long it waits."""
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _seconds: None)


def test_everything_arrives_in_one_commit(hub: LoopbackHub, folder: Path, tmp_path: Path) -> None:
    commit = publish_folder(folder, "org/amd-ytvos")
    repository = hub.repository("models", "org/amd-ytvos")
    assert len(repository.history) == 2  # the Hub's own first commit, and ours
    assert set(repository.files()) == {
        ".gitattributes",
        "README.md",
        "config.json",
        "model.safetensors",
        "examples/frame.jpg",
    }
    copy = Path(snapshot_download("org/amd-ytvos", revision=commit.oid, local_dir=tmp_path / "c"))
    assert (copy / "model.safetensors").read_bytes() == WEIGHTS
    assert (copy / "examples/frame.jpg").read_bytes() == b"jpeg"


def test_publishing_again_sends_only_what_changed(hub: LoopbackHub, folder: Path) -> None:
    first = publish_folder(folder, "org/amd-ytvos")
    (folder / "config.json").write_text('{"num_segments": 8}')
    second = publish_folder(folder, "org/amd-ytvos")
    assert hub.count("PUT /lfs/") == 1
    assert first.oid != second.oid
    old = hf_hub_download("org/amd-ytvos", "config.json", revision=first.oid)
    new = hf_hub_download("org/amd-ytvos", "config.json")
    assert Path(old).read_text() == "{}"
    assert Path(new).read_text() == '{"num_segments": 8}'


def test_a_branch_is_created_and_main_stays(hub: LoopbackHub, folder: Path) -> None:
    publish_folder(folder, "org/amd-ytvos")
    (folder / "config.json").write_text('{"a": 1}')
    publish_folder(folder, "org/amd-ytvos", revision="next")
    repository = hub.repository("models", "org/amd-ytvos")
    assert repository.files("main")["config.json"].data == b"{}"
    assert repository.files("next")["config.json"].data == b'{"a": 1}'


@pytest.mark.parametrize("trouble", [{"status": 503}, {"status": 500}, {"cut_after": 100}])
@pytest.mark.usefixtures("no_waiting")
def test_an_interrupted_upload_is_tried_again(
    hub: LoopbackHub, folder: Path, trouble: dict[str, int]
) -> None:
    hub.fail("PUT /lfs/", times=2, **trouble)
    publish_folder(folder, "org/amd-ytvos")
    assert hub.count("PUT /lfs/") == 3
    assert hub.repository("models", "org/amd-ytvos").files()["model.safetensors"].data == WEIGHTS


@pytest.mark.usefixtures("no_waiting")
def test_a_refused_commit_changes_nothing_and_can_be_resumed(
    hub: LoopbackHub, folder: Path
) -> None:
    hub.fail("POST .*/commit/", status=403)
    with pytest.raises(HfHubHTTPError, match="403"):
        publish_folder(folder, "org/amd-ytvos")
    assert set(hub.repository("models", "org/amd-ytvos").files()) == {".gitattributes"}
    publish_folder(folder, "org/amd-ytvos")
    assert hub.count("PUT /lfs/") == 1, "the weights were there already"


def test_bytes_damaged_on_the_way_are_found(hub: LoopbackHub, folder: Path) -> None:
    hub.fail("PUT /lfs/", corrupt=True)
    with pytest.raises(RuntimeError, match=r"differ from those that were sent: model\.safetensors"):
        publish_folder(folder, "org/amd-ytvos")


def test_a_wrong_checksum_is_refused_by_the_server(hub: LoopbackHub) -> None:
    import httpx

    answer = httpx.put(f"{hub.endpoint}/lfs/{'0' * 64}", content=b"something else")
    assert answer.status_code == 422


def test_differing_files_names_missing_and_changed_ones(hub: LoopbackHub, folder: Path) -> None:
    commit = publish_folder(folder, "org/amd-ytvos")
    assert list(differing_files(folder, "org/amd-ytvos", commit.oid)) == []
    (folder / "config.json").write_text("changed")
    (folder / "new.json").write_text("{}")
    assert list(differing_files(folder, "org/amd-ytvos", "main")) == ["config.json", "new.json"]


@pytest.mark.usefixtures("no_waiting")
def test_a_download_that_breaks_off_continues_where_it_stopped(
    hub: LoopbackHub, folder: Path
) -> None:
    publish_folder(folder, "org/amd-ytvos")
    hub.fail("GET .*model.safetensors", cut_after=1000)
    path = hf_hub_download("org/amd-ytvos", "model.safetensors")
    assert Path(path).read_bytes() == WEIGHTS
    assert hub.count("GET .*model.safetensors") == 2


def test_a_truncated_download_is_an_error(hub: LoopbackHub, folder: Path) -> None:
    publish_folder(folder, "org/amd-ytvos")
    hub.fail("GET .*model.safetensors", corrupt=True, times=5)
    with pytest.raises(OSError, match="Consistency check failed"):
        hf_hub_download("org/amd-ytvos", "model.safetensors")


def test_what_is_missing_is_named(hub: LoopbackHub, folder: Path) -> None:
    publish_folder(folder, "org/amd-ytvos")
    with pytest.raises(RepositoryNotFoundError):
        hf_hub_download("org/absent", "config.json")
    with pytest.raises(EntryNotFoundError):
        hf_hub_download("org/amd-ytvos", "absent.json")
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download("org/amd-ytvos", "config.json", revision="absent")


def test_a_wrong_token_is_refused(
    hub: LoopbackHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(HfHubHTTPError, match="401"):
        publish_folder(folder, "org/amd-ytvos")


def test_datasets_and_spaces_have_their_own_names(hub: LoopbackHub, folder: Path) -> None:
    publish_folder(folder, "org/same", repo_type="dataset")
    publish_folder(folder, "org/same", repo_type="space")
    assert hub.repository("spaces", "org/same").created_with["sdk"] == "gradio"
    path = hf_hub_download("org/same", "config.json", repo_type="dataset")
    assert Path(path).read_text() == "{}"
    with pytest.raises(RepositoryNotFoundError):
        HfApi().model_info("org/same")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "last.pth", "sub/state.pt", "a.pkl"])
def test_pickles_are_never_uploaded(hub: LoopbackHub, folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"\x80\x04.")
    with pytest.raises(ValueError, match="must hold safetensors only"):
        publish_folder(folder, "org/amd-ytvos")
    assert hub.requests.total() == 0


def test_bad_arguments_are_found_before_any_request(hub: LoopbackHub, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty"):
        publish_folder(tmp_path / "empty", "org/name")
    with pytest.raises(ValueError, match="existing folder"):
        publish_folder(tmp_path / "absent", "org/name")
    with pytest.raises(ValueError, match="Repo id"):
        publish_folder(tmp_path, "org/../name")
    assert hub.requests.total() == 0
