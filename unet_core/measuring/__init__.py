"""Measurements of objects: sums over the voxels of blocks, exact in integers, added up, and made into columns. Knows no storage."""
