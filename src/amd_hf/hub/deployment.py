"""Deployment without this package: ONNX, int8 ONNX and `torch.export` programs of the segments.

Only the appearance pathway is exported: normalized image in, segment logits and masks out. The
float32 exports are compared with the PyTorch model before they get their names; int8 ones differ
from it, and `hub.deployment_measures` tells what that costs.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from amd_hf import AMDModel, AMDModelOutput
from amd_hf.whole_files import written_aside

INPUT_NAME = "pixel_values"
OUTPUT_NAMES = ("segment_logits", "segment_masks")
OPSET_VERSION = 18
# Batch, height and width are free in every export.
DYNAMIC_AXES = (0, 2, 3)
# Largest difference of a segment's probability between the model and its float32 export.
PARITY_ATOL = 1e-4
_EXAMPLE_SIZE = (2, 3, 96, 128)


class AMDSegmentation(nn.Module):
    """The part of an `AMDModel` that runs at inference, with plain tensors as outputs."""

    def __init__(self, model: AMDModel) -> None:
        super().__init__()
        self.appearance = model.appearance
        self.segment_classifier = model.segment_classifier
        self.train(False)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Maps normalized images (B, 3, H, W) to logits and masks (B, K, ceil(H/8), ceil(W/8))."""
        logits = self.segment_classifier(self.appearance(pixel_values)).float()
        return logits, logits.softmax(dim=1)


