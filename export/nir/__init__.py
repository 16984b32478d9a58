"""NIR both ways: a graph of differential equations cut into steps and integers, and back."""
