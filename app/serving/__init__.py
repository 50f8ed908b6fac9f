"""Trained networks, warm and answering: what an exported network promises, how an image becomes a mask, which models
are loaded.
"""
