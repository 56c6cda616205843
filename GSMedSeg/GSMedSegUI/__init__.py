"""The Slicer module's parts; those that need no Qt say so."""
