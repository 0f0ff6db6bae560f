"""The alerts of `examples/monitoring`, in Prometheus' own tool."""
