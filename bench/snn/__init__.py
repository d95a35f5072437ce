"""Spiking networks: neurons that unroll time, surgery on networks, simulation."""
