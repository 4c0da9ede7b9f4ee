"""Models whose parameters lie on several devices: what of a weight and of its values is here.

Nothing here knows modules: they, optimisers and conversion ask it about tensors.
"""
