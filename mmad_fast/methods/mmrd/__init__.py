"""MMRD and its kin: reverse distillation of RGB, depth and surface normals."""
