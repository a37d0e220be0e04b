"""How the drawing model was made, from random weights and drawn pictures."""
