"""A finished or partly finished output as one page for people: pictures, areas, objects, times, audit, where it comes from."""
