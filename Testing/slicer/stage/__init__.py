"""A stage like Slicer's desktop: core, views and widgets, to run the module on without Slicer."""
