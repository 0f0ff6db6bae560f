"""Where models run: one contract, several implementations."""
