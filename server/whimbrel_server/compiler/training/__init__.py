"""What a step minimises, counts and updates: losses, metrics and optimisers as graph builders."""
