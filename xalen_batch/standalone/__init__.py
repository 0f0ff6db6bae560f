"""`xalen-batch up`: everything on one machine, its stores, processes and files."""
