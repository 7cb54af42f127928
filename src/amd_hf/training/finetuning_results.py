"""What a fine-tuning run writes: scores, pictures, the best weights, the final folder, the Hub."""

from __future__ import annotations

import colorsys
import json
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from amd_hf.data.semantic_images import IGNORED, LabelledImages
from amd_hf.image_processing_amd import AMDImageProcessor
from amd_hf.metrics import ConfusionMatrix
from amd_hf.training.checkpointing import (
    PARTIAL_PREFIX,
    WRITE_ERRORS,
    commit_checkpoint,
    sync_path,
    write_text_atomically,
)
from amd_hf.training.finetuning_arguments import FinetuningArguments
from amd_hf.training.finetuning_data import MAX_ASPECT, SemanticData
from amd_hf.training.interrupts import RunError
from amd_hf.visualization import contact_sheet

logger = logging.getLogger(__name__)

RESULTS_FILE = "all_results.json"
SCORE_FILE = "score.json"
BEST_FOLDER = "best"
PICTURE_COLUMNS = ("image", "mask", "prediction")
IGNORED_COLOR = (255, 255, 255)


def build_processor(args: FinetuningArguments, config: Any) -> AMDImageProcessor:
    """The image processor that goes with the weights: short side as in the evaluation."""
    return AMDImageProcessor.from_model_config(
        config,
        size={"shortest_edge": args.short_side},
        max_size=MAX_ASPECT * args.short_side,
    )


@torch.no_grad()
def predict(
    model: Any, processor: AMDImageProcessor, image: Image.Image, size: tuple[int, int], run: Any
) -> NDArray[np.int64]:
    """Class ids of one image at `size` (height, width); `run` gives the mixed precision."""
    pixels = processor(image, return_tensors="pt")["pixel_values"].to(model.device)
    with run.accelerator.autocast():
        outputs = model(pixel_values=pixels)
    (labels,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[size])
    return labels.cpu().numpy()


def evaluate_semantic_model(run: Any, images: LabelledImages) -> dict[str, Any]:
    """Scores of the present weights; all processes call it and share the images.

    Args:
        run: The run; `args`, `accelerator`, `unwrapped_model`, `processor`, `data` are read.
        images: Images with masks; scored whole, at the size of their masks.

    Returns:
        `mean_iou`, `mean_accuracy`, `pixel_accuracy` in [0, 1], `iou` (a value per class, NaN where
        a class never occurs) and `num_images`.
    """
    indices = spread_indices(len(images), run.args.max_eval_images or len(images))
    accelerator, model = run.accelerator, run.unwrapped_model
    total = ConfusionMatrix(len(run.data.labels), IGNORED)
    if accelerator.num_processes > 1:
        # Without SyncBatchNorm the processes' running statistics differ; those of the main one are
        # saved, so those are scored.
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, src=0)
    was_training = model.training
    model.eval()
    try:
        for index in indices[accelerator.process_index :: accelerator.num_processes]:
            mask = images.load_mask(index)
            size = (mask.shape[0], mask.shape[1])
            total.update(predict(model, run.processor, images.load_image(index), size, run), mask)
    finally:
        model.train(was_training)
    if accelerator.num_processes > 1:
        counts = torch.from_numpy(total.counts).to(accelerator.device)
        total.counts = accelerator.reduce(counts, "sum").cpu().numpy()
    return {**total.compute(), "num_images": len(indices)}


def draw_predictions(run: Any, images: LabelledImages) -> NDArray[np.uint8]:
    """A contact sheet: image, mask and prediction of some images, uint8 (H, W, 3)."""
    model = run.unwrapped_model
    was_training = model.training
    model.eval()
    rows = []
    try:
        for index in spread_indices(len(images), run.args.num_pictures):
            image, mask = images.load_image(index), images.load_mask(index)
            size = (mask.shape[0], mask.shape[1])
            predicted = predict(model, run.processor, image, size, run)
            rows.append([np.asarray(image), color_labels(mask), color_labels(predicted)])
    finally:
        model.train(was_training)
    return np.asarray(contact_sheet(rows, column_captions=PICTURE_COLUMNS))


