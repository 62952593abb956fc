"""tkpy."""
