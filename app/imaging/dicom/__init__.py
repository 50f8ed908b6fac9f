"""DICOM: files and zipped series in, without identities, and segmentation objects out.

pydicom and highdicom are imported by the functions that need them.
"""
