"""A complete Hub repository in a folder: weights, settings, the code that loads them, a card.

What `save_pretrained` alone leaves out (the pipeline's code, `custom_pipelines`, the `auto_map` of
classes other than the saved one, licenses, pictures) is added, and what must be there is checked.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

import amd_hf
from amd_hf import (
    AMDForSemanticSegmentation,
    AMDImageProcessor,
    AMDPreTrainedModel,
    ZeroShotObjectSegmentationPipeline,
)
from amd_hf.hub.pictures import CardPicture
from amd_hf.hub.publish import check_folder
from amd_hf.whole_files import folder_written_aside

TASK = "zero-shot-object-segmentation"
AUTO_CLASSES = {
    "AutoConfig": "configuration_amd.AMDConfig",
    "AutoModel": "modeling_amd.AMDModel",
    "AutoModelForSemanticSegmentation": "modeling_amd.AMDForSemanticSegmentation",
    "AutoImageProcessor": "image_processing_amd.AMDImageProcessor",
}
# Files beside the weights of a checkpoint that belong to them wherever they go.
COMPANIONS = ("LICENSE*", "NOTICE*", "provenance.json", "training_*.json")
# Target of a Markdown link or picture that is neither an anchor nor a mail address.
RELATIVE_LINK = re.compile(r"\]\(((?!#|mailto:)[^)\s]+)\)")
CODE_BLOCK = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def export_repository(
    model: AMDPreTrainedModel,
    output_dir: str | Path,
    *,
    image_processor: AMDImageProcessor | None = None,
    card: str | None = None,
    pictures: Sequence[CardPicture] = (),
    companions_from: str | Path | None = None,
) -> Path:
    """Writes everything that a Hub repository of `model` holds.

    The folder loads with `AutoModel`, `AutoImageProcessor` and `pipeline` with
    `trust_remote_code=True` where this package is not installed, and without it where it is. It
    appears when it is complete.

    Args:
        model: An `AMDModel` or a fine-tuned `AMDForSemanticSegmentation`.
        output_dir: Folder to create; it must be empty or absent.
        image_processor: The model's image processor; made from its configuration if None.
        card: Text of the model card with its metadata; no README.md is written if None.
        pictures: The pictures of the card, in its folder `figures`.
        companions_from: Checkpoint folder whose licenses and provenance go along.

    Returns:
        The folder.

    Raises:
        ValueError: If the folder holds files already, a picture is missing, or two share a name.
        RuntimeError: If the written repository is incomplete.
    """
    output_dir = Path(output_dir)
    if output_dir.exists() and any(output_dir.iterdir()):
        raise ValueError(
            f"`output_dir` must be empty or absent, got {output_dir} with files in it."
        )
    processor = image_processor or AMDImageProcessor.from_model_config(model.config)
    if len({picture.path for picture in pictures}) < len(pictures):
        raise ValueError("`pictures` must have different file names; rename one of them.")
    with folder_written_aside(output_dir.absolute()) as partial:
        _write_model(model, processor, partial)
        for picture in pictures:
            if not picture.file.is_file():
                raise ValueError(f"`pictures` must be existing files, got {picture.file}.")
            _copy(picture.file, partial / picture.path)
        for companion in _companions(companions_from):
            _copy(companion, partial / companion.name)
        if card is not None:
            (partial / "README.md").write_text(card, encoding="utf-8")
        check_repository(partial)
    return output_dir


def _write_model(model: AMDPreTrainedModel, processor: AMDImageProcessor, folder: Path) -> None:
    """Writes weights, settings and the code that loads them."""
    is_semantic = isinstance(model, AMDForSemanticSegmentation)
    if is_semantic:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    else:
        pipeline = ZeroShotObjectSegmentationPipeline(
            model=model, image_processor=processor, task=TASK
        )
        pipeline.save_pretrained(folder)
    _complete_config(folder / "config.json", needs_pipeline=not is_semantic)
    _copy_code(folder)


def check_repository(folder: str | Path) -> None:
    """Raises a RuntimeError if a written repository lacks something that loading it needs.

    Args:
        folder: The folder that `export_repository` wrote.

    Raises:
        RuntimeError: If a file, an entry of config.json or a file that the card links is missing.
        ValueError: If the folder holds pickled weights.
    """
    folder = Path(folder)
    files = {path.name for path in check_folder(folder)}
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    wanted = {"model.safetensors", "preprocessor_config.json"}
    wanted |= {f"{reference.split('.')[0]}.py" for reference in AUTO_CLASSES.values()}
    for implementation in config.get("custom_pipelines", {}).values():
        wanted.add(f"{implementation['impl'].split('.')[0]}.py")
    if missing := sorted(wanted - files):
        raise RuntimeError(f"The repository in {folder} lacks {', '.join(missing)}.")
    if lacking := sorted(AUTO_CLASSES.keys() - config.get("auto_map", {}).keys()):
        raise RuntimeError(f"`auto_map` in {folder / 'config.json'} lacks {', '.join(lacking)}.")
    if (folder / "README.md").is_file():
        check_links(folder)


def check_links(folder: str | Path) -> None:
    """Raises a RuntimeError if the card in a folder links a file that is not there.

    Args:
        folder: Holds `README.md`, a model card with its metadata.

    Raises:
        RuntimeError: If a picture, a linked file or the linked license is missing.
    """
    folder = Path(folder)
    card = ModelCard.load(folder / "README.md")
    links = set(RELATIVE_LINK.findall(CODE_BLOCK.sub("", card.text)))
    if license_link := getattr(card.data, "license_link", None):
        links.add(license_link)
    missing = sorted(link for link in links if "://" not in link and not (folder / link).is_file())
    if missing:
        raise RuntimeError(f"The card in {folder} links {', '.join(missing)}, which is missing.")


def _complete_config(file: Path, needs_pipeline: bool) -> None:
    """Writes the `auto_map` of every class, whichever was saved, and the pipeline's entry."""
    config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    config["auto_map"] = {**AUTO_CLASSES, **config.get("auto_map", {})}
    if needs_pipeline:
        config["custom_pipelines"] = {
            TASK: {
                "impl": f"pipeline_amd.{ZeroShotObjectSegmentationPipeline.__name__}",
                "pt": ["AutoModel"],
                "type": "image",
            }
        }
    config.pop("_name_or_path", None)  # a path of this machine is nobody's business
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _copy_code(folder: Path) -> None:
    """Copies every module that travels, also those that only another class imports."""
    for module in sorted(Path(amd_hf.__file__).parent.glob("*_amd.py")):
        shutil.copyfile(module, folder / module.name)


def _companions(folder: str | Path | None) -> Iterable[Path]:
    if folder is None or not Path(folder).is_dir():
        return []
    return sorted({file for pattern in COMPANIONS for file in Path(folder).glob(pattern)})


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
