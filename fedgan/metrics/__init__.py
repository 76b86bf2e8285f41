"""Measures of generated images and of runs, and the encoders that they look through."""
