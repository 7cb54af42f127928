"""Files that travel to the Hub import only what survives the flat copy, and what users have."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "src" / "amd_hf"
TRAVELING = sorted(PACKAGE.glob("*_amd.py"))
NAMES = {path.stem for path in TRAVELING}

# Where every file stands in the import direction of the package; a file imports from below only.
LEVELS = {
    "configuration_amd": 0,
    "warping_amd": 0,
    "loss_amd": 0,
    "guided_filter_amd": 0,
    "image_io_amd": 0,
    "video_amd": 1,
    "appearance_amd": 1,
    "motion_amd": 1,
    "view_synthesis_amd": 1,
    "image_processing_amd": 1,
    "segment_flow_amd": 2,
    "modeling_amd": 3,
    "frame_cache_amd": 2,
    "adaptation_amd": 4,
    "pipeline_amd": 5,
}
# These read files by purpose; the model proper does not.
READERS = {"image_io_amd", "video_amd", "image_processing_amd", "frame_cache_amd"}
THIRD_PARTY = {"torch", "numpy", "PIL", "transformers", "huggingface_hub"}
OPTIONAL = {"av"}  # only inside `try:`
EXTRAS = (
    "accelerate",
    "datasets",
    "evaluate",
    "gradio",
    "cv2",
    "skimage",
    "torchdata",
    "hypothesis",
)


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imports(tree: ast.AST) -> list[ast.Import | ast.ImportFrom]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]


def sibling_imports(path: Path) -> set[str]:
    return {
        node.module or ""
        for node in imports(parse(path))
        if isinstance(node, ast.ImportFrom) and node.level
    }


def test_all_files_have_a_level() -> None:
    assert set(LEVELS) == NAMES


@pytest.mark.parametrize("path", TRAVELING, ids=lambda path: path.stem)
class TestTravelingFile:
    def test_siblings_are_imported_with_one_dot_and_by_name(self, path: Path) -> None:
        for node in imports(parse(path)):
            if isinstance(node, ast.ImportFrom) and node.level:
                where = f"{path.name}:{node.lineno}"
                assert node.level == 1, f"{where}: more than one dot"
                assert node.module, f"{where}: `from . import` is saved without the file"
                assert node.module in NAMES, f"{where}: {node.module} does not travel"
                assert "*" not in {alias.name for alias in node.names}, where

    def test_siblings_are_from_below(self, path: Path) -> None:
        for sibling in sibling_imports(path):
            assert LEVELS[sibling] < LEVELS[path.stem], f"{path.stem} imports {sibling}"

    def test_third_party_is_what_the_base_installs(self, path: Path) -> None:
        tree = parse(path)
        guarded = {
            id(node)
            for attempt in ast.walk(tree)
            if isinstance(attempt, ast.Try)
            for statement in attempt.body
            for node in imports(statement)
        }
        for node in imports(tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                continue
            modules = (
                [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else [alias.name for alias in node.names]
            )
            for module in modules:
                root = module.partition(".")[0]
                where = f"{path.name}:{node.lineno} imports {module}"
                if root in OPTIONAL:
                    assert id(node) in guarded, f"{where} outside of `try:`"
                else:
                    assert root in THIRD_PARTY or root in sys.stdlib_module_names, where

    def test_no_docstring_line_looks_like_an_import(self, path: Path) -> None:
        # The copier of transformers reads the text with regular expressions.
        lines = {node.lineno for node in imports(parse(path))}
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if line.strip().startswith(("from .", "import .")):
                assert number in lines, f"{path.name}:{number} is text, not an import"

    def test_no_typing_only_imports(self, path: Path) -> None:
        assert "TYPE_CHECKING" not in path.read_text(encoding="utf-8")


def test_model_files_do_no_input_or_output() -> None:
    forbidden = {"open", "print", "input"}
    model_files = [path for path in TRAVELING if LEVELS[path.stem] <= 3]
    for path in model_files:
        if path.stem in READERS:
            continue
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in forbidden, f"{path.name}:{node.lineno}"


def test_model_files_name_no_device() -> None:
    """CPU, CUDA and MPS run the same operators; float64, absent on MPS, is never asked for."""
    names = (
        "warping",
        "appearance",
        "motion",
        "segment_flow",
        "view_synthesis",
        "loss",
        "modeling",
    )
    for name in names:
        tree = parse(PACKAGE / f"{name}_amd.py")
        for node in ast.walk(tree):
            if not isinstance(node, ast.Attribute):
                continue
            where = f"{name}_amd.py:{node.lineno}: .{node.attr}"
            assert node.attr not in {"cuda", "double", "float64", "mps", "cpu", "item"}, where


def test_configuration_keeps_the_type_check_of_its_fields() -> None:
    text = (PACKAGE / "configuration_amd.py").read_text(encoding="utf-8")
    assert "from __future__ import annotations" not in text  # switches off strict's check


def test_import_needs_no_extra() -> None:
    """`import amd_hf` works where none of the extras is installed, and loads none of them."""
    program = f"""
import sys
for name in {EXTRAS!r}:
    sys.modules[name] = None
import amd_hf
print(sorted(amd_hf.__all__))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "AMDModel" in done.stdout
