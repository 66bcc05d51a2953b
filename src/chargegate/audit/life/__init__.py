"""What becomes of CSV audit files: rotated, compressed, archived, and deleted in the end."""
