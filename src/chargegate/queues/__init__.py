"""Transport of accepted requests. A backend is one file; the URL's scheme picks it."""
