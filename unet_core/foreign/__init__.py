"""Models of other tools: read, checked, and turned into model packages; and written."""
