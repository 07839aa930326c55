"""How much each caller, address and model may ask for and spend."""
