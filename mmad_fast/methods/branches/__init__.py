"""Frozen extractors with their graphs, one folder each: what the methods' detectors begin with."""
