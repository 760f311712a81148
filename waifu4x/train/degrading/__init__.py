"""How small pictures are made of large ones."""
