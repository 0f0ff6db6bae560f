"""From requests to results: uploading, waiting, downloading, and joining both by their ids."""