def spread_indices(count: int, number: int) -> list[int]:
    """At most `number` indices, evenly spread over `count`: neighbors are often frames of a video.

    Args:
        count: Number of images.
        number: Number of indices that are wanted.
    """
    return np.linspace(0, count - 1, min(count, number)).round().astype(int).tolist()


def color_labels(labels: NDArray[np.integer]) -> NDArray[np.uint8]:
    """A picture of class ids: black for class 0, a hue per further class, white where ignored.

    Args:
        labels: Class ids of shape (H, W), `IGNORED` where a pixel does not count.

    Returns:
        RGB, uint8 of shape (H, W, 3).
    """
    palette = np.zeros((IGNORED + 1, 3), dtype=np.uint8)
    for index in range(1, IGNORED):
        # Steps of the golden ratio keep neighboring classes apart, however many there are.
        hue, light = (0.618 * index) % 1.0, (0.45, 0.6, 0.35)[index % 3]
        palette[index] = [round(255 * v) for v in colorsys.hls_to_rgb(hue, light, 0.65)]
    palette[IGNORED] = IGNORED_COLOR
    return palette[labels]


class BestWeights:
    """Keeps the weights of the best evaluation in `OUTPUT_DIR/best_step_N`, at the end in `best`.

    The score lies beside the weights, so whatever moment the run is killed at, the folder on the
    disk is whole and says how good it is.

    Args:
        output_dir: Folder of the run.
    """

    def __init__(self, output_dir: str | Path) -> None:
        self.output_dir = Path(output_dir)
        self.folder: Path | None = None
        self.step: int | None = None
        self.scores: dict[str, Any] = {}
        for folder in self._folders():
            found = json.loads((folder / SCORE_FILE).read_text())
            if found["scores"]["mean_iou"] > self.mean_iou:
                self.folder, self.step, self.scores = folder, found["step"], found["scores"]

    @property
    def mean_iou(self) -> float:
        """Mean IoU of the kept weights; -1 before there are any."""
        return float(self.scores.get("mean_iou", -1.0))

    def _folders(self) -> list[Path]:
        folders = [self.output_dir / BEST_FOLDER, *sorted(self.output_dir.glob("best_step_*"))]
        return [folder for folder in folders if (folder / SCORE_FILE).is_file()]

    def clear(self) -> None:
        """Forgets and deletes what is kept."""
        self.folder, self.step, self.scores = None, None, {}
        self._remove_others()

    def offer(
        self, step: int, scores: dict[str, Any], model: Any, processor: AMDImageProcessor
    ) -> bool:
        """Keeps these weights if they are better than all before.

        Args:
            step: Optimizer steps done.
            scores: Result of `evaluate_semantic_model`.
            model: The model, not wrapped.
            processor: Its image processor.

        Returns:
            Whether they were kept. A full disk costs these weights only, and is logged.
        """
        if scores["mean_iou"] <= self.mean_iou:
            return False
        partial = self.output_dir / f"{PARTIAL_PREFIX}best_step_{step}"
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            model.save_pretrained(partial)
            processor.save_pretrained(partial)
            values = _without_nan({"step": step, "scores": scores})
            (partial / SCORE_FILE).write_text(json.dumps(values))
            folder = commit_checkpoint(partial)
        except WRITE_ERRORS as error:
            logger.error("The best weights could not be written: %s", error)
            return False
        self.folder, self.step, self.scores = folder, step, values["scores"]
        self._remove_others()
        return True

    def _remove_others(self) -> None:
        for folder in self._folders():
            if folder != self.folder:
                shutil.rmtree(folder)

    def finish(self) -> Path | None:
        """Gives the best weights their final name, `best`; None if there are none."""
        if self.folder is None:
            return None
        self._remove_others()
        final = self.output_dir / BEST_FOLDER
        if self.folder != final:
            self.folder.rename(final)
            sync_path(self.output_dir)
            self.folder = final
        return final


