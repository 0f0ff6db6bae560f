"""One worker process: it claims tasks, and an event loop sends their lines to the backends."""
