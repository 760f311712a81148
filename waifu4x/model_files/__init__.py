"""A file becomes a `model_facts.Model`: read safely, recognised by its keys and shapes."""
