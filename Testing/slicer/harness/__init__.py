"""A stand-in for 3D Slicer's desktop around its own core: Slicer-like, not Slicer (see README.md)."""
