"""Publishing: complete Hub repositories, model cards and the Space, each in one commit."""

from amd_hf.hub.card import fill_model_card, read_provenance, read_results
from amd_hf.hub.export import check_repository, export_repository
from amd_hf.hub.pictures import CardPicture, draw_card_pictures
from amd_hf.hub.publish import differing_files, publish_folder
from amd_hf.hub.space import export_space

__all__ = [
    "CardPicture",
    "check_repository",
    "differing_files",
    "draw_card_pictures",
    "export_repository",
    "export_space",
    "fill_model_card",
    "publish_folder",
    "read_provenance",
    "read_results",
]
