"""Labels of a finished run, written into the image itself: where they go, what is written there, and the copying."""