class OnnxSegmenter:
    """An exported model behind ONNX Runtime, with the outputs of `AMDModel`.

    Args:
        path: The `.onnx` file.
        num_threads: Threads of an operator; None leaves the choice to ONNX Runtime.
        providers: Execution providers in order of preference.

    Raises:
        ImportError: If ONNX Runtime is not installed.
        ValueError: If the file does not exist.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        num_threads: int | None = None,
        providers: Sequence[str] = ("CPUExecutionProvider",),
    ) -> None:
        runtime = _import_runtime()
        if not Path(path).is_file():
            raise ValueError(f"`path` must be an existing .onnx file, got {path}.")
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        if num_threads is not None:
            options.intra_op_num_threads = num_threads
        self.session = runtime.InferenceSession(str(path), options, providers=list(providers))

    def __call__(self, pixel_values: Tensor) -> AMDModelOutput:
        """Segments normalized images (B, 3, H, W); the outputs are float32 on the CPU."""
        images = np.ascontiguousarray(pixel_values.detach().cpu().float().numpy())
        logits, masks = self.session.run(list(OUTPUT_NAMES), {INPUT_NAME: images})
        return AMDModelOutput(
            segment_logits=torch.from_numpy(logits), segment_masks=torch.from_numpy(masks)
        )


class ProgramSegmenter:
    """A `torch.export` program of the segments, with the outputs of `AMDModel`.

    Args:
        path: The `.pt2` file that `export_program` wrote.
    """

    def __init__(self, path: str | Path) -> None:
        self.module = torch.export.load(str(path)).module()

    def __call__(self, pixel_values: Tensor) -> AMDModelOutput:
        """Segments normalized images (B, 3, H, W)."""
        logits, masks = self.module(pixel_values)
        return AMDModelOutput(segment_logits=logits, segment_masks=masks)


def export_onnx(model: AMDModel, path: str | Path) -> Path:
    """Writes the appearance pathway of `model` as one ONNX file with free batch and image size.

    Args:
        model: The model; it is not changed.
        path: The `.onnx` file to write.

    Returns:
        The file.

    Raises:
        ImportError: If `onnx` or `onnxscript` is not installed.
        RuntimeError: If ONNX Runtime computes other masks than the model.
    """
    _import_runtime()
    path = Path(path)
    with written_aside(path) as partial, _evaluating(model) as wrapper, _quiet_exporter():
        program = torch.onnx.export(
            wrapper,
            (_example(model),),
            dynamo=True,
            opset_version=OPSET_VERSION,
            input_names=[INPUT_NAME],
            output_names=list(OUTPUT_NAMES),
            dynamic_shapes={INPUT_NAME: _dynamic_shape()},
            verbose=False,
        )
        assert program is not None
        program.save(str(partial), external_data=False)
        check_parity(model, OnnxSegmenter(partial))
    return path


def export_program(model: AMDModel, path: str | Path) -> Path:
    """Writes the appearance pathway as a `torch.export` program with free batch and image size.

    Load it with `torch.export.load(path).module()`; it needs torch and no package of ours.

    Args:
        model: The model; it is not changed.
        path: The `.pt2` file to write.

    Returns:
        The file.

    Raises:
        RuntimeError: If the program computes other masks than the model.
    """
    path = Path(path)
    with written_aside(path) as partial, _evaluating(model) as wrapper:
        program = torch.export.export(
            wrapper, (_example(model),), dynamic_shapes=(_dynamic_shape(),)
        )
        whole = io.BytesIO()  # torch's own writer of files aborts the process on a full disk
        torch.export.save(program, whole)
        partial.write_bytes(whole.getbuffer())
        check_parity(model, ProgramSegmenter(partial))
    return path


def quantize_dynamic(source: str | Path, path: str | Path) -> Path:
    """Writes an ONNX file with int8 weights; activations are quantized while it runs.

    Four times smaller and needs no calibration. Its integer convolutions are slow on most CPUs:
    use it for size, `quantize_static` for speed.

    Args:
        source: The file that `export_onnx` wrote.
        path: The file to write.

    Returns:
        The file.

    Raises:
        ImportError: If ONNX Runtime is not installed.
    """
    quantization = _import_quantization()
    with written_aside(Path(path)) as partial, _quiet_exporter():
        quantization.quantize_dynamic(
            str(source), str(partial), weight_type=quantization.QuantType.QUInt8
        )
    return Path(path)


def quantize_static(source: str | Path, path: str | Path, batches: Iterable[Tensor]) -> Path:
    """Writes an ONNX file whose convolutions compute in int8.

    Weights are int8 per output channel; the ranges of the activations are the extremes seen in the
    calibration. The segment classifier stays in float32, since masks are decided by small
    differences of its logits.

    Args:
        source: The file that `export_onnx` wrote.
        path: The file to write.
        batches: Normalized images (B, 3, H, W) like those to be segmented; some tens are enough.

    Returns:
        The file.

    Raises:
        ImportError: If ONNX Runtime is not installed.
        ValueError: If there is no calibration image.
    """
    quantization = _import_quantization()
    from onnxruntime.quantization.shape_inference import quant_pre_process

    reader = _CalibrationReader(batches)
    with written_aside(Path(path)) as partial, _quiet_exporter():
        prepared = partial.with_suffix(".prepared.onnx")
        # Folds batch normalization into the convolutions, which static quantization relies on.
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        quantization.quantize_static(
            str(prepared),
            str(partial),
            reader,
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            op_types_to_quantize=["Conv", "Add", "MaxPool", "Relu"],
            nodes_to_exclude=[_last_convolution(prepared)],
        )
    return Path(path)


def check_parity(model: AMDModel, exported: Any, atol: float = PARITY_ATOL) -> float:
    """Returns the largest difference of the segment masks of `model` and of its export.

    Compared on random images of two sizes and batches, neither of which was used for the export.

    Args:
        model: The model.
        exported: Maps `pixel_values` to an output with `segment_masks`.
        atol: Largest difference that is accepted.

    Raises:
        RuntimeError: If the difference is larger.
    """
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    with _evaluating(model) as wrapper, torch.no_grad():
        for shape in ((1, 3, 64, 64), (3, 3, 97, 130)):
            images = torch.randn(shape, generator=generator)
            expected = wrapper(images.to(model.device, model.dtype))[1].cpu()
            worst = max(worst, float((exported(images).segment_masks - expected).abs().max()))
    if not worst <= atol:
        raise RuntimeError(
            f"The export differs from the model by {worst:.2g} in a segment mask, more than "
            f"{atol:g}; export the model in float32."
        )
    return worst


class _CalibrationReader:
    """Hands calibration images to ONNX Runtime."""

    def __init__(self, batches: Iterable[Tensor]) -> None:
        self.batches = [
            np.ascontiguousarray(image[None].float().numpy())
            for batch in batches
            for image in batch
        ]
        if not self.batches:
            raise ValueError("`batches` must hold at least one image to calibrate with, got none.")
        self.rewind()

    def rewind(self) -> None:
        """Starts again from the first image."""
        self._remaining = iter(self.batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next input, or None at the end."""
        image = next(self._remaining, None)
        return None if image is None else {INPUT_NAME: image}


def _last_convolution(path: Path) -> str:
    """Name of the segment classifier: the convolution that no other one follows."""
    import onnx

    graph = onnx.load(str(path)).graph
    return str([node.name for node in graph.node if node.op_type == "Conv"][-1])


def _example(model: AMDModel) -> Tensor:
    return torch.zeros(_EXAMPLE_SIZE, device=model.device, dtype=model.dtype)


def _dynamic_shape() -> dict[int, Any]:
    return dict.fromkeys(DYNAMIC_AXES, torch.export.Dim.DYNAMIC)


@contextmanager
def _evaluating(model: AMDModel) -> Iterator[AMDSegmentation]:
    """The exported part in eval mode; the model's own modes come back afterwards."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield AMDSegmentation(model)
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Holds back the exporters' notes on libraries that are not needed here."""
    root, exporter = logging.getLogger(), logging.getLogger("torch.onnx")
    levels = root.level, exporter.level
    root.setLevel(logging.ERROR)
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        root.setLevel(levels[0])
        exporter.setLevel(levels[1])


def _import_runtime() -> Any:
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "Exporting to ONNX needs onnx, onnxruntime and onnxscript; run "
            'pip install "amd-hf[deploy]".'
        ) from error
    return onnxruntime


def _import_quantization() -> Any:
    _import_runtime()
    from onnxruntime import quantization

    return quantization
