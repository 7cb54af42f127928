"""Model cards made from real results, the Space's folder, and the publishing script."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from amd_hf import AMDConfig, AMDForSemanticSegmentation, AMDImageProcessor, AMDModel
from amd_hf.evaluation import evaluate_benchmark
from amd_hf.hub import (
    CardPicture,
    check_repository,
    export_space,
    fill_model_card,
    read_provenance,
    read_results,
)
from amd_hf.hub.export import check_links

from .evaluation_data import write_davis, write_images
from .loopback_hub import LoopbackHub

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes")

PROVENANCE: dict[str, Any] = {
    "pretrained_inputs": "none",
    "ground_truth": "none",
    "sources": [
        {"name": "generated clips", "videos": 7, "clips": 21, "terms": "Apache-2.0"},
        {"name": "other clips", "videos": 2, "clips": 9, "terms": "research only"},
    ],
    "training": {"steps": "12 000", "hardware": "2 CPU cores"},
    "weights_license": {"id": "other", "name": "research-only", "link": "LICENSE-weights"},
    "reproduce": "python scripts/pretrain.py --dataset DIR",
}


@pytest.fixture
def template(repository: Path) -> Path:
    return repository / "model_card.md"


@pytest.fixture
def processor(tiny_model: AMDModel) -> AMDImageProcessor:
    return AMDImageProcessor.from_model_config(tiny_model.config, size={"shortest_edge": 48})


@pytest.fixture
def result_files(tiny_model: AMDModel, processor: AMDImageProcessor, tmp_path: Path) -> list[Path]:
    files = []
    for name, write in (("davis2016", write_davis), ("ecssd", write_images)):
        data = write(tmp_path / name)
        result = evaluate_benchmark(
            tiny_model, processor, name, data, controls=True, num_bootstrap=20, progress=False
        )
        files.append(tmp_path / f"{name}.json")
        files[-1].write_text(json.dumps(result))
    return files


@pytest.fixture
def checkpoint(tiny_model: AMDModel, processor: AMDImageProcessor, tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    tiny_model.save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "provenance.json").write_text(json.dumps(PROVENANCE))
    (folder / "LICENSE-weights").write_text("terms")
    return folder


@pytest.fixture(scope="module")
def script() -> Any:
    path = Path(__file__).resolve().parent.parent / "scripts" / "push_to_hub.py"
    spec = importlib.util.spec_from_file_location("push_to_hub", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_filled_card(template: Path, tiny_model: AMDModel, result_files: list[Path]) -> None:
    results = read_results(result_files)
    text = fill_model_card(
        template,
        repo_id="org/amd-ytvos",
        model=tiny_model,
        results=results,
        provenance=PROVENANCE,
        pictures=[
            CardPicture(Path("fails.png"), "Where it fails", shows_failures=True),
            CardPicture(Path("four_photos.png"), "Four photos"),
        ],
    )
    card = ModelCard(text)
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "image-segmentation"
    assert (card.data.license, card.data.license_name) == ("other", "research-only")
    measured = {(e.dataset_type, e.metric_name): e.metric_value for e in card.data.eval_results}
    assert measured["davis2016", "Region similarity J"] == round(results[0]["selected"]["J"], 4)
    assert measured["ecssd", "Mean absolute error"] == round(results[1]["selected"]["mae"], 4)
    assert all("subset" in entry.dataset_name for entry in card.data.eval_results)
    for line in (
        "| pre-trained inputs | none |",
        "| ground truth used | none |",
        "| generated clips | 7 | 21 | Apache-2.0 |",
        "| other clips | 2 | 9 | research only |",
        "| steps | 12 000 |",
        "![four photos](figures/four_photos.png)\n\n*Four photos*",
        "![fails](figures/fails.png)\n\n*Where it fails*",
        "python scripts/pretrain.py --dataset DIR",
        "Weights: research-only\n([terms](LICENSE-weights))",
    ):
        assert line in text, line
    assert "control: center ellipse" in text
    assert "AMD (per-img)" in text, "published rows"
    top, limitations = text.index("figures/four_photos.png"), text.index("## Limitations")
    assert top < text.index("## How to use it")
    assert limitations < text.index("figures/fails.png") < text.index("## Licenses")


def test_protocols_of_one_benchmark_stay_apart(
    template: Path, tiny_model: AMDModel, result_files: list[Path]
) -> None:
    per_image = read_results(result_files[:1])[0]
    per_video = {
        **per_image,
        "protocol": "per-video, 100 steps",
        "selected": {**per_image["selected"], "J": 0.75},
    }
    text = fill_model_card(
        template,
        repo_id="org/name",
        model=tiny_model,
        provenance=PROVENANCE,
        results=[per_image, per_video],
    )
    [index] = ModelCard(text).data.to_dict()["model-index"]
    names = [entry["task"]["name"] for entry in index["results"]]
    assert [name.split("(")[1] for name in names] == ["per-image)", "per-video, 100 steps)"]
    for entry in index["results"]:
        metrics = [metric["name"] for metric in entry["metrics"]]
        assert len(metrics) == len(set(metrics))


def test_every_table_of_the_card_is_whole(
    template: Path, tiny_model: AMDModel, result_files: list[Path]
) -> None:
    """Rows of a table follow each other without a gap and have the columns of its head."""
    text = fill_model_card(
        template,
        repo_id="org/name",
        model=tiny_model,
        results=read_results(result_files),
        provenance=PROVENANCE,
    )
    tables = [
        [line for line in block.splitlines() if line.startswith("|")]
        for block in text.split("\n\n")
        if "|---" in block or "| ---" in block
    ]
    assert len(tables) == 5
    for table in tables:
        assert len(table) >= 3, table
        assert len({line.count("|") for line in table}) == 1, table
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == sum(map(len, tables)), "a row stands outside of every table"


def test_a_card_without_results_says_so(template: Path, tiny_model: AMDModel) -> None:
    text = fill_model_card(template, repo_id="o/n", model=tiny_model, provenance=PROVENANCE)
    assert "No evaluation was run" in text
    assert ModelCard(text).data.eval_results is None


def test_the_card_of_a_fine_tuned_model(template: Path) -> None:
    model = AMDForSemanticSegmentation(AMDConfig.tiny(num_labels=3))
    text = fill_model_card(template, repo_id="o/n", model=model, provenance=PROVENANCE)
    assert "semantic-segmentation" in ModelCard(text).data.tags


def test_provenance_is_compulsory(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"provenance\.json is missing"):
        read_provenance(tmp_path)
    (tmp_path / "provenance.json").write_text("{")
    with pytest.raises(ValueError, match="must be JSON"):
        read_provenance(tmp_path)
    for key in PROVENANCE.keys() - {"reproduce"}:
        partial = {name: value for name, value in PROVENANCE.items() if name != key}
        (tmp_path / "provenance.json").write_text(json.dumps(partial))
        with pytest.raises(ValueError, match=f"lacks '{key}'"):
            read_provenance(tmp_path)
    (tmp_path / "provenance.json").write_text(json.dumps(PROVENANCE | {"sources": [{"name": "x"}]}))
    with pytest.raises(ValueError, match="needs 'videos'"):
        read_provenance(tmp_path)


def test_the_bundled_checkpoint_states_its_provenance() -> None:
    from amd_hf import DEFAULT_CHECKPOINT

    provenance = read_provenance(DEFAULT_CHECKPOINT)
    assert provenance["pretrained_inputs"] == "none"
    assert provenance["sources"]


def test_the_card_of_the_bundled_checkpoint_links_what_is_there() -> None:
    from amd_hf import DEFAULT_CHECKPOINT

    check_links(DEFAULT_CHECKPOINT)


def test_a_dry_run_writes_and_sends_nothing(
    script: Any, checkpoint: Path, result_files: list[Path], hub: LoopbackHub, tmp_path: Path
) -> None:
    out, picture = tmp_path / "out", tmp_path / "strip.png"
    picture.write_bytes(b"png")
    arguments = ["org/amd", "--model", str(checkpoint), "--dry-run", str(out), "--num-scenes", "3"]
    arguments += ["--results", *map(str, result_files), "--picture", str(picture), "A strip"]
    assert script.main(arguments) == 0
    assert hub.requests.total() == 0
    written = {path.relative_to(out).as_posix() for path in out.rglob("*")}
    assert {"README.md", "pipeline_amd.py", "LICENSE-weights", "figures/strip.png"} <= written
    assert {"figures/photos.jpg", "figures/best_median_worst.jpg"} <= written
    card = (out / "README.md").read_text()
    assert "# amd\n" in card
    assert card.index("figures/photos.jpg") < card.index("## Limitations")
    assert card.index("figures/best_median_worst.jpg") > card.index("## Limitations")
    (out / "figures" / "photos.jpg").unlink()
    with pytest.raises(RuntimeError, match=r"links figures/photos\.jpg, which is missing"):
        check_repository(out)


def test_the_script_publishes_in_one_commit(
    script: Any, checkpoint: Path, hub: LoopbackHub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main(["org/amd", "--model", str(checkpoint), "--num-scenes", "0"]) == 0
    repository = hub.repository("models", "org/amd")
    assert len(repository.history) == 2
    assert f"revision='{repository.revisions['main']}'" in capsys.readouterr().out
    assert AMDModel.from_pretrained("org/amd").config.num_segments == 5
    assert ModelCard.load("org/amd").data.license == "other"


def test_the_script_explains_what_is_wrong(
    script: Any, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkpoint / "provenance.json").unlink()
    out = str(tmp_path / "out")
    assert script.main(["org/amd", "--model", str(checkpoint), "--dry-run", out]) == 2
    assert "provenance.json is missing" in capsys.readouterr().err
    assert script.main(["org/amd", "--space", "--dry-run", out]) == 2
    assert "needs `--wheel`" in capsys.readouterr().err


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """A small, real wheel under this package's name: pip installs it."""
    import zipfile

    path = tmp_path / "amd_hf-0.0.1-py3-none-any.whl"
    info = "amd_hf-0.0.1.dist-info"
    metadata = "Metadata-Version: 2.1\nName: amd-hf\nVersion: 0.0.1\nProvides-Extra: demo\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("amd_hf/__init__.py", "")
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


