"""Training reproduces the published code: losses, all gradients, statistics and Adam's path."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from amd_hf.hub.convert_official import official_key_table

from . import oracle

pytestmark = pytest.mark.parity

NUM_TRAINED_TENSORS = 215
WEIGHT_DECAY = 1e-6


class Trajectory:
    """Steps of Adam in float64 from the recorded weights, dropout off, under official names.

    The first step keeps everything that it computed.
    """

    def __init__(self, folder: Path, pair: Tensor, steps: list[dict[str, float]]) -> None:
        self.model = oracle.official_model(folder, head_dropout=0.0).double().train()
        table = official_key_table(self.model.config)
        self.official_names = {ours: name for name, ours in table.items()}
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), lr=1e-4, weight_decay=WEIGHT_DECAY
        )
        self.pair = pair.double()
        self.steps = steps
        self.losses: list[float] = []
        self._first_step()

    def named(self, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        return {self.official_names[name]: t.detach().clone() for name, t in tensors}

    def _first_step(self) -> None:
        with oracle.record(self.model) as recording:
            output = self.model(pixel_values=self.pair)
        self.recorded = recording.values
        self.recorded["seg_logits"] = output.segment_logits.detach()
        self.recorded["seg_masks"] = output.segment_masks.detach()
        self.buffers_after_forward = self.named(self.model.named_buffers())
        self._update(output.loss)
        self.gradients = self.named(
            (name, p.grad) for name, p in self.model.named_parameters() if p.grad is not None
        )
        self.parameters_after_step = self.named(self.model.named_parameters())

    def _update(self, loss: Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.param_groups[0]["lr"] = self.steps[len(self.losses)]["lr"]
        self.optimizer.step()
        self.losses.append(loss.item())

    def advance(self, num_steps: int) -> None:
        """Runs until `num_steps` steps are done."""
        while len(self.losses) < num_steps:
            self._update(self.model(pixel_values=self.pair).loss)


@pytest.fixture(scope="module")
def steps(oracle_dir: Path) -> list[dict[str, float]]:
    return json.loads((oracle_dir / "trajectory_f64.json").read_text())


@pytest.fixture(scope="module")
def pair(oracle_dir: Path) -> Tensor:
    return oracle.tensors(oracle_dir / "inputs.safetensors")["a.pixel_values"]


@pytest.fixture(scope="module")
def expected(oracle_dir: Path) -> dict[str, Tensor]:
    return oracle.tensors(oracle_dir / "case_a_f64.safetensors")


@pytest.fixture(scope="module")
def run(oracle_dir: Path, pair: Tensor, steps: list[dict[str, float]]) -> Trajectory:
    return Trajectory(oracle_dir, pair, steps)


def recorded_under(expected: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in expected.items() if n.startswith(prefix)}


def test_evaluation_in_float64(oracle_dir: Path, pair: Tensor, expected: dict[str, Tensor]) -> None:
    model = oracle.official_model(oracle_dir).double()
    with torch.no_grad(), oracle.record(model) as recording:
        output = model(pixel_values=pair.double())
    assert output.loss.dtype == torch.float64
    recorded = recorded_under(expected, "eval.")
    values = {
        **recording.values,
        "seg_logits": output.segment_logits,
        "seg_masks": output.segment_masks,
    }
    names = [n for n in recorded if n in values and not n.startswith(("loss", "valid"))]
    assert len(names) == 2 + 2 * (5 + 5 + 1)
    for name in names:
        torch.testing.assert_close(
            values[name], recorded[name], rtol=0, atol=oracle.FLOAT64_ATOL, msg=name
        )
    terms = [n for n in recorded if n.startswith("loss.seg.photo.")]
    assert len(terms) == 8
    for name in terms:
        torch.testing.assert_close(
            values[name], recorded[name], rtol=oracle.FLOAT64_LOSS_RTOL, atol=0
        )
    torch.testing.assert_close(output.loss, recorded["loss"], rtol=oracle.FLOAT64_LOSS_RTOL, atol=0)


def test_forward_in_training_mode(run: Trajectory, expected: dict[str, Tensor]) -> None:
    values = run.recorded
    names = ("seg_logits", "seg_masks", "fw.segment_flow_vectors", "bw.segment_flow_vectors")
    for name in names:
        torch.testing.assert_close(
            values[name], expected[f"train.{name}"], rtol=0, atol=oracle.FLOAT64_ATOL
        )
    terms = recorded_under(expected, "train.loss.seg.photo.")
    assert len(terms) == 8
    for name, term in terms.items():
        torch.testing.assert_close(
            values[f"loss.seg.photo.{name}"], term, rtol=oracle.FLOAT64_LOSS_RTOL, atol=0
        )


def test_all_gradient_norms(run: Trajectory, expected: dict[str, Tensor]) -> None:
    norms = recorded_under(expected, "gradnorm.")
    assert norms.keys() == run.gradients.keys()
    assert len(norms) == NUM_TRAINED_TENSORS
    for name, norm in norms.items():
        torch.testing.assert_close(
            run.gradients[name].norm(),
            norm.to(torch.float64),
            rtol=oracle.FLOAT64_GRADIENT_RTOL,
            atol=1e-12,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def test_recorded_gradients(run: Trajectory, expected: dict[str, Tensor]) -> None:
    gradients = recorded_under(expected, "grad.")
    assert len(gradients) == 10
    for name, gradient in gradients.items():
        ours = run.gradients[name].view_as(gradient)
        atol = oracle.FLOAT64_GRADIENT_RTOL * float(gradient.abs().max())
        torch.testing.assert_close(ours, gradient, rtol=0, atol=atol, msg=name)


def test_running_statistics_after_one_forward(
    run: Trajectory, expected: dict[str, Tensor], oracle_dir: Path
) -> None:
    statistics = recorded_under(expected, "bn_after.")
    assert len(statistics) == 6
    for name, value in statistics.items():
        torch.testing.assert_close(
            run.buffers_after_forward[name], value, rtol=0, atol=oracle.FLOAT64_ATOL, msg=name
        )
    narrow = oracle.tensors(oracle_dir / "case_a_train.safetensors", "bn_after.")
    counts = {n: t for n, t in narrow.items() if n.endswith("num_batches_tracked")}
    assert len(counts) == 3
    for name, count in counts.items():
        assert torch.equal(run.buffers_after_forward[name], count), name


def test_parameters_after_one_step_of_adam(run: Trajectory, expected: dict[str, Tensor]) -> None:
    parameters = recorded_under(expected, "adam_step1.")
    assert len(parameters) == 10
    for name, value in parameters.items():
        ours = run.parameters_after_step[name].view_as(value)
        torch.testing.assert_close(ours, value, rtol=0, atol=oracle.FLOAT64_ADAM_ATOL, msg=name)


def assert_losses(run: Trajectory, steps: list[dict[str, float]], num_steps: int) -> None:
    run.advance(num_steps)
    expected = [step["loss_before_step"] for step in steps[:num_steps]]
    assert run.losses[:num_steps] == pytest.approx(expected, rel=oracle.FLOAT64_LOSS_RTOL)


def test_two_steps_of_adam(run: Trajectory, steps: list[dict[str, float]]) -> None:
    assert_losses(run, steps, 2)


@pytest.mark.slow
def test_six_steps_of_adam(run: Trajectory, steps: list[dict[str, float]]) -> None:
    assert len(steps) == 6 + 1
    assert_losses(run, steps, 6)
    parameters = run.named(run.model.named_parameters())
    for name, norm in steps[-1]["final_param_norms"].items():
        ours = float(parameters[name].norm())
        assert ours == pytest.approx(norm, abs=oracle.FLOAT64_ADAM_ATOL), name


def test_training_mode_in_float32(oracle_dir: Path, pair: Tensor) -> None:
    model = oracle.official_model(oracle_dir, head_dropout=0.0).train()
    expected = oracle.tensors(oracle_dir / "case_a_train.safetensors")
    with torch.no_grad():
        output = model(pixel_values=pair)
    for ours, name, atol in (
        (output.segment_logits, "seg_logits", oracle.TRAIN_LOGITS_ATOL),
        (output.segment_masks, "seg_masks", oracle.TRAIN_MASKS_ATOL),
        (output.segment_motion_12, "fw.segment_flow_vectors", oracle.FLOW_ATOL),
        (output.segment_motion_21, "bw.segment_flow_vectors", oracle.FLOW_ATOL),
        (output.loss, "loss", oracle.LOSS_ATOL),
    ):
        torch.testing.assert_close(ours, expected[name], rtol=0, atol=atol, msg=name)
