"""Slicer's data model: volume nodes to images, clicks in the scene, masks into segments.

Needs slicer and vtk, never qt: one copy for the Slicer module and the browser app.
"""
