"""The engine as a service: one process with the network, and clients that need neither torch nor a GPU.

`server` and what it is built on belong to the engine's process. `client` and what it is built on need numpy
and the standard library alone, so that they run in 3D Slicer's Python as it comes.
"""
