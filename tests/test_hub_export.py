"""An exported repository loads where only its base packages are installed, and over the Hub."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from amd_hf import (
    AMDConfig,
    AMDForSemanticSegmentation,
    AMDImageProcessor,
    AMDModel,
    ZeroShotObjectSegmentationPipeline,
)
from amd_hf.hub.export import AUTO_CLASSES, TASK, check_repository, export_repository
from amd_hf.hub.pictures import CardPicture
from amd_hf.hub.publish import publish_folder

from .clean_environment import make_site, run_python
from .loopback_hub import LoopbackHub

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes")

# Loads by `MODEL`, without the package, and reports what came out.
REMOTE = """
import json
import numpy as np
import torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForSemanticSegmentation
from transformers import pipeline
name, extra = SETTINGS["model"], SETTINGS["extra"]
config = AutoConfig.from_pretrained(name, trust_remote_code=True, **extra)
model = AutoModel.from_pretrained(name, trust_remote_code=True, **extra).eval()
other = AutoModelForSemanticSegmentation.from_pretrained(name, trust_remote_code=True, **extra)
processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=True, **extra)
image = Image.open(SETTINGS["image"])
with torch.no_grad():
    logits = model(**processor(image, return_tensors="pt")).segment_logits
pipe = pipeline(SETTINGS["task"], model=name, trust_remote_code=True, **extra)
entry = pipe(image)[0]
try:
    import amd_hf
    raise SystemExit("amd_hf must not be there")
except ModuleNotFoundError:
    pass
