"""Pictures for people. Needs Pillow and NumPy only, so the run half may use it."""

from mmad_fast.report.pictures import (
    Tile,
    contact_sheet,
    overlay_image,
    save_map_tiff,
    save_overlay,
)

__all__ = ["Tile", "contact_sheet", "overlay_image", "save_map_tiff", "save_overlay"]
