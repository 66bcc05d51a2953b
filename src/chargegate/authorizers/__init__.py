"""Those who decide, and what is wrapped around them."""