print(json.dumps({
    "classes": [type(part).__name__ for part in (config, model, other, processor, pipe)],
    "sum": float(logits.double().sum()), "shape": list(logits.shape),
    "mask": float(np.asarray(entry["mask"]).mean()), "score": entry["score"],
}))
"""


@pytest.fixture(scope="module")
def image_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 255, (64, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="module")
def model() -> AMDModel:
    torch.manual_seed(0)
    return AMDModel(AMDConfig.tiny(object_segment=3)).eval()


@pytest.fixture(scope="module")
def exported(model: AMDModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("export")
    source = base / "checkpoint"
    source.mkdir()
    (source / "LICENSE-weights").write_text("terms of the weights")
    (source / "provenance.json").write_text("{}")
    (source / "optimizer.pt").write_bytes(b"not for others")
    picture = base / "strip.png"
    Image.new("RGB", (8, 8)).save(picture)
    return export_repository(
        model,
        base / "repository",
        card="---\nlicense: other\n---\n# A card\n",
        pictures=[CardPicture(picture, "A strip")],
        companions_from=source,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_site(tmp_path_factory.mktemp("clean") / "site")


def local_result(model: AMDModel, image_file: Path) -> tuple[float, float]:
    processor = AMDImageProcessor.from_model_config(model.config)
    image = Image.open(image_file)
    with torch.no_grad():
        logits = model(**processor(image, return_tensors="pt")).segment_logits
    pipe = ZeroShotObjectSegmentationPipeline(model=model, image_processor=processor)
    return float(logits.double().sum()), float(np.asarray(pipe(image)[0]["mask"]).mean())


def assert_same_weights(model: torch.nn.Module, other: torch.nn.Module) -> None:
    others = other.state_dict()
    assert others.keys() == model.state_dict().keys()
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, others[name]), name


def settings(model: str, image: Path, **extra: str) -> str:
    values = {"model": model, "image": str(image), "task": TASK, "extra": extra}
    return f"SETTINGS = {values!r}\n"


def test_the_folder_holds_everything(exported: Path) -> None:
    files = {path.relative_to(exported).as_posix() for path in exported.rglob("*")}
    assert {
        "model.safetensors",
        "config.json",
        "preprocessor_config.json",
        "pipeline_amd.py",
        "README.md",
        "LICENSE-weights",
        "provenance.json",
        "figures/strip.png",
    } <= files
    assert "optimizer.pt" not in files
    config = json.loads((exported / "config.json").read_text())
    assert config["auto_map"] == AUTO_CLASSES
    assert config["custom_pipelines"][TASK]["pt"] == ["AutoModel"]
    assert "_name_or_path" not in config


def test_it_loads_without_the_package(
    exported: Path, site: Path, image_file: Path, model: AMDModel, tmp_path: Path
) -> None:
    result = run_python(settings(str(exported), image_file) + REMOTE, site, tmp_path)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    total, mask = local_result(model, image_file)
    assert found["classes"] == [
        "AMDConfig",
        "AMDModel",
        "AMDForSemanticSegmentation",
        "AMDImageProcessor",
        "ZeroShotObjectSegmentationPipeline",
    ]
    assert found["shape"][1] == 5
    assert found["sum"] == pytest.approx(total, rel=1e-5)
    assert found["mask"] == pytest.approx(mask, abs=1e-6)


def test_it_loads_with_the_package_and_no_flag(
    exported: Path, image_file: Path, model: AMDModel
) -> None:
    from transformers import AutoModel, pipeline

    pipe = pipeline(TASK, model=str(exported))
    assert type(pipe) is ZeroShotObjectSegmentationPipeline
    assert type(AutoModel.from_pretrained(exported)) is AMDModel
    assert pipe.model.config.object_segment == pipe.image_processor.object_segment == 3
    mask = float(np.asarray(pipe(str(image_file))[0]["mask"]).mean())
    assert mask == pytest.approx(local_result(model, image_file)[1], abs=1e-6)


def test_exporting_what_was_exported_gives_the_same(
    exported: Path, tmp_path: Path, model: AMDModel
) -> None:
    again = export_repository(AMDModel.from_pretrained(exported), tmp_path / "again")
    names = {path.name for path in again.iterdir()}
    assert names == {path.name for path in exported.iterdir()} - {
        "README.md",
        "LICENSE-weights",
        "provenance.json",
        "figures",
    }
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        assert (again / name).read_bytes() == (exported / name).read_bytes(), name


def test_a_fine_tuned_model_is_exported_too(tmp_path: Path) -> None:
    model = AMDForSemanticSegmentation(AMDConfig.tiny(num_labels=3))
    folder = export_repository(model, tmp_path / "repository")
    config = json.loads((folder / "config.json").read_text())
    assert "custom_pipelines" not in config
    assert config["auto_map"].keys() == AUTO_CLASSES.keys()
    loaded = AMDForSemanticSegmentation.from_pretrained(folder)
    assert_same_weights(model, loaded)


def test_an_incomplete_repository_is_named(exported: Path, tmp_path: Path) -> None:
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(exported, broken)
    (broken / "pipeline_amd.py").unlink()
    with pytest.raises(RuntimeError, match=r"lacks pipeline_amd\.py"):
        check_repository(broken)
    shutil.copyfile(exported / "pipeline_amd.py", broken / "pipeline_amd.py")
    config = json.loads((broken / "config.json").read_text())
    del config["auto_map"]["AutoModel"]
    (broken / "config.json").write_text(json.dumps(config))
    with pytest.raises(RuntimeError, match="lacks AutoModel"):
        check_repository(broken)


@pytest.mark.parametrize(
    "link", ["![Where it fails](figures/fails.jpg)", "[terms](LICENSE-weights)", "![x](../x.png)"]
)
def test_a_card_with_a_dead_link_is_refused(model: AMDModel, tmp_path: Path, link: str) -> None:
    card = f"---\nlicense: mit\n---\n# A card\n[web](https://example.org/a.png) {link}\n"
    with pytest.raises(RuntimeError, match="which is missing"):
        export_repository(model, tmp_path / "repository", card=card)


def test_code_in_a_card_is_no_link(model: AMDModel, tmp_path: Path) -> None:
    card = "---\nlicense: mit\n---\n# A card\n```python\nfound[0](image)\n```\n[below](#a-card)\n"
    assert export_repository(model, tmp_path / "repository", card=card).is_dir()


def test_a_card_without_its_license_file_is_refused(model: AMDModel, tmp_path: Path) -> None:
    card = "---\nlicense: other\nlicense_name: mine\nlicense_link: LICENSE-weights\n---\n# A card\n"
    with pytest.raises(RuntimeError, match="links LICENSE-weights, which is missing"):
        export_repository(model, tmp_path / "repository", card=card)


def test_bad_arguments(model: AMDModel, exported: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="empty or absent"):
        export_repository(model, exported)
    absent = CardPicture(tmp_path / "absent.png", "Not there")
    with pytest.raises(ValueError, match="existing files"):
        export_repository(model, tmp_path / "x", pictures=[absent])
    same_name = CardPicture(tmp_path / "other" / "absent.png", "Of the same name")
    with pytest.raises(ValueError, match="different file names"):
        export_repository(model, tmp_path / "y", pictures=[absent, same_name])


def test_the_hub_serves_it_by_name(
    hub: LoopbackHub, exported: Path, site: Path, image_file: Path, model: AMDModel, tmp_path: Path
) -> None:
    """Push, then load by id: with the package here, and without it in a clean child."""
    from transformers import pipeline

    commit = publish_folder(exported, "org/amd-ytvos")
    loaded = AMDModel.from_pretrained("org/amd-ytvos", revision=commit.oid)
    assert_same_weights(model, loaded)
    pipe = pipeline(TASK, model="org/amd-ytvos")
    total, mask = local_result(model, image_file)
    assert float(np.asarray(pipe(str(image_file))[0]["mask"]).mean()) == pytest.approx(mask)

    environment = hub.environment(tmp_path / "child")
    result = run_python(
        settings("org/amd-ytvos", image_file, revision=commit.oid) + REMOTE,
        site,
        tmp_path,
        environment,
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["sum"] == pytest.approx(total, rel=1e-5)
    assert found["mask"] == pytest.approx(mask, abs=1e-6)


def test_transformers_own_push_works_too(hub: LoopbackHub, model: AMDModel) -> None:
    """`model.push_to_hub` and `processor.push_to_hub`, then a load by id."""
    model.push_to_hub("org/pushed")
    AMDImageProcessor.from_model_config(model.config).push_to_hub("org/pushed")
    files = hub.repository("models", "org/pushed").files()
    assert {"model.safetensors", "modeling_amd.py", "preprocessor_config.json"} <= set(files)
    loaded = AMDModel.from_pretrained("org/pushed")
    assert_same_weights(model, loaded)
