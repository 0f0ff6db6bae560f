"""Live calls: one request to a model, answered at once, at list price."""
