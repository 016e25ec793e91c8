"""BTF: a memory bank of colour features and point histograms. README.md has the maths."""
