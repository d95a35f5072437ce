"""What works on networks as graphs: tracing, checks, surgery."""
