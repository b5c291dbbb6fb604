"""The model that comes in: brought to one form and read into the graph. What is trained is told from outside."""
