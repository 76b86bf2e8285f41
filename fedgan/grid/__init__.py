"""Grids of experiments: attack x defence x data x seed over a base config."""
