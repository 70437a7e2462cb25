"""How a claim about a kernel is judged, and the makers of the claims."""
