"""What every engine is built from."""