def write_results(output_dir: str | Path, results: dict[str, Any]) -> None:
    """Writes `all_results.json`; a class that never occurs has the IoU null."""
    write_text_atomically(
        Path(output_dir) / RESULTS_FILE, json.dumps(_without_nan(results), indent=1)
    )


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and value != value else value


def check_hub(args: FinetuningArguments) -> str:
    """Creates the repository before training, so that a wrong token costs nothing.

    Returns:
        The id of the repository.

    Raises:
        ValueError: If the id is not valid or the Hub refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    repo_id = args.hub_model_id or Path(args.output_dir).resolve().name
    try:
        created = HfApi(token=args.hub_token).create_repo(
            repo_id, private=args.hub_private_repo or None, exist_ok=True
        )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ValueError(f"`hub_model_id` {repo_id!r} cannot be used: {error}") from error
    return str(created.repo_id)


def push_result(
    args: FinetuningArguments, folder: Path, repo_id: str, results: dict[str, Any]
) -> None:
    """Uploads a model folder with its code and a card, in one commit.

    Raises:
        RunError: If the Hub cannot be reached or refuses; the folder is complete.
    """
    from amd_hf.hub.export import export_repository
    from amd_hf.hub.publish import publish_folder
    from amd_hf.modeling_amd import AMDForSemanticSegmentation

    model = AMDForSemanticSegmentation.from_pretrained(folder)
    try:
        with tempfile.TemporaryDirectory() as temporary:
            target = export_repository(
                model,
                Path(temporary) / "repository",
                image_processor=AMDImageProcessor.from_pretrained(folder),
                card=model_card(args, repo_id, results),
            )
            publish_folder(
                target,
                repo_id,
                private=args.hub_private_repo or None,
                token=args.hub_token,
                message="Fine-tuned for semantic segmentation",
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise RunError(
            f"The run is complete in {folder}, but could not be pushed to {repo_id}: {error}; push "
            "it by the same command with --resume_from_checkpoint latest."
        ) from error
    logger.info("Pushed %s to the Hub.", repo_id)


def model_card(args: FinetuningArguments, repo_id: str, results: dict[str, Any]) -> str:
    """The text of the model card: what was trained on what, how to use it, the scores."""
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-segmentation",
        tags=["amd", "semantic-segmentation"],
        metrics=["mean_iou"],
        base_model=None,
    )
    labels = results["labels"]
    rows = [
        f"| {name} | {'-' if iou is None else format(100 * iou, '.1f')} |"
        for name, iou in zip(labels, results["best_scores"]["iou"], strict=True)
    ]
    start = args.model_name_or_path or f"random weights ({args.config_name})"
    return "\n".join(
        [
            "---",
            data.to_yaml(),
            "---",
            "",
            f"# {repo_id}",
            "",
            f"`AMDForSemanticSegmentation` for {len(labels)} classes, fine-tuned (mode "
            f"`{args.mode}`) from `{start}` on `{Path(args.dataset_name).name}` for "
            f"{results['best_step']} of {args.max_train_steps} steps of "
            f"{results['images_per_step']} crops.",
            "",
            "```python",
            "from transformers import pipeline",
            "",
            f'segment = pipeline("image-segmentation", model="{repo_id}", trust_remote_code=True)',
            'segment("photo.jpg")  # [{"label", "mask", "score"}], one entry per class',
            "```",
            "",
            f"Mean IoU on {results['best_scores']['num_images']} validation images: "
            f"{100 * results['best_scores']['mean_iou']:.1f}. The weights are those of the best "
            "evaluation on these images, so the figure is slightly optimistic.",
            "",
            "| class | IoU |",
            "|---|---|",
            *rows,
            "",
        ]
    )


def named_iou(data: SemanticData, scores: dict[str, Any]) -> dict[str, float]:
    """Scores as flat values for the log; classes that never occur are left out."""
    flat = {name: scores[name] for name in ("mean_iou", "mean_accuracy", "pixel_accuracy")}
    per_class = {
        f"iou/{label}": value
        for label, value in zip(data.labels, scores["iou"], strict=True)
        if value == value
    }
    return {**flat, **per_class}
