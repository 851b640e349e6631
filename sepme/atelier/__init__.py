"""The Atelier: the small text-to-image model that ships with sepme, and all that makes it."""
