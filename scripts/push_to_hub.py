"""Publishes a checkpoint, or the Space, to the Hugging Face Hub in one commit.

    python scripts/push_to_hub.py ORG/NAME --results results/*.json
    python scripts/push_to_hub.py ORG/NAME --dry-run DIR      # writes the repository, sends nothing
    python scripts/push_to_hub.py ORG/NAME --space --wheel dist/amd_hf-*.whl

The card's pictures are drawn with the model: the photos of `spaces/examples`, and the best, median
and worst of generated scenes. Log in before with `hf auth login`. The commit's id is printed: pin
it with `revision=...`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub.errors import HfHubHTTPError
from transformers import AutoConfig

from amd_hf import (
    DEFAULT_CHECKPOINT,
    AMDForSemanticSegmentation,
    AMDImageProcessor,
    AMDModel,
)
from amd_hf.hub import (
    CardPicture,
    draw_card_pictures,
    export_repository,
    export_space,
    fill_model_card,
    publish_folder,
    read_provenance,
    read_results,
)
from amd_hf.hub.pictures import NUM_SCENES

ROOT = Path(__file__).resolve().parent.parent
PHOTOS = ROOT / "spaces" / "examples"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Returns the parsed command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("repo_id", metavar="ORG/NAME", help="repository to create or update")
    parser.add_argument("--model", default=DEFAULT_CHECKPOINT, help="checkpoint folder or Hub id")
    parser.add_argument(
        "--provenance", help="folder of provenance.json; the checkpoint's if absent"
    )
    parser.add_argument("--results", nargs="*", default=[], help="files of `amd-hf evaluate`")
    for flag, place in (("--picture", "top"), ("--failure-picture", "limitations")):
        parser.add_argument(
            flag,
            nargs=2,
            action="append",
            default=[],
            metavar=("FILE", "CAPTION"),
            help=f"further picture of the card ({place}); may be given several times",
        )
    parser.add_argument(
        "--photos",
        nargs="*",
        type=Path,
        default=[file for file in PHOTOS.glob("*.jpg") if not file.name.startswith("generated")],
        help="photos of the card, which must be free to pass on; default: those of the Space",
    )
    parser.add_argument(
        "--num-scenes",
        type=int,
        default=NUM_SCENES,
        help="generated scenes, ranked for the card (%(default)s); 0 draws no picture at all",
    )
    parser.add_argument("--template", default=ROOT / "model_card.md", help="template of the card")
    parser.add_argument("--space", action="store_true", help="publish the Space, not a model")
    parser.add_argument("--wheel", help="wheel of this package, for --space")
    parser.add_argument("--revision", help="branch to commit to")
    parser.add_argument("--message", help="first line of the commit")
    parser.add_argument("--private", action="store_true", help="create a private repository")
    parser.add_argument("--dry-run", metavar="DIR", help="write the repository here, send nothing")
    return parser.parse_args(argv)


def write_model(args: argparse.Namespace, folder: Path) -> None:
    """Writes the repository of a model to `folder`."""
    config = AutoConfig.from_pretrained(args.model)
    is_semantic = AMDForSemanticSegmentation.__name__ in (config.architectures or [])
    model = (AMDForSemanticSegmentation if is_semantic else AMDModel).from_pretrained(args.model)
    processor = AMDImageProcessor.from_pretrained(args.model)
    provenance_dir = args.provenance or args.model
    results, provenance = read_results(args.results), read_provenance(provenance_dir)
    pictures = [CardPicture(Path(file), caption) for file, caption in args.picture]
    pictures += [CardPicture(Path(file), caption, True) for file, caption in args.failure_picture]
    with tempfile.TemporaryDirectory() as drawings:
        if args.num_scenes and isinstance(model, AMDModel):
            photos = sorted(args.photos)
            pictures += draw_card_pictures(model, processor, drawings, photos, args.num_scenes)
        card = fill_model_card(
            args.template,
            repo_id=args.repo_id,
            model=model,
            results=results,
            provenance=provenance,
            pictures=pictures,
        )
        export_repository(
            model,
            folder,
            image_processor=processor,
            card=card,
            pictures=pictures,
            companions_from=provenance_dir,
        )


def write_space(args: argparse.Namespace, folder: Path) -> None:
    """Writes the repository of the Space to `folder`."""
    if args.wheel is None:
        raise ValueError("`--space` needs `--wheel`; make one with `python -m build --wheel`.")
    export_space(ROOT / "spaces", folder, args.wheel, args.repo_id)


def main(argv: Sequence[str] | None = None) -> int:
    """Writes and, without `--dry-run`, publishes; returns the exit code."""
    args = parse_args(argv)
    write = write_space if args.space else write_model
    try:
        if args.dry_run:
            write(args, Path(args.dry_run))
            print(f"Wrote {args.dry_run}; nothing was sent.")
            return 0
        with tempfile.TemporaryDirectory() as parent:
            folder = Path(parent) / args.repo_id.split("/")[-1]
            write(args, folder)
            commit = publish_folder(
                folder,
                args.repo_id,
                repo_type="space" if args.space else "model",
                revision=args.revision,
                private=args.private or None,
                message=args.message,
            )
    except (ValueError, OSError, RuntimeError, HfHubHTTPError) as error:
        print(f"Not published: {error}", file=sys.stderr)
        return 2
    print(f"Published {commit.commit_url}\nPin it with revision={commit.oid!r}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
