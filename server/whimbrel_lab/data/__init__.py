"""Examples to learn from, published or made up, and how they are spread over a fleet."""
