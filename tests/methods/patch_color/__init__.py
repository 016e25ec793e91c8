"""A family of methods for tests: the mean colour of each patch beside the nominal scans'."""
