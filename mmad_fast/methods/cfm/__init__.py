"""CFM: crossmodal feature mapping. `detector` runs it, `fit` fits it, `reference` is the truth."""
