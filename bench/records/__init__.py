"""What a run was asked for and what it measured, as pydantic models. Nothing here imports torch."""
