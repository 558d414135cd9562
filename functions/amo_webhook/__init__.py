"""amoCRM tells what changed; a note in the card says it once."""
