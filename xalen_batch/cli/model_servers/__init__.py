"""Model servers, as an operator finds them: what kind one is, what it serves, and how fast."""
