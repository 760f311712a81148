"""The model `auto`: one is chosen for each picture, by what is measured in it."""
