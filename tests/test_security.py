"""What SECURITY.md promises about the sources: a search for calls that run what a file says."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from amd_hf.cli.demo_uploads import MAX_IMAGE_MEGAPIXELS, MAX_UPLOAD_MEGABYTES
from amd_hf.data.archives import MAX_MEMBER_BYTES
from amd_hf.image_io_amd import MAX_DOWNLOAD_BYTES, MAX_IMAGE_PIXELS

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(p for part in ("src", "scripts", "spaces") for p in (ROOT / part).rglob("*.py"))

FORBIDDEN_CALLS = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.load"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.loads", "shelve.open"),
    *("dill.load", "dill.loads", "cloudpickle.load", "cloudpickle.loads", "joblib.load"),
    *("pandas.read_pickle", "tempfile.mktemp", "torch.hub.load", "torch.jit.load"),
}
FORBIDDEN_METHODS = {"extractall", "extract", "extract_cython", "unsafe_load", "full_load"}
# Calls that are safe with one keyword only, and the value that it must have.
GUARDED_CALLS = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
}
FORBIDDEN_KEYWORDS = {("trust_remote_code", True), ("shell", True), ("verify", False)}
# Only these open images and videos that come from outside.
OPENERS = {"Image.open": {"image_io_amd.py", "demo_uploads.py"}, "av.open": {"video_amd.py"}}
# These read what the package itself has just made, or what belongs to the repository.
OWN_FILES = {"contact_sheet.py", "make_figures.py", "make_demo.py"}
OWN_FILES |= {"make_examples.py", "pictures.py"}
OWN_FOLDER = "benchmarking"


def dotted(node: ast.expr) -> str:
    """`a.b.c` of an expression; empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        left = dotted(node.value)
        return f"{left}.{node.attr}" if left else ""
    return ""


def weaknesses(tree: ast.AST, file: str = "") -> Iterator[str]:
    """Every call in a module that could run or unpack what a file says."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        keywords = {
            k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)
        }
        method = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        if name in FORBIDDEN_CALLS or method in FORBIDDEN_METHODS:
            yield f"{node.lineno}: {name or method}"
        if (
            name in GUARDED_CALLS
            and keywords.get(GUARDED_CALLS[name][0]) is not GUARDED_CALLS[name][1]
        ):
            yield f"{node.lineno}: {name} without {GUARDED_CALLS[name][0]}={GUARDED_CALLS[name][1]}"
        yield from (
            f"{node.lineno}: {key}={value}"
            for key, value in keywords.items()
            if (key, value) in FORBIDDEN_KEYWORDS
        )
        if file and name in OPENERS and file not in OPENERS[name] | OWN_FILES:
            yield f"{node.lineno}: {name} in place of the reader with limits"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_code_runs_what_a_file_says(path: Path) -> None:
    file = "" if path.parent.name == OWN_FOLDER else path.name
    assert list(weaknesses(ast.parse(path.read_text(encoding="utf-8")), file)) == []


@pytest.mark.parametrize(
    "snippet",
    [
        *("eval('1')", "exec(text)", "pickle.load(file)", "yaml.load(text)", "os.system(command)"),
        *("torch.load(path)", "torch.load(path, weights_only=False)", "np.load(path)"),
        *("np.load(path, allow_pickle=True)", "archive.extractall(folder)", "Image.open(path)"),
        *("AutoModel.from_pretrained(name, trust_remote_code=True)", "run(command, shell=True)"),
        *("av.open(path)", "torch.load(path, 'cpu')", "yaml.unsafe_load(text)"),
    ],
)
def test_the_search_finds(snippet: str) -> None:
    assert len(list(weaknesses(ast.parse(snippet), "module.py"))) == 1


@pytest.mark.parametrize(
    "snippet",
    ["model.eval()", "torch.load(path, weights_only=True)", "np.load(path, allow_pickle=False)"],
)
def test_the_search_leaves_alone(snippet: str) -> None:
    assert list(weaknesses(ast.parse(snippet), "module.py")) == []


# The document.


def test_the_document_states_the_limits_of_the_code() -> None:
    text = re.sub(r"\s+", " ", (ROOT / "SECURITY.md").read_text(encoding="utf-8"))
    assert f"{MAX_IMAGE_PIXELS:,} pixels" in text
    assert f"{MAX_MEMBER_BYTES >> 20} MiB" in text
    assert f"{MAX_DOWNLOAD_BYTES >> 20} MiB" in text
    assert f"{MAX_UPLOAD_MEGABYTES} MB" in text
    assert f"{MAX_IMAGE_MEGAPIXELS} megapixels" in text
