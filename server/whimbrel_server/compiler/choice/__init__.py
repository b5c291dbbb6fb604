"""What is trained of a model: weights by name, adapters, new heads, running statistics, and how new ones start."""
