"""A procedural RGB + 3D data set, pure NumPy: parts on a conveyor, with and without defects.

| category | coupling of colour and shape in a nominal part |
|---|---|
| bolt_plate | a brass disc is a bolt's dome, a black one is a bore |
| biscuit | a red drop is a bump, a dark dot is a docker hole |
| bottle_cap | the orange mark lies in the notch, the white star is embossed |
| foam_pad | a light ridge is high, a dark one is low |

| defect | colour | shape |
|---|---|---|
| stain | reflectance changed by about 15-50 % | nominal |
| dent, bump | nominal (shading only) | 0.7-2.8 mm |
| crack | darker line | groove of 0.6-2 mm |
| mismatch | nominal by itself | nominal by itself, but the two do not belong together |
"""

from mmad_fast.data.synthetic.render import CATEGORIES, DEFECTS, SyntheticScan, render_scan
from mmad_fast.data.synthetic.writer import write_synthetic

__all__ = ["CATEGORIES", "DEFECTS", "SyntheticScan", "render_scan", "write_synthetic"]
