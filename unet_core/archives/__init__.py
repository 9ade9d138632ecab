"""Many images with one result each: which they are, what their results are called, how far they are. Knows no Prefect and no cluster."""
