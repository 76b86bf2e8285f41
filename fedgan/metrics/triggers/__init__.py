"""Detectors of triggers, one for each kind. They derive from torchmetrics' Metric; a folder of
their own keeps that package out of the search for measures and encoders."""
