"""Outlines and runs that annotation tools export, turned into masks of classes."""
