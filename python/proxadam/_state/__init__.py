"""Tools around an optimizer's state: a module for each of their names."""