def test_a_published_space_installs_its_wheel_by_address(
    script: Any, wheel: Path, hub: LoopbackHub, tmp_path: Path
) -> None:
    """`requirements.txt` alone must suffice: a Space installs it before it sees the other files."""
    assert script.main(["org/demo", "--space", "--wheel", str(wheel)]) == 0
    space = hub.repository("spaces", "org/demo")
    assert space.created_with["sdk"] == "gradio"
    files = space.files()
    assert files[wheel.name].is_lfs
    assert {"app.py", "README.md", "examples/cat.jpg", "examples/SOURCES.md"} <= files.keys()
    assert b"ORG/NAME" not in files["README.md"].data
    header = ModelCard(files["README.md"].data.decode(), ignore_metadata_errors=False).data
    assert (header.sdk, header.app_file) == ("gradio", "app.py")
    assert len(header.short_description) <= 60
    requirements = tmp_path / "requirements.txt"
    requirements.write_bytes(files["requirements.txt"].data)
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--disable-pip-version-check"]
    install += ["--no-index", "--target", str(tmp_path / "site"), "-r", str(requirements)]
    result = subprocess.run(install, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "site" / "amd_hf" / "__init__.py").is_file()


def test_export_space_checks_its_arguments(wheel: Path, repository: Path, tmp_path: Path) -> None:
    app = repository / "spaces"
    with pytest.raises(ValueError, match="`wheel` must be an existing"):
        export_space(app, tmp_path / "out", tmp_path / "other-1.0-py3-none-any.whl", "o/n")
    with pytest.raises(ValueError, match="`app_dir` must hold"):
        export_space(tmp_path, tmp_path / "out", wheel, "o/n")
    export_space(app, tmp_path / "out", wheel, "o/n")
    with pytest.raises(ValueError, match="empty or absent"):
        export_space(app, tmp_path / "out", wheel, "o/n")
