"""Values that fit a JSON Schema; decision 0051 says why the generator is our own."""
