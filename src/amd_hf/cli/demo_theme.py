"""Looks of the demo's page: words, fonts and spacing. No file comes from another server."""

from __future__ import annotations

import gradio as gr

from amd_hf.visualization import OBJECT_COLOR, SEGMENT_COLORS

TITLE = "Objects without labels"

INTRO = f"""
# {TITLE}
The model learned from **raw video alone**, with no label and no pre-trained part, which things move
as one. It splits a picture into a few *segments*; one of them is the *object*.
"""

# Greys only: in this page color means something, and pink means "object".
THEME = gr.themes.Soft(
    primary_hue="slate",
    neutral_hue="slate",
    radius_size="md",
    font=["system-ui", "sans-serif"],
    font_mono=["ui-monospace", "monospace"],
).set(
    button_primary_background_fill="*neutral_800",
    button_primary_background_fill_hover="*neutral_700",
    button_primary_background_fill_dark="*neutral_100",
    button_primary_background_fill_hover_dark="*neutral_300",
    button_primary_text_color="white",
    button_primary_text_color_dark="*neutral_900",
    # A frame shows where results will be before there are any.
    block_border_width="1px",
    block_border_color="*neutral_200",
    block_border_color_dark="*neutral_700",
    block_shadow="none",
    block_label_background_fill="*neutral_100",
    block_label_text_color="*neutral_700",
    block_title_background_fill="none",
    block_title_text_color="*neutral_700",
    block_title_text_color_dark="*neutral_200",
    block_title_padding="0",
    slider_color="*neutral_600",
    slider_color_dark="*neutral_400",
)

STYLE = """
.gradio-container { max-width: 1180px !important; margin: 0 auto !important; }
#intro h1 { font-size: 1.9rem; margin: 0 0 .25rem; }
#intro p { font-size: 1.05rem; max-width: 46rem; }
#limits p { font-size: .85rem; opacity: .75; }
.note p { font-size: 1.05rem; }
#photo { min-height: 10rem; }
footer .divider { display: none; }
label[data-testid="block-label"] { font-size: .75rem; padding: .1rem .4rem; opacity: .9; }
@media (max-width: 640px) {
  .gradio-container { padding: .5rem !important; }
  #intro h1 { font-size: 1.5rem; }
  #intro p { font-size: 1rem; }
}
"""

OBJECT = "object"


def other_name(position: int) -> str:
    """Returns the name on the page of a segment beside the object.

    Args:
        position: Its position among them; a letter shows it, as a number would be taken for the
            index in the model, which also counts the object.
    """
    return f"segment {chr(ord('A') + position)}"


def _hex(color: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)


COLORS = {OBJECT: _hex(OBJECT_COLOR)} | {
    other_name(position): _hex(color) for position, color in enumerate(SEGMENT_COLORS)
}
"""Color of every name, the same as in overlays and videos."""
