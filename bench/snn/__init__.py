"""Spiking networks: neurons that unroll time, changes to networks, simulation."""
