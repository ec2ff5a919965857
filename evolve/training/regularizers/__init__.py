"""Regularisers: what holds a model near the weights that it starts from. One small file each."""
