"""Times k_center_greedy against torch and NumPy in the same run."""
