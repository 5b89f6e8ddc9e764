"""What a statement means and where it goes: pure decisions, no I/O."""
