"""Models that were made elsewhere: read, checked, and turned into model packages."""
