"""Metrics that take a stream of features, batch by batch and rank by rank: torchmetrics' kind.

They are in a folder of their own because naming any encoder or measure in a config imports every
module beside this folder, and importing torchmetrics takes seconds.
"""
