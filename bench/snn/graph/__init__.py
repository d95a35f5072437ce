"""What works on networks as graphs: tracing, checks, separation, folding, wiring."""
